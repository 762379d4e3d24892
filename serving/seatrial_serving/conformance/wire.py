"""What is asked of a server and what it says, whatever the wire: `rest` and `grpc` translate to and from these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from seatrial.protocol import Tensor, write_tensor
from seatrial.tensors import Array, DataType
from seatrial_serving.conformance.check import Kind

Parameters: TypeAlias = Mapping[str, str | int | float | bool]

TIMEOUT_S = 30.0
NO_ANSWER = "no answer"
"""The status of a `Refusal` where the server said nothing at all."""


class Form(Enum):
    """How the tensors of a request travel."""

    PLAIN = auto()
    """REST: flat lists in the JSON. gRPC: raw contents."""
    NESTED = auto()
    """REST: lists within lists, as the shape says."""
    BINARY = auto()
    """REST: behind the JSON, the outputs likewise. gRPC: raw contents."""
    TYPED = auto()
    """gRPC: the contents field of the datatype."""


class Input(NamedTuple):
    """`datatype` and `shape` are what is declared, whatever `array` is: a check may want them to be wrong."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: Array

    @property
    def raw(self) -> bytes:
        """Little-endian and row-major, as `array` is."""
        return write_tensor(self.array, DataType.of(self.array.dtype))


class Output(NamedTuple):
    name: str
    parameters: Parameters = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An inference request."""

    model: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...] = ()
    version: str = ""
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    form: Form = Form.PLAIN

    def with_first(self, **changes: Any) -> "Ask":
        """The same request, its first input changed."""
        first, *others = self.inputs
        return replace(self, inputs=(first._replace(**changes), *others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`binary` names the outputs that came as binary data behind the JSON; `media_type` is REST's."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    binary: frozenset[str] = frozenset()
    media_type: str = ""

    @property
    def names(self) -> list[str]:
        return [tensor.name for tensor in self.outputs]


class State(NamedTuple):
    """The answer to a question of health; `form` is how it was said."""

    holds: bool
    form: str


class Refusal(Exception):
    """The server answered with an error, or not at all. `message` is empty where it did not say one as the protocol wants it."""

    def __init__(self, status: str, text: str, *, message: str, blames_caller: bool) -> None:
        super().__init__(f"{status} {shortened(text)}".rstrip())
        self.status, self.message, self.blames_caller = status, message, blames_caller


class TensorMetadata(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True):
    name: str
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    versions: tuple[str, ...] = ()


class ServerMetadata(msgspec.Struct, frozen=True):
    name: str
    version: str
    extensions: tuple[str, ...]


class ConfiguredTensor(msgspec.Struct, frozen=True):
    name: str
    data_type: str
    dims: tuple[int, ...]


class Configuration(msgspec.Struct, frozen=True):
    name: str
    input: tuple[ConfiguredTensor, ...]
    output: tuple[ConfiguredTensor, ...]
    max_batch_size: int


class Duration(msgspec.Struct, frozen=True):
    count: int
    ns: int


class InferenceStatistics(msgspec.Struct, frozen=True):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class Statistics(msgspec.Struct, frozen=True):
    name: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    version: str = ""


class Indexed(msgspec.Struct, frozen=True):
    """A model in the repository's index."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class Wire(Protocol):
    """One end of a server. Everything raises `Refusal` for an error, and `Failed` for what is not in the protocol's form."""

    kind: Kind

    def live(self) -> State: ...
    def ready(self) -> State: ...
    def model_ready(self, model: str, version: str = "") -> State: ...
    def server(self) -> ServerMetadata: ...
    def metadata(self, model: str, version: str = "") -> ModelMetadata: ...
    def infer(self, ask: Ask) -> Answer: ...
    def configuration(self, model: str, version: str = "") -> Configuration: ...
    def statistics(self, model: str = "", version: str = "") -> Sequence[Statistics]: ...
    def index(self, *, ready: bool = False) -> Sequence[Indexed]: ...


def shortened(text: str, *, most: int = 200) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
