"""Which way a batch that is alone is answered sooner: on one engine's share of the cores, or on all of them.

Learned from how long such batches took, by their size. The way that looks worse is tried again now and then, because
neighbours come and go (beside a busy one, threads that wait for each other are the slower way), and because it may have looked
worse by accident: each time for a fiftieth of what was spent on the better way since.
"""

from collections import defaultdict
from dataclasses import dataclass, field

TRIES = 3
"""Of each way at first, of which the fastest counts: what runs for the first time is slow."""
TRY_AGAIN_AFTER = 50
"""Times what the worse way takes."""
WEIGHT = 0.2
"""How much one batch counts against those before it."""


@dataclass(slots=True)
class Breadth:
    _took_s: dict[tuple[int, bool], float] = field(default_factory=dict)
    _tries: defaultdict[tuple[int, bool], int] = field(default_factory=lambda: defaultdict(int))
    _spent_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Since the worse way was tried, by size."""

    def choose(self, size_bytes: int) -> bool:
        """Whether all cores should take a batch of this size. Both ways are tried first, in turn."""
        size = size_bytes.bit_length()
        narrow, wide = (size, False), (size, True)
        if min(self._tries[narrow], self._tries[wide]) < TRIES:
            return self._tries[wide] <= self._tries[narrow]
        narrow_s, wide_s = self._took_s[narrow], self._took_s[wide]
        if self._spent_s[size] < TRY_AGAIN_AFTER * max(narrow_s, wide_s):
            return wide_s < narrow_s
        self._spent_s[size] = 0.0
        return wide_s >= narrow_s

    def learn(self, size_bytes: int, *, wide: bool, took_s: float) -> None:
        """A batch that was alone from its beginning to its end was computed in `took_s`."""
        size = size_bytes.bit_length()
        way = size, wide
        before = self._took_s.get(way, took_s)
        tried = self._tries[way] = self._tries[way] + 1
        self._took_s[way] = min(before, took_s) if tried <= TRIES else before + WEIGHT * (took_s - before)
        self._spent_s[size] += took_s
