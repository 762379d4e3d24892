"""The ways to build a model version, and what can become of each. Knows no tool that builds one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from seatrial.bundle import EngineSpec, VariantName
from seatrial.engines import PROVIDER
from seatrial.errors import InvalidSettings
from seatrial.spelling import did_you_mean


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    """E4M3; weights and activations, with scales as static INT8 has them."""
    INT8 = "int8"
    INT4 = "int4"


class Compression(StrEnum):
    DYNAMIC = "dynamic"
    """INT8 weights, activations quantized anew for each call."""
    STATIC = "static"
    """INT8 or FP8 weights and activations, ranges calibrated on training data."""
    SMOOTHED = "smoothed"
    """What is hard to quantize moved from activations into weights."""
    MIXED = "mixed"
    """The layers that INT8 harms most stay in float, as few as keep the accuracy."""
    WEIGHTS = "weights"
    """Weights of matrix products alone, each block of them with a range of its own."""
    NNCF = "nncf"
    """INT8 weights and activations as OpenVINO's own compression framework places them."""


class PruningKind(StrEnum):
    """What is taken out before anything else; what is left is taught by the source."""

    CHANNELS = "pruned"
    """Whole channels, as many as leave whole registers of eight."""
    HEADS = "heads"
    """Heads of attention."""
    GATED = "gated"
    """No channel goes: each row makes zeros of those that it can do without."""
    MAGNITUDE = "sparse"
    """The smallest weights become zero while the others are fine-tuned."""
    TWO_OF_FOUR = "sparse-2of4"
    """Two of every four weights become zero, as sparse tensor cores want it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """`percent` of what `kind` names goes."""

    kind: PruningKind
    percent: int = 50

    @property
    def name(self) -> str:
        return self.kind if self.kind is PruningKind.TWO_OF_FOUR else f"{self.kind}-{self.percent}"


class Calibration(StrEnum):
    """How static INT8 gets the ranges of activations: see `calibrate.py`."""

    MIN_MAX = "min-max"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"
    MSE = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to build a model version, not yet proved. `compression` is in order of application, after `pruning`."""

    target: str
    precision: Precision
    pruning: Pruning | None = None
    compression: tuple[Compression, ...] = ()
    calibration: Calibration = Calibration.MIN_MAX
    cut_ppm: int | None = None
    """Of a million activations, how many lie beyond the range; None is what `calibration` does by itself."""
    floats: int = 0
    """How many of its layers stay in float, those that INT8 harms most."""

    @property
    def name(self) -> str:
        return "-".join((self.target, self.precision, *self.steps))

    @property
    def steps(self) -> tuple[str, ...]:
        """The compression in words, with its parameters where they are not the usual ones."""
        usual = self.calibration is Calibration.MIN_MAX
        cut = () if self.cut_ppm is None else (f"{self.cut_ppm}ppm",)
        floats = (f"{self.floats}-float",) if self.floats else ()
        pruned = (self.pruning.name,) if self.pruning else ()
        return (*pruned, *self.compression, *(() if usual else (self.calibration,)), *cut, *floats)

    @property
    def lossy(self) -> bool:
        """Whether its numbers may differ from the source's by more than rounding, so that its quality must be shown."""
        return bool(self.pruning or self.compression) or self.precision is not Precision.FP32

    @property
    def quantized(self) -> bool:
        return self.precision in (Precision.FP8, Precision.INT8, Precision.INT4)

    @property
    def engine(self) -> EngineSpec:
        engine = ENGINES[self.target]
        if self.precision is Precision.BF16:
            return EngineSpec(name=engine.name, options={**engine.options, **IN_BF16})
        return engine

    @property
    def of_torch(self) -> bool:
        """Whether it is made of the `torch.export` program itself, and not of an ONNX file."""
        return self.target in OF_TORCH

    @property
    def bound(self) -> bool:
        """Whether it holds machine code, for machines like the one that builds it."""
        return self.target in (AOTI_CPU, TVM_CPU, TENSORRT)

    @property
    def sparse(self) -> bool:
        """Whether it has as many weights as the source, or more, and multiplies with many zeros."""
        return self.pruning is not None and self.pruning.kind not in (PruningKind.CHANNELS, PruningKind.HEADS)

    @property
    def dense(self) -> "Candidate":
        """The same without pruning."""
        return replace(self, pruning=None)

    @property
    def effort(self) -> int:
        """What building it takes, roughly: 0 is seconds, 1 minutes, 2 is fine-tuning, which takes what there is."""
        return 2 if self.pruning else 1 if self.bound or self.target in (LITERT_CPU, TENSORFLOW_CPU) else 0

    @property
    def static(self) -> bool:
        return Compression.STATIC in self.compression

    @property
    def mixed(self) -> bool:
        """Whether it is a second stage, of what other candidates of its target missed."""
        return Compression.MIXED in self.compression

    def variant_name(self, recorded: tuple[str, ...]) -> VariantName:
        """Its name in a bundle; `recorded` is how the compression was really done on the machine that did it."""
        return VariantName(
            name=self.name, target=self.target, precision=self.precision, compression=(*self.steps, *recorded)
        )


