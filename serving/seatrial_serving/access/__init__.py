"""Who may do what: one question that every door asks of a request's head, before its body is read.

A caller proves who it is by an API key, by a token of an issuer that the settings name, or by its client certificate;
what it may do stands in one file. Knows nothing of HTTP or gRPC but the two headers that both have.
"""
