"""The protocol's gRPC messages, generated from `open_inference.proto`.

They live in a descriptor pool of their own: in the default one they would collide with those of tritonclient, which
have the same names, and no process could load both.
"""

from seatrial_serving.open_inference import open_inference_pb2 as messages

SERVICE = "inference.GRPCInferenceService"
POOL = messages.DESCRIPTOR.pool

__all__ = ["POOL", "SERVICE", "messages"]
