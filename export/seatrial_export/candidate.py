"""The ways to build a model version, and what can become of each. Knows no tool that builds one."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from seatrial.bundle import EngineSpec, VariantName
from seatrial.engines import PROVIDER


class Precision(StrEnum):
    FP32 = "fp32"
    INT8 = "int8"


class Compression(StrEnum):
    DYNAMIC = "dynamic"
    """INT8 weights, activations quantized anew for each call."""
    STATIC = "static"
    """INT8 weights and activations, ranges calibrated on training data."""
    PRUNED = "pruned-50"
    """Half of the channels taken out, then fine-tuned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to build a model version, not yet proved. `compression` is in order of application."""

    target: str
    precision: Precision
    compression: tuple[Compression, ...] = ()

    @property
    def name(self) -> str:
        return "-".join((self.target, self.precision, *self.compression))

    @property
    def lossy(self) -> bool:
        """Whether its numbers may differ from the source's by more than rounding, so that its quality must be shown."""
        return bool(self.compression)

    @property
    def quantized(self) -> bool:
        return self.precision is Precision.INT8

    @property
    def engine(self) -> EngineSpec:
        return ENGINES[self.target]

    @property
    def of_torch(self) -> bool:
        """Whether it is made of the `torch.export` program itself, and not of an ONNX file."""
        return self.target in (PT2_CPU, AOTI_CPU)

    @property
    def bound(self) -> bool:
        """Whether it holds machine code, for machines like the one that builds it."""
        return self.target == AOTI_CPU

    @property
    def pruned(self) -> bool:
        return Compression.PRUNED in self.compression

    def variant_name(self, recorded: tuple[str, ...]) -> VariantName:
        """Its name in a bundle; `recorded` is how the compression was really done on the machine that did it."""
        return VariantName(
            name=self.name, target=self.target, precision=self.precision, compression=(*self.compression, *recorded)
        )


ONNX_CPU, ONNX_CUDA, ONNX_TENSORRT = "onnx-cpu", "onnx-cuda", "onnx-tensorrt"
OPENVINO_CPU, PT2_CPU, AOTI_CPU = "openvino-cpu", "pt2-cpu", "aoti-cpu"

ENGINES: Mapping[str, EngineSpec] = {
    ONNX_CPU: EngineSpec(name="onnxruntime"),
    OPENVINO_CPU: EngineSpec(name="openvino"),
    PT2_CPU: EngineSpec(name="torch-export"),
    AOTI_CPU: EngineSpec(name="aotinductor"),
    ONNX_CUDA: EngineSpec(name="onnxruntime", options={PROVIDER: "cuda"}),
    ONNX_TENSORRT: EngineSpec(name="onnxruntime", options={PROVIDER: "tensorrt"}),
}
"""What runs each target's files."""

CANDIDATES = (
    Candidate(target=ONNX_CPU, precision=Precision.FP32),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.DYNAMIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, compression=(Compression.PRUNED,)),
    Candidate(target=OPENVINO_CPU, precision=Precision.FP32),
    Candidate(target=OPENVINO_CPU, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=PT2_CPU, precision=Precision.FP32),
    Candidate(target=AOTI_CPU, precision=Precision.FP32),
    Candidate(target=ONNX_CUDA, precision=Precision.FP32),
    Candidate(target=ONNX_TENSORRT, precision=Precision.FP32),
)
"""From simple to intricate: of two variants that cannot be told apart, the earlier is chosen."""

TARGETS = tuple(ENGINES)
DEFAULT_TARGETS = (ONNX_CPU,)
"""What a server asks for unless it is told otherwise."""


class Verdict(StrEnum):
    CHOSEN = "chosen"
    ADMITTED = "within the budget"
    OVER_BUDGET = "over the budget"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"
    UNFAITHFUL = "answers differently"
    NOT_BUILT = "not built"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A candidate that never became a variant, with the reason in one sentence."""

    candidate: Candidate
    verdict: Verdict
    reason: str
    log: str = ""
    command: str = ""
