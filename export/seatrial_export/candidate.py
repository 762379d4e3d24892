"""The ways to build a model version, and what can become of each. Knows no tool that builds one."""

from dataclasses import dataclass
from enum import StrEnum

from seatrial.bundle import VariantName


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
    def pruned(self) -> bool:
        return Compression.PRUNED in self.compression

    def variant_name(self, recorded: tuple[str, ...]) -> VariantName:
        """Its name in a bundle; `recorded` is how the compression was really done on the machine that did it."""
        return VariantName(
            name=self.name, target=self.target, precision=self.precision, compression=(*self.compression, *recorded)
        )


ONNX_CPU = "onnx-cpu"

CANDIDATES = (
    Candidate(target=ONNX_CPU, precision=Precision.FP32),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.DYNAMIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.INT8, compression=(Compression.STATIC,)),
    Candidate(target=ONNX_CPU, precision=Precision.FP32, compression=(Compression.PRUNED,)),
)
"""From simple to intricate: of two variants that cannot be told apart, the earlier is chosen."""

TARGETS = tuple(dict.fromkeys(candidate.target for candidate in CANDIDATES))


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
