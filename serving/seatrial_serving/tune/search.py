"""Which configurations to measure, in which order, and which is better.

Knows nothing of servers: measuring is a function. From the settings that hold now, one knob after the other is turned as
long as it does no harm, with short measurements; they decide only where to look. What is claimed is decided in
`contest`, by repeating.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from seatrial_serving.tune.configuration import Configuration, Knob

FIRST_CALLERS, MOST_CALLERS = 8, 512
FASTER = 1.03
"""Less is taken for noise."""
SMALLER = 0.9
"""Of two that are equally fast, one with at most this part of the other's memory is better."""
HOPELESS = 3
"""Where so many cannot be measured and none could, there is no use in trying more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What so many callers got, all asking at once; the figures are of the requests that did not fail."""

    callers: int
    per_second: float
    p99_ms: float
    failed: int = 0

    def keeps(self, p99_ms: float) -> bool:
        return not self.failed and self.p99_ms <= p99_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`lost` says why a configuration cannot be measured, or not further than its `points`; `memory_bytes` is its peak."""

    configuration: Configuration
    points: tuple[Point, ...]
    memory_bytes: int
    lost: str = ""

    def best(self, p99_ms: float) -> Point | None:
        """The most requests a second within the bound; none for one that was lost on the way."""
        within = [point for point in self.points if point.keeps(p99_ms)]
        return None if self.lost else max(within, key=lambda point: point.per_second, default=None)

    @property
    def closest(self) -> Point | None:
        """The one that comes nearest to a bound that none meets."""
        return min(self.points, key=lambda point: point.p99_ms, default=None)


Measure: TypeAlias = Callable[[Configuration, int], Measured]
"""Measure a configuration, beginning with so many callers."""


def search(
    present: Configuration, knobs: Sequence[Knob], measure: Measure, *, p99_ms: float, goes_on: Callable[[], bool]
) -> Iterator[Measured]:
    """Measure `present`, and then others for as long as `goes_on` and there is something better to be found."""
    best = measure(present, FIRST_CALLERS)
    yield best
    found = {present: best}
    while True:
        before = best
        for knob in knobs:
            for way in knob.ways(best.configuration[knob.name]):
                for value in way:
                    configuration = best.configuration.changed(knob.name, value)
                    if configuration not in found:
                        if not goes_on() or _hopeless(found.values()):
                            return
                        measured = found[configuration] = measure(configuration, _callers(best, p99_ms))
                        yield measured
                        if better(measured, best, p99_ms=p99_ms):
                            best = measured
                    if _clearly_worse(found[configuration], best, p99_ms=p99_ms):
                        break
        if best is before:
            return


def better(one: Measured, other: Measured, *, p99_ms: float) -> bool:
    ours, theirs = one.best(p99_ms), other.best(p99_ms)
    if ours is None or theirs is None:
        return ours is not None or (theirs is None and _nearer(one, other))
    if ours.per_second > FASTER * theirs.per_second:
        return True
    return ours.per_second * FASTER >= theirs.per_second and one.memory_bytes < SMALLER * other.memory_bytes


def finalists(found: Sequence[Measured], *, p99_ms: float, most: int) -> list[Measured]:
    """The best of `found`, the best first; none that was lost, and never more than `most`."""
    left, chosen = [each for each in found if not each.lost], list[Measured]()
    while left and len(chosen) < most:
        best = left[0]
        for each in left[1:]:
            if better(each, best, p99_ms=p99_ms):
                best = each
        left.remove(best)
        chosen.append(best)
    return chosen


def climb(ask: Callable[[int], Point], *, first: int, p99_ms: float, goes_on: Callable[[], bool]) -> Iterator[Point]:
    """Ask with ever more callers as long as more is answered within the bound; with fewer where that were too many."""
    point = ask(first)
    yield point
    if not point.keeps(p99_ms):
        while not point.keeps(p99_ms) and point.callers > 1 and goes_on():
            point = ask(point.callers // 2)
            yield point
        return
    while point.callers < MOST_CALLERS and goes_on():
        before, point = point, ask(2 * point.callers)
        yield point
        if not point.keeps(p99_ms) or point.per_second < FASTER * before.per_second:
            return


def _hopeless(found: Collection[Measured]) -> bool:
    return len(found) >= HOPELESS and all(measured.lost for measured in found)


def _callers(best: Measured, p99_ms: float) -> int:
    point = best.best(p99_ms) or best.closest
    return point.callers if point else FIRST_CALLERS


def _nearer(one: Measured, other: Measured) -> bool:
    ours, theirs = one.closest, other.closest
    return not one.lost and ours is not None and (theirs is None or bool(other.lost) or ours.p99_ms < theirs.p99_ms)


def _clearly_worse(one: Measured, best: Measured, *, p99_ms: float) -> bool:
    ours, theirs = one.best(p99_ms), best.best(p99_ms)
    return theirs is not None and (ours is None or FASTER * ours.per_second < theirs.per_second)
