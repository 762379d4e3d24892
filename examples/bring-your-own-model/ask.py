"""Ask the served model over REST and gRPC, with NVIDIA's own client: `python ask.py [HTTP] [GRPC]`."""

import sys
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http

http, grpc = (sys.argv[1:] + ["localhost:8000", "localhost:8001"][len(sys.argv) - 1 :])[:2]
points = np.array([[0.0, 1.0], [1.0, -0.5], [2.0, 0.4]], np.float32)


def ask(client: Any, address: str) -> Any:
    tensor = client.InferInput("point", list(points.shape), "FP32")
    tensor.set_data_from_numpy(points)
    with client.InferenceServerClient(address) as server:
        return server.infer("moons", [tensor]).as_numpy("output").argmax(axis=1)


print("REST", *ask(over_http, http))
print("gRPC", *ask(over_grpc, grpc))
