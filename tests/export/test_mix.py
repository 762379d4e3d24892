"""Which layers stay in float, and what is left of that where the time runs out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from seatrial.errors import ConversionFailed
from seatrial_export.build import Built
from seatrial_export.candidate import CANDIDATES, Candidate, Lost, Verdict, named
from seatrial_export.choose import Budget
from seatrial_export.mix import Mixed, Mixer
from seatrial_export.sensitivity import Layer
from seatrial_export.trial import Verified
from tests.export.engines_at_will import verified
from tests.serving.models import LinearBundle

STATIC, MIXED = CANDIDATES[2], CANDIDATES[5]
[PRUNED_STATIC] = named(["onnx-cpu-int8-pruned-50-static"])
OVER = "was killed, because the time for the whole export did not allow more"
LAYERS = tuple(Layer(name=f"layer{number}", operator="Conv", noise=1 / (1 + number)) for number in range(40))


@dataclass
class SimulatedWorkshop:
    """Says that it built whatever is asked, until it has built `until` of them: then its children are killed."""

    until: int
    asked: list[int] = field(default_factory=list)
    bases: set[Candidate] = field(default_factory=set)

    def sensitivity(self, *_: object) -> tuple[Layer, ...]:
        return LAYERS

    def mix(self, candidate: Candidate, base: Built, floats: Sequence[str]) -> Built:
        if len(self.asked) == self.until:
            raise ConversionFailed(OVER)
        self.asked.append(len(floats))
        self.bases.add(base.candidate)
        return Built(candidate=candidate, model=Path("mixed.onnx"))


@pytest.mark.parametrize(
    ("until", "asked", "left"),
    [
        (99, [1, 2, 4, 8, 16, 12, 10, 9], 10),
        (6, [1, 2, 4, 8, 16, 12], 12),
        (5, [1, 2, 4, 8, 16], 16),
    ],
)
def test_a_floor_of_the_metric_decides_how_many_and_what_was_enough_stays_when_the_time_is_over(
    until: int, asked: list[int], left: int, tmp_path: Path
) -> None:
    workshop = SimulatedWorkshop(until)
    mixed = mix(workshop, metric=0.9, folder=tmp_path)
    assert workshop.asked == asked
    assert isinstance(mixed.found, Verified)
    assert sum(layer.kept for layer in mixed.layers) == left


def test_where_the_time_is_over_before_anything_was_enough_it_says_so(tmp_path: Path) -> None:
    mixed = mix(SimulatedWorkshop(4), metric=0.9, folder=tmp_path)
    assert isinstance(mixed.found, Lost)
    assert (mixed.found.verdict, mixed.found.reason) == (Verdict.NOT_BUILT, OVER)


def test_where_static_int8_is_above_the_floor_nothing_is_mixed(tmp_path: Path) -> None:
    workshop = SimulatedWorkshop(99)
    mixed = mix(workshop, metric=0.8, folder=tmp_path)
    assert isinstance(mixed.found, Lost)
    assert mixed.found.verdict is Verdict.NOT_APPLICABLE
    assert workshop.asked == []


def test_a_pruned_model_is_neither_mixed_nor_taken_for_the_whole_one(tmp_path: Path) -> None:
    workshop = SimulatedWorkshop(99)
    found = mix(workshop, metric=0.9, folder=tmp_path, pruned=0.95).found
    assert isinstance(found, Verified)
    assert workshop.bases == {STATIC}


def mix(workshop: SimulatedWorkshop, *, metric: float, folder: Path, pruned: float | None = None) -> Mixed:
    """Static INT8 has 80 % of its answers right, and with each layer in float one more of a hundred."""
    bundle = LinearBundle().write(folder)

    def examine(_: Built) -> Verified:
        return verified(MIXED, bundle, accuracy=(80 + workshop.asked[-1]) / 100)

    mixer = Mixer(
        workshop=workshop,  # type: ignore[arg-type]  # all of it that is asked
        examine=examine,
        budget=Budget(metric=metric),
        for_s=60,
        enough=True,
    )
    tried = [
        (Built(candidate=each, model=Path("static.onnx")), verified(each, bundle, accuracy=accuracy))
        for each, accuracy in ((PRUNED_STATIC, pruned), (STATIC, 0.8))
        if accuracy is not None
    ]
    return mixer.mix(MIXED, tried)
