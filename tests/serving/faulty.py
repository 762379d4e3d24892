"""Servers that do one thing wrong: `caught_by` is the check that must find it, `words` part of what it says that it found."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import orjson

from seatrial.errors import MalformedRequest, SeatrialError
from seatrial.protocol import InferRequest, Tensor, encode_answer
from seatrial.tensors import Array, DataType
from tests.serving.right import NAME, SIGNATURE, VERSION, Response, Right, Stage, as_json


class EchoesAnotherId(Right):
    caught_by, words = "id.echoed", "id '43'"

    def identity(self, request: InferRequest) -> dict[str, str]:
        return super().identity(request) | {"request_id": "43"}


class MakesUpAnId(Right):
    caught_by, words = "id.absent", "id 'made-up'"

    def identity(self, request: InferRequest) -> dict[str, str]:
        return super().identity(request) | {"request_id": request.id or "made-up"}


class NamesAnotherModel(Right):
    caught_by, words = "infer.answer", "model_name 'other'"

    def identity(self, request: InferRequest) -> dict[str, str]:
        return super().identity(request) | {"model": "other"}


class NamesAnotherVersion(Right):
    caught_by, words = "versions.answered", "model_version '8'"

    def identity(self, request: InferRequest) -> dict[str, str]:
        return super().identity(request) | {"version": "8"}


class DropsAnOutput(Right):
    caught_by, words = "infer.answer", "outputs ['y']"

    def select(self, tensors: list[Tensor], request: InferRequest) -> list[Tensor]:
        return super().select(tensors, request)[:1]


class IgnoresWhichOutputsAreAsked(Right):
    caught_by, words = "outputs.one", "outputs ['y', 'best']"

    def select(self, tensors: list[Tensor], request: InferRequest) -> list[Tensor]:  # noqa: ARG002 - that is the fault
        return tensors


class OutputsInItsOwnOrder(Right):
    caught_by, words = "outputs.order", "outputs ['y', 'best']"

    def select(self, tensors: list[Tensor], request: InferRequest) -> list[Tensor]:
        chosen = {tensor.name for tensor in super().select(tensors, request)}
        return [tensor for tensor in tensors if tensor.name in chosen]


class AnswersFlat(Right):
    caught_by, words = "infer.answer", "output 'y' has shape [3]"

    def predict(self, arrays: Mapping[str, Array], request: InferRequest) -> dict[str, Array]:
        return {name: array.ravel() for name, array in super().predict(arrays, request).items()}


class AnswersInAnotherDatatype(Right):
    caught_by, words = "infer.answer", "datatype of output 'y' 'FP64'"

    async def infer(self, request: InferRequest) -> list[Tensor]:
        y, *others = await super().infer(request)
        return [Tensor("y", DataType.FP64, y.array.astype(np.float64)), *others]


class ShufflesRows(Right):
    caught_by, words = "infer.rows", "row 0 of 3"

    def predict(self, arrays: Mapping[str, Array], request: InferRequest) -> dict[str, Array]:
        return {name: array[::-1] for name, array in super().predict(arrays, request).items()}


class MixesUpCallers(Right):
    """Answers whoever waits at the same time in the wrong order."""

    caught_by, words = "infer.company", "of 16 at once"

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[asyncio.Future[dict[str, Array]], dict[str, Array]]] = []

    async def compute(self, request: InferRequest) -> dict[str, Array]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Array]] = loop.create_future()
        self.waiting.append((answer, await super().compute(request)))
        if len(self.waiting) == 1:
            loop.call_later(0.02, self.deliver)
        return await answer

    def deliver(self) -> None:
        waiting, self.waiting = self.waiting, []
        for (answer, _), (_, arrays) in zip(waiting, waiting[::-1], strict=True):
            answer.set_result(arrays)


class TakesInputsByPosition(Right):
    caught_by, words = "infer.order", "400"

    def check(self, request: InferRequest) -> None:
        named = [tensor._replace(name=spec.name) for tensor, spec in zip(request.inputs, SIGNATURE.inputs, strict=True)]
        super().check(request._replace(inputs=tuple(named)))


class ReadsNestedDataByColumn(Right):
    caught_by, words = "infer.nested", "with nested data"

    def decode(self, headers: Mapping[str, str], body: bytes) -> InferRequest:
        request = super().decode(headers, body)
        if b'"data":[[' not in body:
            return request
        return request._replace(inputs=tuple(t._replace(array=t.array[:, ::-1]) for t in request.inputs))


class CallsJsonText(Right):
    caught_by, words = "infer.media_type", "text/plain"

    def dress(self, body: bytes, length: int | None) -> Response:
        status, headers, body = super().dress(body, length)
        return status, {**headers, "content-type": "text/plain"}, body


class IsNotReady(Right):
    caught_by, words = "health.ready", "not ready"

    def health(self) -> Response:
        return as_json({"ready": False})


class IsReadyWithAnything(Right):
    caught_by, words = "health.unknown", "ready"

    def model_health(self, name: str, version: str) -> Response:  # noqa: ARG002 - that is the fault
        return self.health()


class HasNoExtensionsField(Right):
    caught_by, words = "metadata.server", "extensions"

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "right", "version": "1"}


class SpeaksOfFloats(Right):
    caught_by, words = "metadata.datatypes", "datatype 'FLOAT'"

    def metadata(self) -> dict[str, Any]:
        return orjson.loads(orjson.dumps(super().metadata()).replace(b"FP32", b"FLOAT"))  # type: ignore[no-any-return] # a dict


class KnowsEveryVersion(Right):
    caught_by, words = "versions.unknown", "an answer"

    def find(self, name: str, version: str) -> None:  # noqa: ARG002 - that is the fault
        super().find(name, "")


class ChangesWithAParameter(Right):
    caught_by, words = "parameters.custom", "with parameters"

    def predict(self, arrays: Mapping[str, Array], request: InferRequest) -> dict[str, Array]:
        return super().predict(arrays if not request.parameters else {n: 2 * a for n, a in arrays.items()}, request)


class LosesBinaryData(Right):
    caught_by, words = "binary.output", "binary outputs []"

    def binary(self, request: InferRequest) -> dict[str, bool]:
        return dict.fromkeys(super().binary(request), False)


class SendsBigEndian(Right):
    caught_by, words = "binary.outputs", "this way"

    def dress(self, body: bytes, length: int | None) -> Response:
        if length is not None:
            body = (
                body[:length]
                + np.frombuffer(body[length : length + 12], "<f4").astype(">f4").tobytes()
                + body[length + 12 :]
            )
        return super().dress(body, length)


class MiscountsItsHead(Right):
    caught_by, words = "binary.outputs", "cannot be read"

    def dress(self, body: bytes, length: int | None) -> Response:
        return super().dress(body, None if length is None else length - 1)


class FillsUpWhatIsMissing(Right):
    caught_by, words = "binary.cut_off", "an answer"

    def decode(self, headers: Mapping[str, str], body: bytes) -> InferRequest:
        try:
            return super().decode(headers, body)
        except MalformedRequest:
            return super().decode(headers, body + b"\0")


class IgnoresTheEncoding(Right):
    caught_by, words = "robust.encoding", "an answer"

    def decode(self, headers: Mapping[str, str], body: bytes) -> InferRequest:
        return super().decode({name: value for name, value in headers.items() if name != "content-encoding"}, body)


class TakesNaN(Right):
    caught_by, words = "errors.nan", "an answer"

    def decode(self, headers: Mapping[str, str], body: bytes) -> InferRequest:
        return super().decode(headers, body.replace(b"NaN", b"0.0"))


class NeverCounts(Right):
    caught_by, words = "statistics.counts", "'inference_count': 0"

    async def infer(self, request: InferRequest) -> list[Tensor]:
        tensors = await super().infer(request)
        self.rows = self.requests = 0
        return tensors


class ConfiguresAnotherModel(Right):
    caught_by, words = "config.tensors", "data types"

    def configuration(self) -> dict[str, Any]:
        return super().configuration() | {"input": []}


class ForgetsItsModel(Right):
    caught_by, words = "repository.index", "[]"

    def index(self) -> list[dict[str, Any]]:
        return []


class ClassifiesTheWorst(Right):
    caught_by, words = "classification.best", "classes"

    def classify(self, scores: Array, most: int) -> Array:
        return super().classify(-scores, most)


class BreaksForGood(Right):
    """After a mistake, nothing is right any more."""

    caught_by, words = "errors.rank", "the next answer"
    broken = False

    def mistake(self, error: SeatrialError) -> Response:
        self.broken = True
        return super().mistake(error)

    def predict(self, arrays: Mapping[str, Array], request: InferRequest) -> dict[str, Array]:
        return super().predict({name: array + int(self.broken) for name, array in arrays.items()}, request)


class SaysWhyInItsOwnWay(Right):
    caught_by, words = "errors.size", '400 {"detail"'

    def mistake(self, error: SeatrialError) -> Response:
        return as_json({"detail": str(error)}, 400)


# The same, of gRPC alone


class BreaksOverGrpc(Right):
    caught_by, words = "errors.input_name", "INTERNAL"

    def grpc_mistake(self, error: SeatrialError) -> grpc.StatusCode:  # noqa: ARG002 - that is the fault
        return grpc.StatusCode.INTERNAL


class AnswersOtherwiseOverGrpc(Right):
    caught_by, words = "infer.same", "over gRPC"

    def grpc_infer(self, asked: Any) -> Any:
        asked.raw_input_contents[0] = bytes(len(asked.raw_input_contents[0]))
        return super().grpc_infer(asked)


class ForgetsTypedContents(Right):
    caught_by, words = "infer.typed", "with typed contents"

    def grpc_infer(self, asked: Any) -> Any:
        if not asked.raw_input_contents:
            contents = asked.inputs[0].contents.fp32_contents
            contents[:] = [0.0] * len(contents)
        return super().grpc_infer(asked)


class DescribesItselfOtherwiseOverGrpc(Right):
    caught_by, words = "metadata.same", "metadata"

    def grpc_metadata(self) -> dict[str, Any]:
        return super().grpc_metadata() | {"platform": "another"}


class StreamsInDisorder(Right):
    caught_by, words = "stream.answers", "request s"

    def grpc_stream(self, asks: Iterator[Any]) -> Iterator[Any]:
        answers = [self.grpc_infer(asked) for asked in asks]
        for answer, id_ in zip(answers, [answer.id for answer in answers][::-1], strict=True):
            answer.id = id_
            yield answer


OVER_GRPC = (
    BreaksOverGrpc,
    AnswersOtherwiseOverGrpc,
    ForgetsTypedContents,
    DescribesItselfOtherwiseOverGrpc,
    StreamsInDisorder,
)
OVER_REST = tuple(fault for fault in Right.__subclasses__() if fault.caught_by and fault not in OVER_GRPC)


# Without a check of their own


class Vanishes(Right):
    """The first mistake ends it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def mistake(self, error: SeatrialError) -> Response:
        self.stage.hang_up()
        return super().mistake(error)


