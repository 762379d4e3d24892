"""How long each variant takes, in interleaved rounds: what disturbs the machine disturbs all of them alike.

Knows time and chance, nothing of engines: a variant is a function that makes some calls and says how long each took. In a
round each has one turn, a few calls long. The 95 % interval of a median comes from the order of the rounds, which assumes
nothing about their distribution; a bootstrap of a median finds about the same ranks, by chance. Two variants are compared
by their ratios within a round, and the interval of that is a seeded bootstrap's (`seatrial.intervals`).
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TypeAlias

from seatrial import intervals
from seatrial.bundle.evidence import Timing
from seatrial.errors import ConversionFailed
from seatrial.intervals import Interval
from seatrial_export.quality import Z95

WARM_UP = 3
"""Calls of each variant that are not counted."""
MIN_ROUNDS, MAX_ROUNDS = 15, 100
"""Of those that are timed to the end; as many again are in each stretch that is added for those not yet told apart."""
FEWEST_ROUNDS = 6
"""Of anybody: the fewest of which the lowest and the highest are the ends of a median's 95 % interval."""
TURN_MS, MOST_CALLS = 2.0, 50
"""A turn is as many calls as take so long, at least one; a first one that wakes the process is not counted."""
THROUGHPUT_BATCH = 32
SLOW_CALL_MS = 250.0
"""A throughput batch whose call takes longer is halved."""

Ask: TypeAlias = Callable[[int], Sequence[float]]
"""Make so many calls; how many milliseconds each took. Raises `ConversionFailed` where the variant is lost."""
Clock: TypeAlias = Callable[[], float]


def throughput_batch(variants: Iterable[Callable[[int], float]], *, limit: int) -> int:
    """The largest power of two, up to `limit`, of which no variant's call is slow; each says how many milliseconds one takes."""
    size: int = 2 ** int(math.log2(min(limit, THROUGHPUT_BATCH)))
    for call_ms in variants:
        call_ms(1)
        while size > 1 and call_ms(size) > SLOW_CALL_MS:
            size //= 2
    return size


class Rounds:
    """The turns of variants of one size of call. One that is lost takes part no more, and its reason is in `lost`."""

    def __init__(self, asks: Mapping[str, Ask], *, clock: Clock = time.monotonic) -> None:
        self._asks, self._clock = dict(asks), clock
        self._calls: dict[str, int] = {}
        self._turns: dict[str, dict[int, Sequence[float]]] = {name: {} for name in asks}
        self._number = 0
        self.lost: dict[str, ConversionFailed] = {}

    def play(
        self, names: Iterable[str], *, for_s: float, at_least: int = MIN_ROUNDS, at_most: int = MAX_ROUNDS
    ) -> None:
        """A stretch of rounds between `names`, for so long, in an order that rotates."""
        playing = [name for name in names if name in self._asks]
        for name in playing:
            if name not in self._calls:
                self._warm_up(name)
        until = self._clock() + for_s
        for played in range(at_most):
            if played >= at_least and self._clock() > until:
                break
            start = self._number % len(playing) if playing else 0
            for name in playing[start:] + playing[:start]:
                self._turn(name)
            self._number += 1

    def medians(self, name: str) -> dict[int, float]:
        """What a call took, in each round that it took part in."""
        return {number: median(took) for number, took in self._turns[name].items()}

    def typical_ms(self, name: str) -> float:
        """What a call takes, by its ratios to whoever took part in the most rounds: the machine may be slower in some of them."""
        longest = self.medians(max(self._turns, key=lambda each: len(self._turns[each])))
        shared = [ms / longest[number] for number, ms in self.medians(name).items() if number in longest]
        return median(shared) * median(longest.values())

    def timing(self, name: str, *, batch: int, length: int | None, threads: int) -> Timing:
        turns = sorted(self.medians(name).values())
        calls = sorted(ms for took in self._turns[name].values() for ms in took)
        low, high = median_ranks(len(turns))
        return Timing(
            batch=batch,
            length=length,
            threads=threads,
            p50_ms=median(turns),
            p99_ms=_quantile(calls, 0.99),
            low_ms=turns[low],
            high_ms=turns[high],
            rounds=len(turns),
        )

    def _warm_up(self, name: str) -> None:
        took = self._ask(name, WARM_UP)
        if took:
            self._calls[name] = max(1, min(MOST_CALLS, int(TURN_MS / max(min(took), 1e-6))))

    def _turn(self, name: str) -> None:
        calls = self._calls.get(name, 1)
        took = self._ask(name, calls + 1 if calls > 1 else 1)
        if took:
            self._turns[name][self._number] = took[1:] or took

    def _ask(self, name: str, calls: int) -> Sequence[float]:
        """Nothing of one that is lost."""
        try:
            return self._asks[name](calls) if name in self._asks else ()
        except ConversionFailed as error:
            self.lost[name] = error
            del self._asks[name]
            return ()


def ratio(these: Mapping[int, float], those: Mapping[int, float]) -> Interval:
    """Of the rounds that both took part in. Where all of it lies below 1.03, the first one is proved, at 5 %, not to be slower by
    3 %."""
    both = [number for number in these if number in those]
    return intervals.ratio([these[number] for number in both], [those[number] for number in both])


def median_ranks(n: int) -> tuple[int, int]:
    """The positions, in n ordered values, of the ends of the median's 95 % interval (normal approximation)."""
    reach = Z95 * math.sqrt(n) / 2
    return max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))


def _quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of all do not exceed."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
