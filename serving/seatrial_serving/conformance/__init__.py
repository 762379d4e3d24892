"""A black-box suite for Open Inference Protocol v2 servers: `seatrial conformance URL`.

Knows the protocol and what a server says of itself. Knows nothing of our own server: another implementation is judged by
the same checks. It changes nothing on the server: no model is loaded or unloaded.
"""
