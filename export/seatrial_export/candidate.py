"""The ways to build a model version, and what can become of each. Knows no tool that builds one."""

from collections.abc import Mapping, Sequence
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
    INT8 = "int8"
    INT4 = "int4"


class Compression(StrEnum):
    DYNAMIC = "dynamic"
    """INT8 weights, activations quantized anew for each call."""
    STATIC = "static"
    """INT8 weights and activations, ranges calibrated on training data."""
    SMOOTHED = "smoothed"
    """What is hard to quantize moved from activations into weights."""
    MIXED = "mixed"
    """The layers that INT8 harms most stay in float, as few as keep the accuracy."""
    WEIGHTS = "weights"
    """Weights of matrix products alone, each block of them with a range of its own."""
    NNCF = "nncf"
    """INT8 weights and activations as OpenVINO's own compression framework places them."""
    PRUNED = "pruned-50"
    """Half of the channels taken out; what is left is taught by the source."""
    PRUNED_LESS = "pruned-30"
    """About three of ten channels taken out, so that whole registers of eight are left."""
    HEADS = "heads-50"
    """Half of the heads of attention taken out, then fine-tuned."""
    SPARSE = "sparse-80"
    """Four of five weights made zero, the smallest, while the others are fine-tuned."""
    SPARSE_2_4 = "sparse-2of4"
    """Two of every four weights made zero, as sparse tensor cores want it."""


class Calibration(StrEnum):
    """How static INT8 gets the ranges of activations: see `calibrate.py`."""

    MIN_MAX = "min-max"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"
    MSE = "mse"


PRUNINGS = (
    Compression.PRUNED,
    Compression.PRUNED_LESS,
    Compression.HEADS,
    Compression.SPARSE,
    Compression.SPARSE_2_4,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to build a model version, not yet proved. `compression` is in order of application."""

    target: str
    precision: Precision
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
        return (*self.compression, *(() if usual else (self.calibration,)), *cut, *floats)

    @property
    def lossy(self) -> bool:
        """Whether its numbers may differ from the source's by more than rounding, so that its quality must be shown."""
        return bool(self.compression) or self.precision is not Precision.FP32

    @property
    def quantized(self) -> bool:
        return self.precision in (Precision.INT8, Precision.INT4)

    @property
    def engine(self) -> EngineSpec:
        engine = ENGINES[self.target]
        if self.precision is Precision.BF16:
            return EngineSpec(name=engine.name, options={**engine.options, **IN_BF16})
        return engine

    @property
    def of_torch(self) -> bool:
        """Whether it is made of the `torch.export` program itself, and not of an ONNX file."""
        return self.target in (PT2_CPU, AOTI_CPU, TORCHSCRIPT_CPU, EXECUTORCH_CPU, COREML, TVM_CPU)

    @property
    def bound(self) -> bool:
        """Whether it holds machine code, for machines like the one that builds it."""
        return self.target in (AOTI_CPU, TVM_CPU)

    @property
    def pruning(self) -> Compression | None:
        return next((each for each in self.compression if each in PRUNINGS), None)

    @property
    def sparse(self) -> bool:
        """Whether it has as many weights as the source, of which many are zero."""
        return self.pruning in (Compression.SPARSE, Compression.SPARSE_2_4)

    @property
    def dense(self) -> "Candidate":
        """The same without pruning."""
        return replace(self, compression=tuple(each for each in self.compression if each not in PRUNINGS))

    @property
    def effort(self) -> int:
        """What building it takes, roughly: 0 is seconds, 1 minutes, 2 is fine-tuning, which takes what there is."""
        return 2 if self.pruning else 1 if self.bound else 0

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
ONNX_WEB, COREML = "onnx-web", "coreml"
TVM_CPU = "tvm-cpu"
OPENVINO_CPU, PT2_CPU, AOTI_CPU = "openvino-cpu", "pt2-cpu", "aoti-cpu"
TORCHSCRIPT_CPU, EXECUTORCH_CPU = "torchscript-cpu", "executorch-cpu"

ENGINES: Mapping[str, EngineSpec] = {
    ONNX_CPU: EngineSpec(name="onnxruntime"),
    OPENVINO_CPU: EngineSpec(name="openvino"),
    PT2_CPU: EngineSpec(name="torch-export"),
    AOTI_CPU: EngineSpec(name="aotinductor"),
    TORCHSCRIPT_CPU: EngineSpec(name="torchscript"),
    EXECUTORCH_CPU: EngineSpec(name="executorch"),
    ONNX_CUDA: EngineSpec(name="onnxruntime", options={PROVIDER: "cuda"}),
    ONNX_TENSORRT: EngineSpec(name="onnxruntime", options={PROVIDER: "tensorrt"}),
    ONNX_WEB: EngineSpec(name="onnxruntime-web"),
    COREML: EngineSpec(name="coreml"),
    TVM_CPU: EngineSpec(name="tvm"),
}
"""What runs each target's files."""
IN_BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
"""OpenVINO's option to compute what is float in BF16; ONNX Runtime has no such kernels for x86."""

CANDIDATES = (
    Candidate(target=ONNX_CPU, precision=Precision.FP32),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.DYNAMIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, compression=(Compression.PRUNED,)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.SMOOTHED, Compression.STATIC)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC, Compression.MIXED)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.PRUNED, Compression.STATIC)),
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
    Candidate(target=ONNX_WEB, precision=Precision.FP32),
    Candidate(target=COREML, precision=Precision.FP32),
    Candidate(target=TVM_CPU, precision=Precision.FP32),
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
    *(
        Candidate(target=ONNX_CPU, precision=Precision.FP32, compression=(pruning,))
        for pruning in PRUNINGS
        if pruning is not Compression.PRUNED
    ),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.PRUNED_LESS, Compression.STATIC)),
)
"""What is built only where somebody names it: it seldom wins, and every candidate costs time."""


def named(names: Sequence[str]) -> tuple[Candidate, ...]:
    """The candidates of these names. Raises `InvalidSettings`, with the one that was likely meant."""
    known = {candidate.name: candidate for candidate in (*CANDIDATES, *ON_REQUEST)}
    for name in names:
        if name not in known:
            meant = did_you_mean(name, known, otherwise=f"on request there are {', '.join(c.name for c in ON_REQUEST)}")
            raise InvalidSettings(f"there is no candidate '{name}'{meant}")
    return tuple(known[name] for name in names)


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
