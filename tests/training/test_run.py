"""A run outlives its process: killed at any place, the same command finishes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from mlflow import MlflowClient

from seatrial.errors import Misused
from seatrial.registry.embedded import connect
from seatrial.settings import Settings
from seatrial_training.data import Dataset, load_dataset
from seatrial_training.fit import Epoch
from seatrial_training.recipe import Recipe, load_recipe
from seatrial_training.run import open_run
from seatrial_training.train import train
from tests.conftest import ROOT
from tests.training.conftest import Whole
from tests.training.killed import CHANGES, RECIPE

pytestmark = pytest.mark.xdist_group("training")

FAST = ("in-the-third-epoch",)
SLOW = (
    "asked-to-end",
    "in-the-first-epoch",
    "before-the-program",
    "after-the-program",
    "before-the-version",
    "after-the-version",
)
KILLED, ENDED = "-9", "1"


@pytest.fixture(scope="module")
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    """A folder with one home for each place that the tests of this run ask for, in which a training died there."""
    folder = tmp_path_factory.mktemp("killed")
    places = sorted(set(filter(None, map(_place, request.session.items))))
    for place in places:
        (folder / place).mkdir()
        shutil.copyfile(migrated_store, folder / place / "mlflow.db")
    command = [sys.executable, "-m", "tests.training.killed", *(f"{place}={folder / place}" for place in places)]
    # MLflow hands its address to child processes through the environment, where it would win over the home
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(command, check=True, cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, text=True)
    ended = done.stdout.split()
    expected = [word for place in places for word in (place, ENDED if place == "asked-to-end" else KILLED)]
    assert ended == expected
    return folder


def _place(item: pytest.Item) -> str | None:
    """The place that the test asks for, if it does."""
    asks = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return str(asks["place"]) if "place" in asks else None


def versions(client: MlflowClient) -> list[str]:
    return [str(found.version) for found in client.search_model_versions(f"name = '{RECIPE}'")]


@pytest.mark.parametrize("place", [*FAST, *(pytest.param(place, marks=pytest.mark.slow) for place in SLOW)])
def test_a_killed_training_is_finished_by_the_same_command(place: str, killed: Path, whole: Whole) -> None:
    settings = Settings(home=killed / place)
    client = connect(settings)
    assert versions(client) == (["1"] if place == "after-the-version" else [])

    told: list[str] = []
    finished = train(load_recipe(RECIPE, changes=CHANGES), settings, tell=told.append)

    assert told[0] == f"going on with run {finished.version.run_id}, which was interrupted"
    assert versions(client) == ["1"]
    weights, expected = (each.trained.module.state_dict() for each in (finished, whole.registered))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert (run.info.run_id, run.info.status) == (finished.version.run_id, "FINISHED")
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    history = client.get_metric_history(run.info.run_id, "training_loss")
    assert [metric.value for metric in history] == [
        epoch.metrics["training_loss"] for epoch in whole.registered.trained.epochs
    ]
    pixels = torch.from_numpy(finished.trained.dataset.test.inputs["pixels"][:4])
    answers = mlflow.pytorch.load_model("models:/digits-mlp/1")(pixels)
    torch.testing.assert_close(answers, finished.trained.module(pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["asked-to-end"])
def test_a_training_that_is_asked_to_end_says_how_to_go_on(place: str, killed: Path) -> None:
    said = (killed / place / "said").read_text()
    assert "interrupted; the same command goes on after the last whole epoch" in said
    assert "Traceback" not in said


# Without training


@pytest.fixture
def digits() -> Dataset:
    return load_dataset("digits", Settings())


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPE)


def status(settings: Settings, run_id: str) -> str:
    return str(connect(settings).get_run(run_id).info.status)


def test_only_one_process_trains_a_recipe(recipe: Recipe, digits: Dataset, settings: Settings) -> None:
    with (
        open_run(recipe, digits, settings),
        pytest.raises(Misused, match="another process trains this recipe"),
        open_run(recipe, digits, settings),
    ):
        pass


def test_another_recipe_is_another_run(recipe: Recipe, digits: Dataset, settings: Settings) -> None:
    other = load_recipe(RECIPE, changes=["seed=1"])
    with open_run(recipe, digits, settings) as one, open_run(other, digits, settings) as two:
        assert one.id != two.id
        assert one.place != two.place


def test_a_run_that_was_left_is_gone_on_with_and_a_finished_one_is_not(
    recipe: Recipe, digits: Dataset, settings: Settings
) -> None:
    with open_run(recipe, digits, settings) as left:
        assert not left.resumed
    with open_run(recipe, digits, settings) as again:
        assert (again.id, again.resumed) == (left.id, True)
        again.finish()
    assert status(settings, left.id) == "FINISHED"
    with open_run(recipe, digits, settings) as next_one:
        assert (next_one.id != left.id, next_one.resumed) == (True, False)


def test_fresh_gives_the_unfinished_run_up(recipe: Recipe, digits: Dataset, settings: Settings) -> None:
    with open_run(recipe, digits, settings) as left:
        (left.place / "something").write_text("of the old run")
    with open_run(recipe, digits, settings, fresh=True) as fresh:
        assert (fresh.id != left.id, fresh.resumed) == (True, False)
        assert not (fresh.place / "something").exists()
    assert status(settings, left.id) == "KILLED"


def test_an_epoch_that_is_told_twice_is_logged_once(recipe: Recipe, digits: Dataset, settings: Settings) -> None:
    epochs = [Epoch(number=number, metrics={"training_loss": 1 / number}) for number in (1, 2, 3)]
    with open_run(recipe, digits, settings) as run:
        run.log_epochs(epochs[:2])
        run.log_epochs(epochs)
        history = run.client.get_metric_history(run.id, "training_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
