"""The doors: each translates one protocol to the data plane and back, and holds no other knowledge."""
