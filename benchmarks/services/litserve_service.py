import os
from typing import Any

import litserve
import numpy as np
from session import open_session, run


class Digits(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - the signature is LitServe's
        self.session = open_session()

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return np.array(request["input"], np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return run(self.session, x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Digits(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(os.environ["HTTP_PORT"]), generate_client_file=False, log_level="warning")
