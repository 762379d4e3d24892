"""How many channels may go: who is taught on, for how long, and that those who stay are worth it."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import ConversionFailed
from seatrial.settings import Settings
from seatrial_export.candidate import CANDIDATES, named
from seatrial_export.search import pruned_static
from seatrial_export.sparsity import FIRST_PART, PERCENTS, Job, Taught, finalists, halve, rungs
from seatrial_training.data import load_dataset
from seatrial_training.fit import build_module, fit
from seatrial_training.recipe import load_recipe
from seatrial_training.retrainable import FOLDER, write_retrainable

pytestmark = pytest.mark.xdist_group("training")


def simulated(percent: int, part: float) -> float:
    """The more is gone the more is lost, and the longer it was taught the less."""
    return (percent / 100) ** 2 * FIRST_PART / part


def test_the_better_half_goes_on_for_twice_as_long_until_two_are_left() -> None:
    asked: list[tuple[int, float]] = []

    def attempt(percent: int, part: float, _: float) -> float:
        asked.append((percent, part))
        return simulated(percent, part)

    taught = rungs(PERCENTS, attempt, allowed=0.05)
    first, second, third = FIRST_PART, 2 * FIRST_PART, 4 * FIRST_PART
    assert asked == [
        *((percent, first) for percent in PERCENTS), *((percent, second) for percent in (20, 10, 30)),
        *((percent, third) for percent in (30, 20)),
    ]  # fmt: skip
    assert sum(part for _, part in asked) == 1.25
    assert [each.percent for each in finalists(taught, 0.05)] == [30, 20], "the smallest model that keeps the accuracy"
    by_percent = {each.percent: each for each in taught}
    assert by_percent[30] == Taught(percent=30, part=7 * FIRST_PART, lost=simulated(30, third))
    assert by_percent[60].part == first


def test_where_none_keeps_the_accuracy_those_go_on_that_come_nearest_to_it() -> None:
    taught = rungs(PERCENTS, lambda percent, *_: percent / 100, allowed=0.05)
    assert [each.percent for each in finalists(taught, 0.05)] == [10, 20]


def test_what_is_no_other_model_is_tried_once_and_one_alone_is_enough() -> None:
    taught = rungs(PERCENTS, lambda percent, *_: 0.0 if percent == 50 else None, allowed=0.05)
    assert [each.percent for each in taught] == [50]
    assert rungs(PERCENTS, lambda *_: None, allowed=0.05) == []


@given(st.lists(st.integers(5, 90), min_size=1, max_size=9, unique=True))
def test_the_time_is_shared_out_by_how_long_each_is_taught(percents: list[int]) -> None:
    left, took = 100.0, list[tuple[float, float]]()

    def attempt(percent: int, part: float, share: float) -> float:
        nonlocal left
        took.append((share * left, part))
        left -= share * left
        return simulated(percent, part)

    rungs(percents, attempt, allowed=0.01)
    assert left == pytest.approx(0, abs=1e-6)
    one_part = took[0][0] / took[0][1]
    assert all(seconds == pytest.approx(part * one_part) for seconds, part in took)


def test_candidates_are_of_the_targets_that_have_pruned_ones() -> None:
    found = pruned_static(("onnx-cpu", "openvino-cpu", "pt2-cpu"), (25, 50))
    assert found == named(
        [f"{target}-int8-pruned-{percent}-static" for target in ("onnx-cpu", "openvino-cpu") for percent in (25, 50)]
    )
    assert found[1] in CANDIDATES, "which is not built twice"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered model's directory, of a network that knows digits."""
    folder = tmp_path_factory.mktemp("model")
    plain = ["epochs=12", "averaging=null", "early_stopping=null"]
    recipe = load_recipe(
        "digits-mlp", changes=[*plain, "architecture.config={hidden: [64], classes: 10, pixels: [1, 8, 8]}"]
    )
    digits = load_dataset("digits", Settings())
    module = fit(build_module(recipe, digits), recipe, digits).module
    (folder / FOLDER).mkdir()
    write_retrainable(folder / FOLDER, module=module, recipe=recipe, labels=digits.labels, tokenizer=None)
    return folder


def job(model: Path) -> Job:
    return Job(
        model=str(model), home=str(Settings().home.absolute()), data=str(Settings().data_folder.absolute()), epochs=0.5,
        allowed=0.02, percents=(6, 25, 30, 50, 87),
    )  # fmt: skip


def test_a_real_network_is_taught_with_parts_of_it_gone(model: Path) -> None:
    """Of 64 channels, in whole registers, 6 % are none, and 25 and 30 % leave 48."""
    found = halve(job(model))
    assert [each.percent for each in found.taught] == [25, 50, 87]
    assert found.rows == round(0.1 * len(load_dataset("digits", Settings()).train))
    assert found.whole
    less, half, most = found.taught
    assert half.part == less.part == 3 * FIRST_PART > most.part == FIRST_PART
    assert less.lost < most.lost
    assert set(found.finalists) == {25, 50}


def test_without_time_each_is_taught_as_little_as_can_be_and_it_is_said(model: Path) -> None:
    found = halve(msgspec.structs.replace(job(model), for_s=0))
    assert not found.whole
    assert len(found.taught) == 3


def test_what_has_nothing_to_lose_is_told(model: Path) -> None:
    with pytest.raises(ConversionFailed, match="there is no layer whose channels could go"):
        halve(msgspec.structs.replace(job(model), percents=(6,)))
