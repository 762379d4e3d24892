"""The REST end of a server."""

from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import orjson

from seatrial.errors import SeatrialError
from seatrial.protocol import decode_answer
from seatrial.tensors import Array
from seatrial_serving.conformance.check import Failed, Kind, NotApplicable
from seatrial_serving.conformance.wire import (
    NO_ANSWER,
    Answer,
    Ask,
    Configuration,
    Form,
    Indexed,
    Input,
    ModelMetadata,
    Refusal,
    ServerMetadata,
    State,
    Statistics,
)

T = TypeVar("T")
HEAD_LENGTH = "Inference-Header-Content-Length"


class _Error(msgspec.Struct):
    error: str


class _Output(msgspec.Struct):
    name: str
    data: Any = None
    parameters: dict[str, Any] = {}


class _AnswerHead(msgspec.Struct):
    model_name: str
    outputs: list[_Output]
    model_version: str = ""
    id: str = ""


class _AllStatistics(msgspec.Struct):
    model_stats: tuple[Statistics, ...]


class Rest:
    kind = Kind.REST

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    # Anything

    def send(
        self, method: str, path: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """The response, whatever it says; `Refusal` where there is none."""
        try:
            return self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            text = f"{type(error).__name__}: {error}"
            raise Refusal(NO_ANSWER, text, message="", blames_caller=False) from error

    def ask(self, method: str, path: str, content: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        """The body of a response that is no error."""
        response = self.send(method, path, content, headers)
        if response.status_code != httpx.codes.OK:
            raise as_refusal(response)
        return response.content

    @property
    def address(self) -> httpx.URL:
        return self._client.base_url

    # The protocol

    def live(self) -> State:
        return self._state("v2/health/live")

    def ready(self) -> State:
        return self._state("v2/health/ready")

    def model_ready(self, model: str, version: str = "") -> State:
        return self._state(f"{path(model, version)}/ready")

    def _state(self, where: str) -> State:
        """200 is yes, unless a JSON body says no; 4xx is no, and 503, which KServe's own server answers."""
        response = self.send("GET", where)
        if response.is_client_error or response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return State(False, str(response.status_code))
        if response.status_code != httpx.codes.OK:
            raise as_refusal(response)
        if not response.content:
            return State(True, "empty body")
        try:
            said = orjson.loads(response.content)
        except ValueError:
            return State(True, "a body that is not JSON")
        return State(False not in said.values() if isinstance(said, dict) else True, "JSON body")

    def server(self) -> ServerMetadata:
        return parse(self.ask("GET", "v2"), ServerMetadata)

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        return parse(self.ask("GET", path(model, version)), ModelMetadata)

    def infer(self, ask: Ask) -> Answer:
        return self.post(ask, *write(ask))

    def post(self, ask: Ask, content: bytes, headers: dict[str, str]) -> Answer:
        """Send `content` to where `ask` goes."""
        return read_answer(self.send("POST", f"{path(ask.model, ask.version)}/infer", content, headers))

    def configuration(self, model: str, version: str = "") -> Configuration:
        return parse(self.ask("GET", f"{path(model, version)}/config"), Configuration)

    def statistics(self, model: str = "", version: str = "") -> Sequence[Statistics]:
        where = path(model, version) if model else "v2/models"
        return parse(self.ask("GET", f"{where}/stats"), _AllStatistics).model_stats

    def index(self, *, ready: bool = False) -> Sequence[Indexed]:
        return parse(self.ask("POST", "v2/repository/index", orjson.dumps({"ready": ready})), tuple[Indexed, ...])


def path(model: str, version: str = "") -> str:
    return f"v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def parse(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Failed(found=f"a body that cannot be read: {error}", expected="JSON as the protocol has it") from error


def as_refusal(response: httpx.Response) -> Refusal:
    try:
        message = msgspec.json.decode(response.content, type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        message = ""
    return Refusal(str(response.status_code), response.text, message=message, blames_caller=response.is_client_error)


# Requests


def write(ask: Ask) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers."""
    binary = ask.form is Form.BINARY
    head: dict[str, Any] = {"inputs": [_input(each, ask.form) for each in ask.inputs]}
    parameters = ({"binary_data_output": True} if binary else {}) | dict(ask.parameters)
    if ask.id:
        head["id"] = ask.id
    if parameters:
        head["parameters"] = parameters
    if ask.outputs:
        head["outputs"] = [_named(each.name, dict(each.parameters)) for each in ask.outputs]
    text = orjson.dumps(head)
    if not binary:
        return text, {"Content-Type": "application/json"}
    parts = [each.raw for each in ask.inputs]
    return b"".join((text, *parts)), {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(text))}


def _input(given: Input, form: Form) -> dict[str, Any]:
    head = {"name": given.name, "datatype": given.datatype, "shape": given.shape}
    if form is Form.BINARY:
        return head | {"parameters": {"binary_data_size": len(given.raw)}}
    return head | {"data": elements(given.array if form is Form.NESTED else given.array.ravel())}


def _named(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"name": name} | ({"parameters": parameters} if parameters else {})


def elements(array: Array) -> Any:
    """As lists for JSON; bytes as text."""
    return _as_text(array.tolist()) if array.dtype.kind == "O" else array.tolist()


def _as_text(items: Any) -> Any:
    return [_as_text(item) for item in items] if isinstance(items, list) else items.decode()


# Answers


def read_answer(response: httpx.Response) -> Answer:
    if response.status_code != httpx.codes.OK:
        raise as_refusal(response)
    length = _head_length(response)
    head = parse(response.content[:length], _AnswerHead)
    if any(isinstance(output.data, list) and None in output.data for output in head.outputs):
        raise NotApplicable("the answer holds numbers that JSON cannot (null); give another request with --samples")
    try:
        outputs = decode_answer(response.content, json_length=length)
    except (SeatrialError, ValueError) as error:
        raise Failed(
            found=f"outputs that cannot be read: {error}", expected="tensors as the protocol has them"
        ) from error
    return Answer(
        model=head.model_name,
        version=head.model_version,
        id=head.id,
        outputs=outputs,
        binary=frozenset(output.name for output in head.outputs if "binary_data_size" in output.parameters),
        media_type=response.headers.get("content-type", "").partition(";")[0],
    )


def _head_length(response: httpx.Response) -> int:
    said = response.headers.get(HEAD_LENGTH)
    if said is None:
        return len(response.content)
    if not said.isdecimal() or int(said) > len(response.content):
        raise Failed(
            found=f"{HEAD_LENGTH}: {said}", expected=f"a number up to {len(response.content)}, the body's length"
        )
    return int(said)
