import numpy as np
from mosec import Server, Worker
from session import open_session, run


class Digits(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.session = open_session()

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32).reshape(1, 8, 8)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(run(self.session, np.stack(data)))

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Digits, num=2, max_batch_size=64, max_wait_time=1)
    server.run()