ONNX_CPU, ONNX_CUDA, ONNX_TENSORRT = "onnx-cpu", "onnx-cuda", "onnx-tensorrt"
TENSORRT = "tensorrt"
ONNX_WEB, COREML = "onnx-web", "coreml"
TVM_CPU, LITERT_CPU, TENSORFLOW_CPU = "tvm-cpu", "litert-cpu", "tensorflow-cpu"
OPENVINO_CPU, PT2_CPU, AOTI_CPU = "openvino-cpu", "pt2-cpu", "aoti-cpu"
TORCHSCRIPT_CPU, EXECUTORCH_CPU = "torchscript-cpu", "executorch-cpu"
OF_TORCH = (
    *(PT2_CPU, AOTI_CPU, TORCHSCRIPT_CPU, EXECUTORCH_CPU),
    *(COREML, TVM_CPU, LITERT_CPU, TENSORFLOW_CPU),
)

ENGINES: Mapping[str, EngineSpec] = {
    ONNX_CPU: EngineSpec(name="onnxruntime"),
    OPENVINO_CPU: EngineSpec(name="openvino"),
    PT2_CPU: EngineSpec(name="torch-export"),
    AOTI_CPU: EngineSpec(name="aotinductor"),
    TORCHSCRIPT_CPU: EngineSpec(name="torchscript"),
    EXECUTORCH_CPU: EngineSpec(name="executorch"),
    ONNX_CUDA: EngineSpec(name="onnxruntime", options={PROVIDER: "cuda"}),
    ONNX_TENSORRT: EngineSpec(name="onnxruntime", options={PROVIDER: "tensorrt"}),
    TENSORRT: EngineSpec(name="tensorrt"),
    ONNX_WEB: EngineSpec(name="onnxruntime-web"),
    COREML: EngineSpec(name="coreml"),
    TVM_CPU: EngineSpec(name="tvm"),
    LITERT_CPU: EngineSpec(name="litert"),
    TENSORFLOW_CPU: EngineSpec(name="tensorflow"),
}
"""What runs each target's files."""
IN_BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
"""OpenVINO's option to compute what is float in BF16; ONNX Runtime has no such kernels for x86."""

HALF = Pruning(kind=PruningKind.CHANNELS)

