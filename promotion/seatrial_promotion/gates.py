"""The checks that must pass before an alias moves. Each says what it measured, and in one sentence why it said what it said.

Knows bundles, engines and held-out data. Knows nothing of aliases or the ledger.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from seatrial.bundle import Bundle, Evidence
from seatrial.errors import SeatrialError
from seatrial.registry import ModelVersion
from seatrial.tensors import Array
from seatrial_export.choose import FLOORS
from seatrial_export.quality import paired_drop
from seatrial_promotion.entry import GateResult
from seatrial_serving.engines import open_engine
from seatrial_serving.engines.proof import prove
from seatrial_training.data import Split
from seatrial_training.evaluation import Score, score

SCORING_BATCH = 64
NEVER_RUN = "the bundle has no golden requests: nobody has ever run it and found its answers right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A model version with the bundle that would serve."""

    version: ModelVersion
    bundle: Bundle


def bundle_gate(contender: Contender) -> GateResult:
    """Every byte is what its digest says, the golden requests are answered here, and the evidence meets the budget."""
    bundle = contender.bundle
    if not bundle.manifest.golden:
        return GateResult(gate="bundle", passed=False, reason=NEVER_RUN)
    try:
        golden = prove(bundle)
        evidence = bundle.evidence()
    except SeatrialError as error:
        return GateResult(gate="bundle", passed=False, reason=f"{type(error).__name__}: {error}")
    if evidence is None:
        return GateResult(gate="bundle", passed=False, reason="the bundle has no evidence: it was never measured")
    over = _over_budget(evidence)
    if over:
        return GateResult(gate="bundle", passed=False, reason="; ".join(over), measured=evidence.budget)
    return GateResult(
        gate="bundle",
        passed=True,
        reason=f"{len(bundle.manifest.files)} files verified, {golden} golden requests answered, within its budget",
        measured=evidence.budget,
    )


def _over_budget(evidence: Evidence) -> list[str]:
    found = _measured(evidence)
    over = []
    for limit, allowed in evidence.budget.items():
        if limit not in found:
            continue
        value = found[limit]
        if value is None:
            over.append(f"its budget limits {limit}, which was not measured")
        elif value < allowed if limit in FLOORS else value > allowed:
            wants = "asks for" if limit in FLOORS else "allows"
            over.append(f"{limit} is {value:.4g}, its budget {wants} {allowed:.4g}")
    return over


def _measured(evidence: Evidence) -> dict[str, float | None]:
    """By the names of a budget; what evidence of an older version does not hold is left out."""
    quality = evidence.quality
    alone = min(evidence.timings, key=lambda timing: timing.batch, default=None)
    full = max(evidence.timings, key=lambda timing: timing.batch, default=None)
    recorded = {"memory_mb": evidence.memory_bytes / 1e6, "load_s": evidence.load_s}
    return {
        "accuracy_drop": quality.source_value - quality.value if quality else None,
        "metric": quality.value if quality else None,
        "p50_ms": alone.p50_ms if alone else None,
        "p99_ms": alone.p99_ms if alone else None,
        "throughput": 1000 * full.batch / full.p50_ms if full else None,
        "size_mb": evidence.size_bytes / 1e6,
        **{limit: value for limit, value in recorded.items() if value},
    }


def quality_gate(
    contender: Contender, champion: Contender | None, held_out: Split | str, *, margin: float
) -> GateResult:
    """On the same held-out rows, the contender's bundle is not worse than the champion's by more than `margin`.

    The upper end of the paired 95 % interval decides (`seatrial_export.quality`). `held_out` is a sentence where there
    are no such rows. Without a champion there is nobody to be worse than.
    """
    if champion is None:
        return _first(contender, held_out)
    if isinstance(held_out, str):
        reason = f"cannot be compared with {champion.version}: {held_out}; waive it with --waive quality=REASON"
        return GateResult(gate="quality", passed=False, reason=reason)
    if (ours := _inputs(contender)) != (theirs := _inputs(champion)):
        reason = f"takes {ours} where {champion.version} takes {theirs}: they cannot be asked the same rows"
        return GateResult(gate="quality", passed=False, reason=reason)
    new, old = _score(contender, held_out), _score(champion, held_out)
    drop = paired_drop(old.correct, new.correct)
    passed = drop.high <= margin
    return GateResult(
        gate="quality",
        passed=passed,
        reason=(
            f"{new.metric} {new.value:.4f}, the champion's {old.value:.4f} on the same {new.rows} rows; at worst "
            f"{max(drop.high, 0.0):.4f} lower (95 %), {margin:g} {'is' if passed else 'was'} allowed"
        ),
        measured={
            "metric": new.metric,
            "value": new.value,
            "champion_value": old.value,
            "champion_version": champion.version.version,
            "rows": new.rows,
            "drop_low": drop.low,
            "drop_high": drop.high,
            "margin": margin,
        },
    )


def _first(contender: Contender, held_out: Split | str) -> GateResult:
    if isinstance(held_out, str):
        return GateResult(gate="quality", passed=True, reason="the first: there is no champion to compare with")
    found = _score(contender, held_out)
    return GateResult(
        gate="quality",
        passed=True,
        reason=f"the first: {found.metric} {found.value:.4f} on {found.rows} held-out rows, no champion to compare with",
        measured={"metric": found.metric, "value": found.value, "rows": found.rows},
    )


def _inputs(contender: Contender) -> list[str]:
    specs = contender.bundle.manifest.signature.inputs
    return [f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs]


def _score(contender: Contender, split: Split) -> Score:
    with closing(open_engine(contender.bundle, threads=1)) as engine:

        def predict(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return engine.predict(inputs)

        return score(predict, split, batch_size=SCORING_BATCH)