class BlamesItself(Right):
    """A mistake of any kind is its own fault: all checks of mistakes fail."""

    def mistake(self, error: SeatrialError) -> Response:
        return as_json({"error": str(error)}, 500)

    def grpc_mistake(self, error: SeatrialError) -> grpc.StatusCode:  # noqa: ARG002 - that is the fault
        return grpc.StatusCode.INTERNAL


class TakesAnything(Right):
    """A mistake of any kind is answered: all checks of mistakes fail."""

    def mistake(self, error: SeatrialError) -> Response:  # noqa: ARG002 - that is the fault
        return self.dress(*encode_answer((), model=NAME, version=VERSION, request_id="", binary={}))


class AnswersAtRandom(Right):
    """No fault of a server: there are such models."""

    def predict(self, arrays: Mapping[str, Array], request: InferRequest) -> dict[str, Array]:
        noisy = {
            "x": arrays["x"] + np.random.default_rng().random(arrays["x"].shape, np.float32),
            "shift": arrays["shift"],
        }
        return super().predict(noisy, request)


class WantsTooMuch(Right):
    """No fault either, but nobody can make up its inputs."""

    def metadata(self) -> dict[str, Any]:
        said = super().metadata()
        said["inputs"][0]["shape"] = [-1, 10**12]
        return said
