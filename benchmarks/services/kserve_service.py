from functools import cache

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from session import open_session, run

session = cache(open_session)
"""Opened by each worker for itself: the model is sent to them as a pickle."""


class Digits(Model):
    def load(self) -> bool:
        self.ready = True
        return self.ready

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:  # noqa: ARG002
        logits = run(session(), payload.inputs[0].as_numpy())
        output = InferOutput(name="logits", shape=list(logits.shape), datatype="FP32")
        output.set_data_from_numpy(logits, binary_data=False)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    model = Digits("digits-cnn")
    model.load()
    ModelServer().start([model])
