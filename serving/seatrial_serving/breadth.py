"""Which way a batch that is alone is answered sooner: on one engine's share of the cores, or on all of them.

Learned from how long such batches took, by their size. The way that looks worse is tried again now and then, because
neighbours come and go: beside a busy one, threads that wait for each other are the slower way.
"""

from dataclasses import dataclass, field

TRY_AGAIN_EVERY = 1000
WEIGHT = 0.2
"""How much one batch counts against those before it."""


@dataclass(slots=True)
class Breadth:
    _took_s: dict[tuple[int, bool], float] = field(default_factory=dict)
    _chosen: int = 0

    def choose(self, size_bytes: int) -> bool:
        """Whether all cores should take a batch of this size. What was not tried yet is tried first."""
        size = size_bytes.bit_length()
        narrow, wide = (self._took_s.get((size, way)) for way in (False, True))
        if narrow is None or wide is None:
            return wide is None
        self._chosen += 1
        return (wide < narrow) != (self._chosen % TRY_AGAIN_EVERY == 0)

    def learn(self, size_bytes: int, *, wide: bool, took_s: float) -> None:
        """A batch that began alone was computed in `took_s`."""
        key = size_bytes.bit_length(), wide
        before = self._took_s.get(key, took_s)
        self._took_s[key] = before + WEIGHT * (took_s - before)