CANDIDATES = (
    Candidate(target=ONNX_CPU, precision=Precision.FP32),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.DYNAMIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, pruning=HALF),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.SMOOTHED, Compression.STATIC)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC, Compression.MIXED)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, pruning=HALF, compression=(Compression.STATIC,)),
    Candidate(target=OPENVINO_CPU, precision=Precision.FP32),
    Candidate(target=OPENVINO_CPU, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=PT2_CPU, precision=Precision.FP32),
    Candidate(target=AOTI_CPU, precision=Precision.FP32),
    Candidate(target=TORCHSCRIPT_CPU, precision=Precision.FP32),
    Candidate(target=EXECUTORCH_CPU, precision=Precision.FP32),
    Candidate(target=ONNX_CUDA, precision=Precision.FP32),
    Candidate(target=ONNX_TENSORRT, precision=Precision.FP32),
    Candidate(target=ONNX_CUDA, precision=Precision.FP16),
    Candidate(target=ONNX_TENSORRT, precision=Precision.FP16),
    Candidate(target=TENSORRT, precision=Precision.FP32),
    Candidate(target=TENSORRT, precision=Precision.FP16),
    Candidate(target=ONNX_WEB, precision=Precision.FP32),
    Candidate(target=COREML, precision=Precision.FP32),
    Candidate(target=TVM_CPU, precision=Precision.FP32),
    Candidate(target=LITERT_CPU, precision=Precision.FP32),
    Candidate(target=TENSORFLOW_CPU, precision=Precision.FP32),
)
"""From simple to intricate: of two variants that cannot be told apart, the earlier is chosen."""

ON_REQUEST = (
    *(
        Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC,), calibration=calibration)
        for calibration in Calibration
        if calibration is not Calibration.MIN_MAX
    ),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.WEIGHTS,)),
    Candidate(target=ONNX_CPU, precision=Precision.INT4, compression=(Compression.WEIGHTS,)),
    Candidate(target=ONNX_CPU, precision=Precision.FP16),
    Candidate(target=OPENVINO_CPU, precision=Precision.INT8, compression=(Compression.NNCF,)),
    Candidate(target=OPENVINO_CPU, precision=Precision.BF16),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, pruning=Pruning(kind=PruningKind.HEADS)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, pruning=Pruning(kind=PruningKind.GATED)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, pruning=Pruning(kind=PruningKind.MAGNITUDE, percent=80)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, pruning=Pruning(kind=PruningKind.TWO_OF_FOUR)),
    Candidate(target=OPENVINO_CPU, precision=Precision.FP32, pruning=HALF),
    Candidate(target=OPENVINO_CPU, precision=Precision.INT8, pruning=HALF, compression=(Compression.STATIC,)),
    Candidate(target=TENSORRT, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=TENSORRT, precision=Precision.FP8, compression=(Compression.STATIC,)),
)
"""What is built only where somebody names it: it seldom wins, and every candidate costs time."""

PERCENT = range(5, 91)
"""How much of it may go, where the name of a candidate says so with a number. Those above have the usual one."""


def named(names: Sequence[str]) -> tuple[Candidate, ...]:
    """The candidates of these names. Raises `InvalidSettings`, with the one that was likely meant."""
    known = {each.name: each for candidate in (*CANDIDATES, *ON_REQUEST) for each in _of_any_percent(candidate)}
    for name in names:
        if name not in known:
            meant = did_you_mean(name, known, otherwise=f"on request there are {', '.join(c.name for c in ON_REQUEST)}")
            raise InvalidSettings(f"there is no candidate '{name}'{meant}")
    return tuple(known[name] for name in names)


def _of_any_percent(candidate: Candidate) -> Iterator[Candidate]:
    yield candidate
    if candidate.pruning and candidate.pruning.kind is not PruningKind.TWO_OF_FOUR:
        for percent in PERCENT:
            yield replace(candidate, pruning=replace(candidate.pruning, percent=percent))


TARGETS = tuple(ENGINES)
DEFAULT_TARGETS = (ONNX_CPU,)
"""What a server asks for unless it is told otherwise."""


class Verdict(StrEnum):
    CHOSEN = "chosen"
    ADMITTED = "within the budget"
    OVER_BUDGET = "over the budget"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"
    UNFAITHFUL = "answers differently"
    NOT_MEASURED = "not measured"
    UNVERIFIED = "unverified"
    NOT_BUILT = "not built"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A candidate that never became a variant, with the reason in one sentence.

    Of an unverified one `files` is the folder that was built, and `size_bytes` the model's size in it.
    """

    candidate: Candidate
    verdict: Verdict
    reason: str
    log: str = ""
    command: str = ""
    files: Path | None = None
    size_bytes: int | None = None
