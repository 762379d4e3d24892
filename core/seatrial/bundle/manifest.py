"""`bundle.json`: everything that decides what a bundle answers, and nothing that a clock or a path can change.

The content digest of a bundle is the SHA-256 of the bytes of this file, which names the digest of every other one.
"""

import hashlib
import re
from enum import StrEnum
from typing import Literal

import msgspec

from seatrial.errors import BundleCorrupt
from seatrial.tensors import Signature

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
EVIDENCE = "evidence.json"
MAIN = "main"
"""The graph that `/v2` asks: raw tensors, before and after any processing."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Driver(StrEnum):
    """How a request becomes calls of the graphs. Engines may refuse a driver that they do not have."""

    ONCE = "once"
    AUTOREGRESSIVE = "autoregressive"
    SAMPLER = "sampler"
    STATEFUL = "stateful"


class ModelName(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    version: str


class VariantName(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which candidate it was: `name` is unique among a version's candidates, `compression` in order of application."""

    name: str
    target: str
    precision: str
    compression: tuple[str, ...] = ()


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    options: dict[str, str | int | float | bool] = {}


class Tokenize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="tokenize"):
    """Texts to the token ids of a `tokenizers` tokenizer, whose JSON is `file`, with its special tokens.

    `ids` and `mask` name the inputs of the graph that take the ids and which of them are real; any other input is zeros.
    """

    file: str
    ids: str
    mask: str
    max_tokens: int
    version: Literal[1] = 1


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="pool"):
    """One vector for each row, of `output`, which has one for each token: their mean, or the first."""

    output: str
    method: Literal["mean", "first"]
    version: Literal[1] = 1


class Normalize(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name", tag="normalize"
):
    """Each vector to length one."""

    version: Literal[1] = 1


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an output may lie from the recorded one: |got - recorded| <= absolute + relative * |recorded|.

    With `top1`, the largest element along the last axis must also be the same in every row. `steps` says, for a
    quantized variant, how many quantization steps of the output `absolute` stands for.
    """

    absolute: float
    relative: float = 0.0
    top1: bool = False
    steps: int | None = None


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds per output: `source` against the source model, `rerun` against this variant where it was built."""

    source: dict[str, Bound]
    rerun: dict[str, Bound]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that holds a v2 body: `json_length` bytes of JSON, binary data behind it."""

    file: str
    json_length: int


class GoldenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A recorded request to `graph`, the source model's answer, and this variant's answer where it was built."""

    request: Body
    source: Body
    rerun: Body
    graph: str = MAIN


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sha256: str
    size: int


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file is bound to, where it is: an engine built for one GPU and one library runs nowhere else."""

    device: str
    library: str
    driver: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelName
    variant: VariantName
    signature: Signature
    engine: EngineSpec
    graphs: dict[str, str]
    tolerance: Tolerance
    golden: tuple[GoldenRequest, ...]
    files: dict[str, FileEntry]
    driver: Driver = Driver.ONCE
    preprocessing: tuple[Tokenize, ...] = ()
    postprocessing: tuple[Pool | Normalize, ...] = ()
    labels: tuple[str, ...] = ()
    hardware: Hardware | None = None
    schema_version: int = SCHEMA_VERSION

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    @property
    def digest(self) -> str:
        return sha256(self.encode())

    @staticmethod
    def decode(text: bytes, *, where: str) -> "Manifest":
        """Raises `BundleCorrupt`, naming `where`, for anything that is not a manifest of a version that we read."""
        try:
            version = msgspec.json.decode(text, type=_SchemaVersion).schema_version
            if version != SCHEMA_VERSION:
                raise BundleCorrupt(
                    f"{where} has schema version {version}, this Seatrial reads {SCHEMA_VERSION}; "
                    "export the model again, or use the Seatrial that wrote it"
                )
            manifest = msgspec.json.decode(text, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BundleCorrupt(f"{where} is not a bundle manifest: {error}") from error
        manifest.check(where)
        return manifest

    def check(self, where: str) -> None:
        """Raise `BundleCorrupt` if a name leads out of the bundle, or to a file that it does not list."""
        for name in self.files:
            if not _SAFE_NAME.fullmatch(name) or name in (MANIFEST, EVIDENCE):
                raise BundleCorrupt(f"{where} names the file {name!r}, which is not a plain name inside the bundle")
        for name in self._referred():
            if name not in self.files:
                raise BundleCorrupt(f"{where} refers to '{name}', which is not among its files")
        if (self.driver is Driver.STATEFUL) != bool(self.signature.states):
            raise BundleCorrupt(f"{where} has the driver '{self.driver}' and {len(self.signature.states)} states")

    def _referred(self) -> list[str]:
        bodies = [body for golden in self.golden for body in (golden.request, golden.source, golden.rerun)]
        return [
            *self.graphs.values(),
            *(transform.file for transform in self.preprocessing),
            *(body.file for body in bodies),
        ]


class _SchemaVersion(msgspec.Struct):
    schema_version: int


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
