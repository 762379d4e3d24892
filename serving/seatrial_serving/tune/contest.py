"""Whether a configuration really is better than the one that holds now: both measured again, in turn, in many rounds.

A gain is claimed only where the 90 % interval of the paired ratios lies above 1: what disturbs the machine disturbs all
alike, and what short measurements made look good by chance falls here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from seatrial.intervals import Interval, ratio
from seatrial_serving.tune.configuration import Configuration
from seatrial_serving.tune.search import Point

LEAST_ROUNDS = 5
"""With fewer, an interval says too little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`chosen` meets the bound, None where nothing was proved to. `gain` is its requests a second, to those of the
    configuration that holds now; None where that one is chosen or does not meet the bound."""

    chosen: Configuration | None
    gain: Interval | None
    words: str
    unmet: bool = False
    """It was seen that nothing meets the bound."""


def judge(present: Configuration, rounds: Mapping[Configuration, Sequence[Point]], *, p99_ms: float) -> Verdict:
    """`rounds` are of equal number for all that are in it; whoever could not be measured in one is not."""
    done = max(map(len, rounds.values()), default=0)
    if done < LEAST_ROUNDS:
        return Verdict(
            chosen=None, gain=None,
            words=f"nothing is proved: {LEAST_ROUNDS} rounds beside the settings of now are needed, {done} were done; "
            "give it more --minutes",
        )  # fmt: skip
    holding = [each for each, points in rounds.items() if _keep(points, p99_ms)]
    if not holding:
        words = f"nothing that was tried keeps p99 within {p99_ms:g} ms"
        return Verdict(chosen=None, gain=None, words=words, unmet=True)
    if present not in holding:
        return _without_present(present, holding, rounds, p99_ms=p99_ms)
    gains = {each: ratio(_per_second(rounds[each]), _per_second(rounds[present])) for each in holding}
    best = max(gains, key=lambda each: gains[each].low if each != present else 1.0)
    if best == present:
        alone = "keep it, and nothing else could be measured beside them"
        as_good = "are as good as any that was tried"
        words = f"the settings of now {as_good if len(rounds) > 1 else alone}"
        return Verdict(chosen=present, gain=None, words=words)
    return Verdict(
        chosen=best, gain=gains[best],
        words=f"{gains[best]} times the requests a second of the settings of now, in {done} rounds, with p99 within "
        f"{p99_ms:g} ms",
    )  # fmt: skip


def _without_present(
    present: Configuration,
    holding: Sequence[Configuration],
    rounds: Mapping[Configuration, Sequence[Point]],
    *,
    p99_ms: float,
) -> Verdict:
    best = max(holding, key=lambda each: median(_per_second(rounds[each])))
    why = "do not" if present in rounds else "could not be measured, let alone"
    return Verdict(chosen=best, gain=None, words=f"the settings of now {why} keep p99 within {p99_ms:g} ms; these do")


def _keep(points: Sequence[Point], p99_ms: float) -> bool:
    return median(point.p99_ms for point in points) <= p99_ms and not any(point.failed for point in points)


def _per_second(points: Sequence[Point]) -> list[float]:
    return [point.per_second for point in points]
