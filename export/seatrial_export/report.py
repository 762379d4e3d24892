"""What an export found: one value, written as JSON for programs and drawn as one HTML file for people."""

from collections.abc import Mapping, Sequence

import msgspec

from seatrial.bundle.evidence import Agreement, Quality, Timing
from seatrial.machine import Machine
from seatrial_export import zeros
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.choose import Judgement, Objective
from seatrial_export.deltas import Deltas
from seatrial_export.search import Search, Sparsities
from seatrial_export.sensitivity import Layer


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate; what was not measured is None. `row_ms` is its cost: latency per row in the largest batch that was timed.

    `layers` are those that were asked what INT8 costs them, the worst first. `files` is where an unverified one was put, among
    the run's artifacts. Its figures are of the machine `on`, this one where that is empty.
    """

    name: str
    target: str
    precision: str
    compression: tuple[str, ...]
    verdict: Verdict
    reason: str
    on_front: bool = False
    size_bytes: int | None = None
    memory_bytes: int | None = None
    load_s: float | None = None
    row_ms: float | None = None
    quality: Quality | None = None
    agreement: Agreement | None = None
    alone: Timing | None = None
    throughput: Timing | None = None
    more: tuple[Timing, ...] = ()
    layers: tuple[Layer, ...] = ()
    log: str = ""
    command: str = ""
    files: str = ""
    on: str = ""

    def metrics(self) -> dict[str, float]:
        """The numbers, by the names that MLflow shows."""
        if not (self.quality and self.agreement and self.alone):
            return {}
        found = {
            self.quality.metric.replace(" ", "_"): self.quality.value,
            "drop_upper": self.quality.drop_upper,
            "top1_agreement": self.agreement.top1,
            "max_absolute_distance": self.agreement.max_absolute,
            "p50_ms": self.alone.p50_ms,
            "p99_ms": self.alone.p99_ms,
            "row_ms": self.row_ms,
            "size_bytes": self.size_bytes,
            "memory_bytes": self.memory_bytes,
            "load_s": self.load_s,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Another machine than the one that exported, and what runs there."""

    machine: Machine
    tools: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`chosen` and `bundles` have the variant's name and its bundle's digest for each target that has a winner.

    `tools` are the versions of what converts and runs; `deltas` is what the chosen variants do differently from the source.
    `elsewhere` has the other machines that figures are of, by the name that rows give them.
    """

    model: str
    verdict: str
    basis: str
    chosen: dict[str, str]
    bundles: dict[str, str]
    budget: dict[str, float]
    objective: Objective
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    machine: Machine
    tools: dict[str, str]
    seconds: dict[str, float]
    run_id: str
    written_at: str
    deltas: tuple[Deltas, ...] = ()
    searches: tuple[Search, ...] = ()
    sparsities: Sparsities | None = None
    elsewhere: dict[str, Place] = {}

    @property
    def logs(self) -> list[str]:
        """Of children that failed, still to be looked at."""
        probed = [each.probed.log for each in self.deltas if each.probed]
        return [log for log in (*(row.log for row in self.rows), *probed) if log]

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def rows(
    candidates: Sequence[Candidate],
    judgements: Sequence[Judgement],
    lost: Sequence[Lost],
    layers: Mapping[Candidate, tuple[Layer, ...]] | None = None,
) -> tuple[Row, ...]:
    """One row for each of `candidates`, in their order."""
    variants = [judgement.variant for judgement in judgements]
    found = {each.variant.candidate: _judged(each, zeros.remark(each.variant, variants)) for each in judgements}
    found |= {each.candidate: _lost(each) for each in lost}
    for candidate, asked in (layers or {}).items():
        found[candidate] = msgspec.structs.replace(found[candidate], layers=asked)
    return tuple(found[candidate] for candidate in candidates)


def unverified_folder(lost: Lost) -> str:
    """Among the run's artifacts."""
    return f"unverified/{lost.candidate.name}"


def verdict_sentence(target: str, rows: Sequence[Row]) -> str:
    """The outcome for `target`, in one sentence."""
    of_target = [row for row in rows if row.target == target]
    winner = next((row for row in of_target if row.verdict is Verdict.CHOSEN), None)
    if winner is None:
        unverified = [row.name for row in of_target if row.verdict is Verdict.UNVERIFIED]
        if unverified:
            return f"Nothing for {target} can be chosen: {', '.join(unverified)} could not be run here."
        return f"No variant for {target} meets the budget."
    words = f"{winner.name} was chosen: {_quality_words(winner.quality)}"
    base = next((row for row in of_target if not row.compression and row is not winner), None)
    if base and base.row_ms and winner.row_ms and base.size_bytes and winner.size_bytes:
        words += (
            f", {base.row_ms / winner.row_ms:.1f} times as fast as {base.name} and "
            f"{winner.size_bytes / base.size_bytes:.0%} of its size"
        )
    return words + "."


def _quality_words(quality: Quality | None) -> str:
    assert quality is not None, "chosen without being measured: this is a bug"
    if quality.basis == "agreement":
        return f"{quality.value:.2%} agreement with the source on {quality.rows} rows"
    return f"{quality.metric} {quality.value:.4f} (source {quality.source_value:.4f}) on {quality.rows} held-out rows"


def _judged(judgement: Judgement, remark: str) -> Row:
    variant = judgement.variant
    return Row(
        name=variant.candidate.name,
        target=variant.candidate.target,
        precision=variant.candidate.precision,
        compression=variant.candidate.steps,
        verdict=judgement.verdict,
        reason=judgement.reason + remark,
        on_front=judgement.on_front,
        size_bytes=variant.size_bytes,
        memory_bytes=variant.memory_bytes,
        load_s=variant.load_s,
        row_ms=variant.row_ms,
        quality=variant.quality,
        agreement=variant.proof.agreement,
        alone=variant.alone,
        throughput=variant.throughput,
        more=variant.more,
    )


def _lost(lost: Lost) -> Row:
    return Row(
        name=lost.candidate.name,
        target=lost.candidate.target,
        precision=lost.candidate.precision,
        compression=lost.candidate.steps,
        verdict=lost.verdict,
        reason=lost.reason,
        size_bytes=lost.size_bytes,
        log=lost.log,
        command=lost.command,
        files=unverified_folder(lost) if lost.files else "",
    )
