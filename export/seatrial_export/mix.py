"""The second stage of building: where static INT8 misses the accuracy, the layers that it harms most stay in float.

As few as keep the accuracy. That is asked of the held-out rows, as for every candidate, and one number of layers after
the other; which layers they are was found out on calibration rows. Where nothing is missed, nothing is built.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import msgspec

from seatrial.errors import ConversionFailed
from seatrial_export.build import Built, Workshop, unbuilt
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.choose import Budget, quality_refusal
from seatrial_export.sensitivity import Layer
from seatrial_export.trial import Verified

MOST = 0.5
"""The part of the layers that may stay in float. Beyond, INT8 is not worth its conversions to and fro."""


Result = TypeVar("Result")
Tried: TypeAlias = tuple[Built | Lost, Verified | Lost]
"""A candidate of the first stage: what was built of it, and what became of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """`layers` are those of the INT8 model, with what was found out about each."""

    found: Verified | Lost
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """`examine` verifies and scores what was built, on rows that are `enough` to judge by or not.

    After `for_s` no further number of layers is tried.
    """

    workshop: Workshop
    examine: Callable[[Built], Verified | Lost]
    budget: Budget
    for_s: float
    enough: bool

    def mix(self, candidate: Candidate, tried: Sequence[Tried]) -> Mixed:
        try:
            base = self._base(candidate, tried)
            layers = self.workshop.sensitivity(candidate, base)
            return self._fewest(candidate, base, layers)
        except _Needless as why:
            return Mixed(found=Lost(candidate=candidate, verdict=Verdict.NOT_APPLICABLE, reason=str(why)))
        except ConversionFailed as error:
            return Mixed(found=unbuilt(candidate, error))

    def _base(self, candidate: Candidate, tried: Sequence[Tried]) -> Built:
        """The static INT8 model that comes nearest to the source, if none comes near enough."""
        found: list[tuple[Built, Verified | Lost]] = []
        for built, examined in tried:
            if isinstance(built, Built) and could_be_mixed(built.candidate, target=candidate.target):
                if self._shortfall(examined) is None:
                    raise _Needless(f"{built.candidate.name} keeps the accuracy with all of its layers in INT8")
                found.append((built, examined))
        if not self.enough:
            raise _Needless("there are too few rows to judge by which layers should be in float")
        if not found:
            raise _Needless("there is no static INT8 model whose layers could be")
        return nearest(found)

    def _shortfall(self, examined: Verified | Lost) -> str | None:
        """What it misses of the accuracy; None where it keeps it."""
        if isinstance(examined, Lost):
            return examined.reason
        refusal = quality_refusal(examined, self.budget)
        return refusal[1] if refusal else None

    def _fewest(self, candidate: Candidate, base: Built, layers: tuple[Layer, ...]) -> Mixed:
        most = int(MOST * len(layers))
        if not most:
            raise _Needless("the model has one layer, and nothing to leave in INT8 without it")
        until, missed, enough = time.monotonic() + self.for_s, "", False

        def attempt(number: int) -> tuple[int, Verified] | None:
            nonlocal missed, enough
            if missed and time.monotonic() > until:
                return None
            floats = [layer.name for layer in layers[:number]]
            try:
                examined = self.examine(self.workshop.mix(candidate, base, floats))
            except ConversionFailed:
                if not enough:
                    raise
                return None
            if isinstance(examined, Verified) and self._shortfall(examined) is None:
                enough = True
                return number, examined
            missed = f"even with {number} of {len(layers)} layers in float: {self._shortfall(examined)}"
            return None

        fewest = find_fewest(most, attempt)
        if fewest is None:
            return Mixed(found=Lost(candidate=candidate, verdict=Verdict.OVER_BUDGET, reason=missed), layers=layers)
        number, verified = fewest
        kept = (msgspec.structs.replace(layer, kept=True) for layer in layers[:number])
        return Mixed(found=verified, layers=(*kept, *layers[number:]))


def nearest(some: Sequence[tuple[Built, Verified | Lost]]) -> Built:
    """The one whose answers are most like the source's."""
    return max(some, key=lambda each: each[1].proof.agreement.cosine if isinstance(each[1], Verified) else -1.0)[0]


def could_be_mixed(candidate: Candidate, *, target: str) -> bool:
    """What a pruned model loses, it mostly lost with its channels; of what is machine code nobody asks the layers."""
    return candidate.target == target and candidate.static and not candidate.pruning and not candidate.bound


def find_fewest(most: int, attempt: Callable[[int], Result | None]) -> Result | None:
    """What `attempt` finds for the smallest number from 1 to `most` with which it finds anything.

    Takes it that what is enough stays enough with more.
    """
    failed, number = 0, 1
    while (found := attempt(number)) is None:
        if number == most:
            return None
        failed, number = number, min(2 * number, most)
    while number - failed > 1:
        middle = (failed + number) // 2
        better = attempt(middle)
        failed, number, found = (middle, number, found) if better is None else (failed, middle, better)
    return found


class _Needless(Exception):
    """The message is the reason, for the report."""
