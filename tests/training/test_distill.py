"""A student learns from a registered version: on real digits, with small networks and few epochs."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import mlflow.artifacts
import pytest
import torch
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe, InvalidSource, NotInRegistry
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_training.ancestor import ancestry, pinned
from seatrial_training.data import Dataset, load_dataset
from seatrial_training.distill import Lesson, answers_apart
from seatrial_training.fit import build_module, fit
from seatrial_training.recipe import Distillation, Recipe, load_recipe
from seatrial_training.retrainable import Retrainable, read_retrainable
from seatrial_training.train import train
from tests.digits import ExportedDigits
from tests.training.conftest import Whole

pytestmark = pytest.mark.xdist_group("training")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", Settings())


@pytest.fixture(scope="module")
def teacher(digits: Dataset) -> nn.Module:
    made = load_recipe("digits-mlp", changes=["epochs=6"])
    return fit(build_module(made, digits), made, digits).module


def student(*changes: str) -> Recipe:
    plain = ("averaging=null", "early_stopping=null", "label_smoothing=0", "architecture.config.hidden=[24]")
    return load_recipe("digits-mlp", changes=("epochs=6", "architecture.config.dropout=0", *plain, *changes))


def taught(*changes: str) -> Recipe:
    return student("distillation.teacher=models:/digits-mlp/1", *changes)


def answers(module: nn.Module, dataset: Dataset) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = module(torch.from_numpy(dataset.test.inputs["pixels"]))
    return logits


# The loss


def test_answers_are_as_far_apart_as_their_softened_divergence_times_the_squared_temperature() -> None:
    learnt, expected, temperature = [[1.0, 3.0]], [[2.0, 0.0]], 2.0

    def soft(logits: list[float]) -> list[float]:
        powers = [math.exp(logit / temperature) for logit in logits]
        return [power / sum(powers) for power in powers]

    p, q = soft(expected[0]), soft(learnt[0])
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = answers_apart(torch.tensor(learnt), torch.tensor(expected), temperature=temperature)
    assert float(found) == pytest.approx(4 * divergence, rel=1e-5)
    assert float(answers_apart(torch.tensor(learnt), torch.tensor(learnt), temperature=3)) == pytest.approx(0, abs=1e-6)


# What a student becomes


def test_a_student_that_never_sees_a_label_answers_as_its_teacher_on_rows_that_neither_saw(
    digits: Dataset, teacher: nn.Module
) -> None:
    made = taught("distillation.weight=1", "distillation.temperature=2", "epochs=12", "optimizer.learning_rate=1e-2")
    unlabelled = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=digits.train.labels * 0))
    module = build_module(made, digits)
    expected, before = answers(teacher, digits), answers(module.eval(), digits)
    after = answers(fit(module, made, unlabelled, teacher=teacher).module, digits)
    apart = [float(answers_apart(each, expected, temperature=1)) for each in (before, after)]
    assert apart[1] < apart[0] / 10
    right = [float((each.argmax(dim=1).numpy() == digits.test.labels).mean()) for each in (before, after, expected)]
    assert right[0] < 0.3
    assert right[1] > right[2] - 0.03


def test_what_a_projection_of_the_students_features_lacks_of_the_teachers_is_added_and_trains_both(
    digits: Dataset, teacher: nn.Module
) -> None:
    pixels = torch.from_numpy(digits.train.inputs["pixels"][:8])
    learner = build_module(student(), digits)
    plain, hinted = (
        Lesson(
            Distillation(teacher="models:/digits-mlp/1", features=features, features_weight=3),
            teacher=teacher, student=learner, example={"pixels": pixels},
        )
        for features in ({}, {"hidden.1": "hidden.1"})
    )  # fmt: skip
    logits, with_features = hinted.attend(learner, {"pixels": pixels})
    _, without = plain.attend(learner, {"pixels": pixels})
    [project] = hinted.projections
    learnt, expected = (each.get_submodule("hidden.0")(pixels.flatten(1)).relu() for each in (learner, teacher))
    assert learnt.shape[-1] == 24
    assert expected.shape[-1] == 128
    lacking = (project(learnt) - expected).square().mean()
    assert torch.equal(logits, learner(pixels))
    assert (with_features - without).item() == pytest.approx(3 * lacking.item(), rel=1e-4)
    learning = [*project.parameters(), learner.get_parameter("hidden.0.weight")]
    assert all(gradient.any() for gradient in torch.autograd.grad(with_features - without, learning))
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_features_of_images_are_projected_at_each_position(digits: Dataset) -> None:
    """And of a network that asks its layers twice, for an image and its mirror image, those of the image count."""
    config = "{pixels: [1, 8, 8], classes: 10, width: %d, mirrored: true}"
    narrow, wide = (
        build_module(student("architecture={name: resnet9, config: " + config % width + "}"), digits).eval()
        for width in (3, 4)
    )
    pixels = torch.from_numpy(digits.train.inputs["pixels"][:2])
    chosen = Distillation(teacher="models:/digits-mlp/1", features={"layer2": "layer2"})
    lesson = Lesson(chosen, teacher=wide, student=narrow, example={"pixels": pixels})
    [project] = lesson.projections
    assert project.weight.shape == (16, 12, 1, 1)
    _, apart = lesson.attend(narrow, {"pixels": pixels})
    with torch.no_grad():
        learnt, expected = (
            nn.Sequential(*(each.get_submodule(name) for name in ("prepare", "layer1", "layer2")))(pixels)
            for each in (narrow, wide)
        )
        answered = answers_apart(narrow(pixels), wide(pixels), temperature=4)
        assert apart.item() == pytest.approx(
            0.9 * float(answered) + float((project(learnt) - expected).square().mean()), rel=1e-4
        )


def test_the_teacher_is_left_as_it_is_and_the_projections_stay_behind(digits: Dataset, teacher: nn.Module) -> None:
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    made = taught("epochs=1", "averaging.decay=0.5", "distillation.features={hidden.0: hidden.0}")
    learnt = fit(build_module(made, digits), made, digits, teacher=teacher).module
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    assert learnt.state_dict().keys() == build_module(made, digits).state_dict().keys()
    assert not any(layer._forward_hooks for layer in (*learnt.modules(), *teacher.modules()))


# What does not fit


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"hiden.0": "hidden.0"}, r"the student has no layer 'hiden.0'; did you mean 'hidden.0'"),
        ({"hidden.0": "c5"}, r"the teacher has no layer 'c5'"),
    ],
)
def test_layers_that_there_are_not_are_named(
    digits: Dataset, teacher: nn.Module, features: dict[str, str], says: str
) -> None:
    chosen = Distillation(teacher="models:/digits-mlp/1", features=features)
    pixels = torch.from_numpy(digits.train.inputs["pixels"][:2])
    with pytest.raises(InvalidRecipe, match=says):
        Lesson(chosen, teacher=teacher, student=build_module(student(), digits), example={"pixels": pixels})


def test_a_teacher_of_other_shapes_is_refused(digits: Dataset) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    made = taught()
    with pytest.raises(InvalidRecipe, match="the teacher models:/digits-mlp/1 cannot be asked rows of 'digits'"):
        fit(build_module(made, digits), made, digits, teacher=wide)


# In the registry


class Stopped(Exception):
    pass


def test_a_student_is_registered_with_its_teacher_and_an_interrupted_lesson_goes_on(
    whole: Whole, tmp_path: Path
) -> None:
    """As the command does it: the alias is pinned, the first process dies in its second epoch, the next one finishes."""
    settings = ExportedDigits(home=whole.settings.home).copy(tmp_path / "home").settings
    client = EmbeddedRegistry(settings).client
    client.set_registered_model_alias("digits-mlp", "champion", "1")
    made = student("epochs=3", "model=taught", "distillation.teacher=models:/digits-mlp@champion")
    with pytest.raises(Stopped):
        train(made, settings, callbacks=[Stop(epoch=1)])
    told: list[str] = []
    registered = train(made, settings, tell=told.append)

    assert told[0] == f"going on with run {registered.version.run_id}, which was interrupted"
    version = client.get_model_version("taught", "1")
    teacher = client.get_model_version("digits-mlp", "1")
    tags = {key: value for key, value in version.tags.items() if "teacher" in key}
    assert tags["seatrial.teacher"] == "models:/digits-mlp/1"
    assert tags["seatrial.teacher_digest"].startswith("sha256:")
    run = client.get_run(registered.version.run_id)
    assert run.data.tags.items() >= tags.items()
    assert run.inputs is not None
    assert [f"models:/{each.model_id}" for each in run.inputs.model_inputs] == [teacher.source]
    files = read_retrainable(Path(mlflow.artifacts.download_artifacts("models:/taught/1")))
    assert isinstance(files, Retrainable)
    assert files.recipe.distillation is not None
    assert files.recipe.distillation.teacher == "models:/digits-mlp/1"
    assert "learnt from the answers of `models:/digits-mlp/1`" in (version.description or "")
    again = fit_without_interruption(files.recipe, whole)
    assert all(torch.equal(weight, again[name]) for name, weight in files.module().state_dict().items())


class Stop(pl.Callback):
    def __init__(self, *, epoch: int) -> None:
        self._epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        if trainer.current_epoch == self._epoch:
            raise Stopped


def fit_without_interruption(made: Recipe, whole: Whole) -> dict[str, Tensor]:
    dataset = load_dataset(made.data, whole.settings)
    return fit(build_module(made, dataset), made, dataset, teacher=whole.registered.trained.module).module.state_dict()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("distillation.teacher=models:/nobody@champion", NotInRegistry, "has no nobody@champion"),
        ("distillation.teacher=digits-mlp", InvalidSource, "names no model version"),
        ("start=models:/digits-mlp/1", InvalidRecipe, r"is a 'mlp' with .*16.*; set architecture to that"),
    ],
)
def test_an_ancestor_that_will_not_do_is_refused_before_a_run_begins(
    whole: Whole, change: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        train(student(change), whole.settings)


def test_a_start_gives_its_weights(whole: Whole, digits: Dataset) -> None:
    """At a rate of nearly nothing the weights stay what they were, though the seed is another."""
    made = student(
        "start=models:/digits-mlp/1", "architecture.config.hidden=[16]", "architecture.config.dropout=0.2", "seed=5"
    )
    found = ancestry(pinned(made, whole.settings), digits, whole.settings)
    assert found.start is not None
    trained = whole.registered.trained.module.state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in found.start.module.state_dict().items())
    assert found.tags["seatrial.start"] == "models:/digits-mlp/1"
    assert found.teacher is None
