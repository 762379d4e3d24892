"""How many channels may go: who is taught on, for how long, and that those who stay are worth it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from seatrial.errors import ConversionFailed
from seatrial.settings import Settings
from seatrial_export.candidate import CANDIDATES, named
from seatrial_export.search import pruned_static
from seatrial_export.sparsity import RUNGS, START, TRIALS, Job, Taught, climb, finalists, search
from seatrial_training.data import load_dataset
from seatrial_training.fit import build_module, fit
from seatrial_training.recipe import load_recipe
from seatrial_training.retrainable import FOLDER, write_retrainable

pytestmark = pytest.mark.xdist_group("training")


@dataclass(slots=True)
class Sea:
    """A model that can do without `knee` of its channels once it has been taught enough; `left` is the time that there is."""

    knee: float
    left: float = 100.0
    had: dict[int, float] = field(default_factory=dict)
    took: list[tuple[float, float]] = field(default_factory=list)

    def attempt(self, percent: int, more: float, share: float) -> float | None:
        self.had[percent] = self.had.get(percent, 0.0) + more
        self.took.append((share * self.left, more))
        self.left -= share * self.left
        return max(0.0, percent / 100 - self.knee) / 2 + 0.06 * (RUNGS[-1] - self.had[percent]) * percent / 100

    def climb(self, *, allowed: float = 0.01, over: Callable[[], bool] = lambda: False) -> list[Taught]:
        return climb(self.attempt, allowed=allowed, start=START, trials=TRIALS, over=over)


@functools.cache
def climbed(knee: float) -> tuple[Sea, list[Taught]]:
    sea = Sea(knee)
    return sea, sea.climb()


@pytest.mark.parametrize("knee", [0.2, 0.6])
def test_the_most_that_may_go_is_found_more_closely_than_by_tens(knee: float) -> None:
    """A hundredth is lost two points beyond the knee."""
    sea, taught = climbed(knee)
    most = 100 * knee + 2
    best, second = finalists(taught, 0.01)
    assert most - 8 < best.percent <= most
    assert second.part == best.part == RUNGS[-1]
    assert len(taught) == TRIALS
    assert sum(sea.had.values()) < 1.6, "of a whole fine-tuning"
    assert {each.percent: each.part for each in taught} == sea.had


def test_what_is_among_the_worse_half_is_taught_no_further() -> None:
    taught = {each.percent: each for each in climbed(0.2)[1]}
    assert list(taught)[: len(START)] == list(START)
    assert taught[START[0]].part == RUNGS[-1], "the first has nobody to be worse than"
    assert taught[50].part == RUNGS[0], "it loses more than 30 % do"


@pytest.mark.parametrize("knee", [0.2, 0.6])
def test_there_is_time_for_the_last_as_for_the_first(knee: float) -> None:
    """However many get far, which nobody knows when the first is taught."""
    sea, _ = climbed(knee)
    rates = [seconds / part for seconds, part in sea.took]
    assert max(rates) < 4 * min(rates)
    assert 0 <= sea.left < 35


def test_the_smallest_that_keeps_the_accuracy_is_best_then_what_comes_nearest_to_it() -> None:
    taught = [Taught(percent=percent, part=RUNGS[-1], lost=percent / 1000) for percent in (10, 20, 30, 40)]
    assert [each.percent for each in finalists(taught, 0.02)] == [20, 10]
    assert [each.percent for each in finalists(taught, 0.001)] == [10, 20]
    longest = Taught(percent=50, part=1, lost=0.5)
    assert finalists([*taught, longest], 0.02)[0] == longest


def test_what_is_no_other_model_is_tried_once_and_one_alone_is_enough() -> None:
    taught = climb(
        lambda percent, *_: 0.0 if percent == 50 else None, allowed=0.01, start=START, trials=2, over=lambda: False
    )
    assert taught == [Taught(percent=50, part=RUNGS[-1], lost=0.0)]
    assert climb(lambda *_: None, allowed=0.05, start=START, trials=2, over=lambda: False) == []


def test_when_the_time_is_over_one_was_tried() -> None:
    assert [each.percent for each in Sea(0.4).climb(over=lambda: True)] == [START[0]]


def test_candidates_are_of_the_targets_that_have_pruned_ones() -> None:
    found = pruned_static(("onnx-cpu", "openvino-cpu", "pt2-cpu"), (25, 50))
    assert found == named(
        [f"{target}-int8-pruned-{percent}-static" for target in ("onnx-cpu", "openvino-cpu") for percent in (25, 50)]
    )
    assert found[1] in CANDIDATES, "which is not built twice"


def model(folder: Path, *, hidden: int, epochs: int) -> Path:
    """A registered model's directory, of a network that was taught digits."""
    plain = [f"epochs={epochs}", "averaging=null", "early_stopping=null"]
    recipe = load_recipe(
        "digits-mlp", changes=[*plain, f"architecture.config={{hidden: [{hidden}], classes: 10, pixels: [1, 8, 8]}}"]
    )
    digits = load_dataset("digits", Settings())
    module = fit(build_module(recipe, digits), recipe, digits).module
    (folder / FOLDER).mkdir()
    write_retrainable(folder / FOLDER, module=module, recipe=recipe, labels=digits.labels, tokenizer=None)
    return folder


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    settings = Settings()
    return Job(
        model=str(model(tmp_path_factory.mktemp("model"), hidden=64, epochs=12)), home=str(settings.home.absolute()),
        data=str(settings.data_folder.absolute()), epochs=0.5, allowed=0.02, start=(6, 25, 30, 50, 70), trials=3,
    )  # fmt: skip


def test_a_real_network_is_taught_with_parts_of_it_gone(job: Job) -> None:
    """Of 64 channels, in whole registers, 6 % are none, and 25 and 30 % leave 48."""
    found = search(job)
    assert [each.percent for each in found.taught] == [25, 50, 70]
    assert found.rows == round(0.1 * len(load_dataset("digits", Settings()).train))
    assert found.whole
    less, _, most = found.taught
    assert less.part == RUNGS[-1] > most.part
    assert less.lost < most.lost
    assert set(found.finalists) == {25, 50}


def test_without_time_one_is_taught_as_little_as_can_be_and_it_is_said(job: Job) -> None:
    found = search(msgspec.structs.replace(job, for_s=0))
    assert not found.whole
    assert len(found.taught) == 1


def test_what_has_nothing_to_lose_is_told(job: Job, tmp_path: Path) -> None:
    """One channel."""
    with pytest.raises(ConversionFailed, match="there is no layer whose channels could go"):
        search(msgspec.structs.replace(job, model=str(model(tmp_path, hidden=1, epochs=1))))
