import bentoml
import numpy as np
from session import open_session, run


@bentoml.service(name="digits", workers=2)
class Digits:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        return run(self.session, pixels.astype(np.float32))
