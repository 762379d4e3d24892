"""Engines that take as long as a test wants, and are lost when it wants, on a clock that stands still without them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seatrial.bundle import Bound, Bundle
from seatrial.bundle.evidence import Agreement, Quality
from seatrial.errors import ConversionFailed
from seatrial_export.candidate import Candidate
from seatrial_export.measure import Ask
from seatrial_export.trial import Verified
from seatrial_export.verify import Proof


@dataclass
class Lose:
    """Asks `ask` a few times, and is lost at the next one."""

    ask: Ask
    after: int
    reason: str

    def __call__(self, calls: int) -> Sequence[float]:
        self.after -= 1
        if self.after < 0:
            raise ConversionFailed(self.reason, log="log.txt")
        return self.ask(calls)


@dataclass
class Sea:
    """A machine as they are: every call has noise, some are much too long, and now and then all are slow for a while."""

    seed: int
    noise: float = 0.04
    now: float = 0.0
    slowed: float = 1.0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def take(self, ms: float, calls: int) -> Sequence[float]:
        slow = 1.4 if int(self.now / 0.37) % 5 == self.seed % 5 else 1.0
        took = ms * self.slowed * slow * self.random.lognormal(sigma=self.noise, size=calls)
        took *= np.where(self.random.random(calls) < 0.03, self.random.uniform(1.5, 4, calls), 1)
        self.now += float(took.sum()) / 1000
        return [float(each) for each in took]


@dataclass
class SimulatedEngine:
    sea: Sea
    ms: float
    load_s: float = 0.01
    memory_bytes: int = 2**20

    def call(self, _: Path, calls: int) -> Sequence[float]:
        return self.sea.take(self.ms, calls)

    def close(self) -> int:
        return 0


@dataclass
class SimulatedStand:
    """`ms` says how long the engine of a bundle takes for any call, by its model's version."""

    sea: Sea
    ms: dict[str, float]
    threads: int = 1

    def mount(self, bundle: Bundle, *, inputs: Path) -> SimulatedEngine:  # noqa: ARG002
        return SimulatedEngine(self.sea, self.ms[bundle.manifest.model.version])


def verified(candidate: Candidate, bundle: Bundle, *, accuracy: float = 0.9) -> Verified:
    """As if `bundle` had been through the exam, and scored."""
    return Verified(
        candidate=candidate,
        draft=None,  # type: ignore[arg-type]  # nobody writes another bundle of it
        bundle=bundle,
        proof=Proof(
            agreement=Agreement(cases=9, max_absolute=0.0, max_relative=0.0, top1=1.0, cosine=1.0),
            source={"y": Bound(absolute=0.1)},
            rerun={"y": Bound(absolute=0.1)},
        ),
        quality=Quality(
            metric="accuracy", basis="labels", rows=1000, value=accuracy, source_value=accuracy, drop_upper=0.0
        ),
    )
