"""What `fit` does with a recipe: on real digits, a small network and few epochs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe
from seatrial.settings import Settings
from seatrial_training.data import Dataset, load_dataset
from seatrial_training.evaluation import predictor, score
from seatrial_training.fit import (
    MONITORED,
    Deadline,
    Epoch,
    Fitted,
    OutOfTime,
    build_module,
    fine_tune,
    fit,
    learning_rate_factor,
)
from seatrial_training.recipe import Recipe, Schedule, load_recipe

FEW_ROWS = 256
PLAIN = ("averaging=null", "early_stopping=null", "architecture.config.dropout=0")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load_dataset("digits", Settings())
    return dataclasses.replace(whole, train=whole.train.take(slice(FEW_ROWS)))


def recipe(*changes: str) -> Recipe:
    return load_recipe("digits-mlp", changes=("epochs=2", "architecture.config.hidden=[16]", *changes))


def fitted(made: Recipe, dataset: Dataset, place: Path | None = None) -> Fitted:
    return fit(build_module(made, dataset), made, dataset, place=place)


def weights(module: nn.Module) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Randomness


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_equal_seeds_give_equal_weights_and_measurements(digits: Dataset, name: str) -> None:
    made = load_recipe(name, changes=["epochs=2"])
    torch.manual_seed(1)
    first = fitted(made, digits)
    torch.manual_seed(2)
    second = fitted(made, digits)
    assert same(weights(first.module), weights(second.module))
    assert first.epochs == second.epochs


def test_another_seed_gives_other_weights(digits: Dataset) -> None:
    one, other = (fitted(recipe(f"seed={seed}"), digits) for seed in (1, 2))
    assert not same(weights(one.module), weights(other.module))


def test_training_leaves_the_caller_s_randomness_and_threads_alone(digits: Dataset) -> None:
    torch.manual_seed(7)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    fitted(recipe(), digits)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_threads_are_those_of_the_recipe_but_never_more_than_we_have(digits: Dataset) -> None:
    seen = []
    for wanted in ("1", "1000", "null"):
        made = recipe("epochs=1", f"threads={wanted}")
        fit(build_module(made, digits), made, digits, on_epoch=lambda _: seen.append(torch.get_num_threads()))
    assert seen == [1, torch.get_num_threads(), torch.get_num_threads()]


# The learning rate


SCHEDULE = Schedule(warmup=0.2, floor=0.1)


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine_to_its_floor() -> None:
    factors = [learning_rate_factor(step, 100, SCHEDULE) for step in range(101)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20] == 1
    assert factors[60] == pytest.approx(0.1 + 0.9 / 2)
    assert factors[100] == pytest.approx(0.1)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_is_positive_at_most_one_and_has_one_peak(steps: int, warmup: float, floor: float) -> None:
    schedule = Schedule(warmup=warmup, floor=floor)
    factors = [learning_rate_factor(step, steps, schedule) for step in range(steps)]
    peak = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_rate_follows_the_schedule_to_the_end(digits: Dataset) -> None:
    made = recipe("epochs=5", "schedule.warmup=0.2", "schedule.floor=0.25", "optimizer.learning_rate=0.01")
    steps = FEW_ROWS // made.batch_size * 5
    expected = [0.01 * learning_rate_factor(steps * epoch // 5, steps, made.schedule) for epoch in range(1, 6)]
    assert [epoch.metrics["learning_rate"] for epoch in fitted(made, digits).epochs] == pytest.approx(expected)
    assert expected[-1] == pytest.approx(0.0025)


# What a step does


@pytest.mark.slow
def test_accumulated_batches_step_as_one_large_batch(digits: Dataset) -> None:
    plain = ("optimizer.name=sgd", "optimizer.learning_rate=0.1", "gradient_clip=null", *PLAIN)
    large = fitted(recipe("batch_size=128", *plain), digits)
    accumulated = fitted(recipe("batch_size=32", "accumulate=4", *plain), digits)
    for name, value in weights(large.module).items():
        torch.testing.assert_close(weights(accumulated.module)[name], value, atol=1e-5, rtol=1e-4)
    assert not same(weights(large.module), weights(fitted(recipe("batch_size=32", *plain), digits).module))


def test_a_clipped_gradient_moves_the_weights_no_further_than_its_norm(digits: Dataset) -> None:
    plain = (
        "optimizer.name=sgd",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0",
        "optimizer.learning_rate=1",
        *PLAIN,
    )
    made = recipe(f"batch_size={FEW_ROWS}", "epochs=1", "schedule.warmup=0", "gradient_clip=0.001", *plain)
    module = build_module(made, digits)
    before = weights(module)
    after = weights(fit(module, made, digits).module)
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert moved == pytest.approx(0.001, rel=1e-3)


def test_weight_decay_spares_biases(digits: Dataset) -> None:
    plain = ("optimizer.name=sgd", "optimizer.momentum=0", "optimizer.learning_rate=1e-9", "schedule.warmup=0", *PLAIN)
    made = recipe("epochs=1", "optimizer.weight_decay=1e8", f"batch_size={FEW_ROWS}", *plain)
    module = build_module(made, digits)
    before = weights(module)
    after = weights(fit(module, made, digits).module)
    torch.testing.assert_close(after["output.weight"], before["output.weight"] * 0.9, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after["output.bias"], before["output.bias"], atol=1e-6, rtol=0)


def test_a_loss_that_is_no_number_ends_the_training_and_names_the_rate(digits: Dataset) -> None:
    made = recipe("optimizer.name=sgd", "optimizer.learning_rate=1e30", "gradient_clip=null", *PLAIN)
    with pytest.raises(InvalidRecipe, match=r"the loss became .* lower optimizer.learning_rate, which is 1e\+30"):
        fitted(made, digits)


# What is kept


def test_averaged_weights_are_the_exponential_mean_of_those_of_each_step(digits: Dataset) -> None:
    plain = ("early_stopping=null", f"batch_size={FEW_ROWS}", "schedule.warmup=0", "architecture.config.dropout=0")
    averaged = fitted(recipe("epochs=2", "averaging.decay=0.75", *plain), digits)
    steps = weights_after_each_epoch(recipe("epochs=2", "averaging=null", *plain), digits)
    mean = steps[0]  # Lightning's average begins with the weights after the first step
    mean = {name: 0.75 * mean[name] + 0.25 * steps[1][name] for name in mean}
    kept = weights(averaged.module)
    chosen = mean if averaged.best == 2 else steps[0]
    for name, value in chosen.items():
        torch.testing.assert_close(kept[name], value, atol=1e-6, rtol=1e-5)


def weights_after_each_epoch(made: Recipe, dataset: Dataset) -> list[Mapping[str, Tensor]]:
    module = build_module(made, dataset)
    seen: list[Mapping[str, Tensor]] = []
    fit(module, made, dataset, on_epoch=lambda _: seen.append(weights(module)))
    return seen


def test_the_kept_weights_are_those_of_the_best_epoch_in_eval_mode(digits: Dataset) -> None:
    made = recipe("epochs=6", "optimizer.learning_rate=0.05")
    result = fitted(made, digits)
    accuracies = [epoch.metrics[MONITORED] for epoch in result.epochs]
    assert accuracies[result.best - 1] == max(accuracies)
    signature_of = build_module(made, digits)
    assert type(result.module) is type(signature_of)
    assert not result.module.training
    assert accuracy(result.module, digits) == pytest.approx(max(accuracies))


def accuracy(module: nn.Module, dataset: Dataset) -> float:
    from seatrial_models import architecture

    chosen = architecture("mlp")
    signature = chosen.signature(chosen.configure({"pixels": [1, 8, 8], "classes": 10}))
    return score(predictor(module, signature), dataset.validation, batch_size=256).value


def test_every_epoch_is_measured_and_told_in_order(digits: Dataset) -> None:
    told: list[Epoch] = []
    made = recipe("epochs=3")
    result = fit(build_module(made, digits), made, digits, on_epoch=told.append)
    assert [epoch.number for epoch in told] == [1, 2, 3]
    assert tuple(told) == result.epochs
    assert set(told[0].metrics) == {"learning_rate", "training_loss", "validation_accuracy", "validation_loss"}
    assert told[2].metrics["training_loss"] < told[0].metrics["training_loss"]


def test_early_stopping_ends_when_nothing_gets_better(digits: Dataset) -> None:
    hopeless = ("optimizer.name=sgd", "optimizer.learning_rate=1e-30", "averaging=null", "early_stopping.patience=2")
    result = fitted(recipe("epochs=9", *hopeless), digits)
    assert (len(result.epochs), result.best) == (3, 1)


# Smaller images


RESNET = """
name: tiny
description: a ResNet of a few weights
data: digits
architecture: {name: resnet18, config: {pixels: [1, 8, 8], classes: 10, stem: small, width: 8, blocks: [1, 1, 1, 1]}}
epochs: 4
threads: 1
"""


@pytest.mark.slow
def test_only_the_first_epochs_see_small_images(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RESNET)
    made = load_recipe(str(tmp_path / "tiny.yaml"), changes=["small_images.scale=0.5", "small_images.epochs=0.5"])
    module = build_module(made, digits)
    with sizes_seen(module) as seen:
        fit(module, made, digits)
    steps = FEW_ROWS // made.batch_size
    assert seen == [4] * (2 * steps) + [8] * (2 * steps)


@pytest.mark.parametrize(("width", "one_dnn"), [(4, False), (8, True)])
def test_networks_that_one_dnn_cannot_train_are_trained_without_it(
    digits: Dataset, tmp_path: Path, width: int, one_dnn: bool
) -> None:
    """With it, this process would die, here or later: of a width of 4 the gradients are written beyond their memory."""
    (tmp_path / "tiny.yaml").write_text(RESNET)
    made = load_recipe(str(tmp_path / "tiny.yaml"), changes=["epochs=1", f"architecture.config.width={width}"])
    seen: list[bool] = []
    fit(build_module(made, digits), made, digits, on_epoch=lambda _: seen.append(torch._C._get_mkldnn_enabled()))
    assert seen == [one_dnn]
    assert torch._C._get_mkldnn_enabled()


def sizes_seen(module: nn.Module) -> "Watching":
    return Watching(module)


class Watching:
    """Keeps the height of what `module` is trained on."""

    def __init__(self, module: nn.Module) -> None:
        self._seen: list[int] = []
        self._hook = module.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: nn.Module, _: object, inputs: dict[str, Tensor]) -> None:
        if module.training:
            self._seen.append(inputs["pixels"].shape[-1])

    def __enter__(self) -> list[int]:
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


# Recipes that do not fit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "architecture.config.classes=9",
            "has 9 classes, the data set 'digits' has 10; set architecture.config.classes=10",
        ),
        ("architecture.config.pixels=[3, 8, 8]", r"wants input 'pixels' with rows of shape \[3, 8, 8\]"),
        ("architecture.config.pixel=[1, 8, 8]", "has no option 'pixel'; did you mean 'pixels'"),
        ("architecture.name=mpl", "there is no architecture 'mpl'; did you mean 'mlp'"),
        ("augment=[forget]", "does not fit together: KeyError .'token_ids'. on rows of 'digits'"),
        (
            "small_images={scale: 0.5, epochs: 0.5}",
            "does not fit together: RuntimeError .* compare its augment, small_images",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_it_starts(digits: Dataset, change: str, says: str) -> None:
    with pytest.raises(InvalidRecipe, match=says):
        build_module(recipe(change), digits)


def test_an_embedding_that_is_too_small_for_the_ids_is_refused(digits: Dataset) -> None:
    ids = np.tile(np.array([2, 3, 0], np.int64), (len(digits.train), 1))
    ids[5, 1] = 50
    text = dataclasses.replace(digits, train=dataclasses.replace(digits.train, inputs={"token_ids": ids}))
    config = "{vocabulary: 50, max_tokens: 3, classes: 10, width: 8, heads: 2}"
    made = recipe("architecture={name: text-transformer, config: " + config + "}")
    with pytest.raises(InvalidRecipe, match=r"does not fit together: IndexError"):
        build_module(made, text)


# Going on


def test_fine_tuning_goes_on_from_the_weights_it_is_given(digits: Dataset) -> None:
    made = recipe("epochs=8")
    result = fitted(made, digits)
    before = accuracy(result.module, digits)
    tuned = fine_tune(result.module, made, digits, epochs=1, learning_rate=1e-5)
    assert not tuned.module.training
    assert not tuned.hurried
    assert accuracy(tuned.module, digits) == pytest.approx(before, abs=0.05)


def test_training_that_has_too_little_time_ends_with_the_best_that_it_had_and_as_calmly_as_a_short_one(
    digits: Dataset,
) -> None:
    """There is time for two epochs and a half of twenty."""
    made = recipe("epochs=20", *PLAIN, "batch_size=64", "schedule.warmup=0")
    steps = len(digits.train) // 64
    watch = Watch()
    ended = fit(build_module(made, digits), made, digits, callbacks=[watch], deadline=watch.deadline(2.5 * steps))
    assert ended.hurried
    assert len(ended.epochs) == 3
    assert watch.now == pytest.approx(2.5 * steps, abs=1)
    assert ended.best == 1 + max(range(3), key=lambda number: ended.epochs[number].metrics[MONITORED])
    rates = [epoch.metrics["learning_rate"] for epoch in ended.epochs]
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] < 0.05 * made.optimizer.learning_rate
    unhurried = fit(build_module(made, digits), made, digits, callbacks=[watch], deadline=watch.deadline(1000 * steps))
    assert (unhurried.hurried, len(unhurried.epochs)) == (False, 20)


def test_zeros_that_there_was_no_time_for_are_told(digits: Dataset) -> None:
    made = recipe("epochs=8", *PLAIN, "pruning={kind: magnitude, sparsity: 0.5}")
    watch = Watch()
    with pytest.raises(OutOfTime, match="before all the zeros were there"):
        fit(build_module(made, digits), made, digits, callbacks=[watch], deadline=watch.deadline(1))


class Watch(Callback):
    """A clock that ticks once for each step of a training that it is a callback of."""

    now = 0.0

    def deadline(self, for_s: float) -> Deadline:
        self.now = 0.0
        return Deadline(for_s, clock=lambda: self.now)

    def on_train_batch_end(self, *_: object) -> None:
        self.now += 1


def test_fine_tuning_learns_from_a_teacher_as_the_recipe_says_but_for_the_layers_that_it_names(digits: Dataset) -> None:
    """Labels that are all the same count for nothing beside a teacher who has the whole weight."""
    made = recipe("epochs=8", "distillation={teacher: models:/other/1, weight: 1, features: {gone: gone}}")
    plain = made.model_copy(update={"distillation": None})
    teacher = fitted(plain, digits).module
    wrong = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=digits.train.labels * 0))
    alone, taught = (
        fine_tune(build_module(plain, digits), made, wrong, epochs=8, learning_rate=1e-2, teacher=each).module
        for each in (None, teacher)
    )
    assert accuracy(alone, digits) < 0.3
    assert accuracy(taught, digits) > accuracy(teacher, digits) - 0.1


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_a_run_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(
    digits: Dataset, tmp_path: Path, name: str
) -> None:
    made = load_recipe(name, changes=["epochs=4"])
    whole = fitted(made, digits, tmp_path / "whole")
    for stop_at in stops(1, 3):
        with pytest.raises(Stopped):
            fit(build_module(made, digits), made, digits, place=tmp_path / "cut", on_epoch=stop_at)
    told: list[Epoch] = []
    cut = fit(build_module(made, digits), made, digits, place=tmp_path / "cut", on_epoch=told.append)
    assert [epoch.number for epoch in told] == [3, 4]
    assert same(weights(cut.module), weights(whole.module))
    assert (cut.epochs, cut.best) == (whole.epochs, whole.best)


def stops(*numbers: int) -> "Iterator[Stop]":
    return (Stop(number) for number in numbers)


class Stop:
    """Raises when it is told epoch `number`, whose checkpoint is not written then."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, epoch: Epoch) -> None:
        if epoch.number == self._number:
            raise Stopped
