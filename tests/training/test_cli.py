"""`seatrial train` as it is typed."""

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.commands import Typed, type_seatrial

pytestmark = pytest.mark.xdist_group("training")

Seatrial = Callable[..., Typed]


@pytest.fixture
def seatrial(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Seatrial:
    return functools.partial(type_seatrial, monkeypatch=monkeypatch, capsys=capsys)


def test_help_shows_an_example(seatrial: Seatrial) -> None:
    helped = seatrial("train", "--help")
    assert helped.code == 0
    assert "seatrial train digits-cnn --set epochs=5 --set optimizer.learning_rate=1e-3" in helped.out


def test_the_recipes_are_listed_with_what_they_are(seatrial: Seatrial) -> None:
    assert "digits-cnn            LeNet-5 on scikit-learn's" in seatrial("train", "--list").out
    listed = json.loads(seatrial("train", "--list", "--json").out)
    assert listed["cifar10-resnet"]["data"] == "cifar10"


def test_without_a_recipe_it_says_where_to_find_one(seatrial: Seatrial) -> None:
    wrong = seatrial("train")
    assert wrong.code == 2
    assert "`seatrial train --list` shows those that come with Seatrial" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["digit-cnn"], "InvalidRecipe", "did you mean 'digits-cnn'?"),
        (["digits-mlp", "--set", "epoch=1"], "InvalidRecipe", "there is no 'epoch'; did you mean 'epochs'?"),
        (
            ["digits-mlp", "--set", "data=digit"],
            "InvalidRecipe",
            "there is no data set 'digit'; did you mean 'digits'?",
        ),
        (["digits-mlp", "--set", "augment=[crip]"], "InvalidRecipe", "did you mean 'crop'?"),
        (["cifar10-resnet"], "DataMissing", "let SEATRIAL_DATA name the folder that holds cifar10-train.parquet"),
    ],
)
@pytest.mark.usefixtures("home")
def test_mistakes_are_said_with_what_to_do(seatrial: Seatrial, arguments: list[str], kind: str, says: str) -> None:
    failed = seatrial("train", *arguments, "--json")
    assert failed.code == 1
    error = json.loads(failed.out)["error"]
    assert error["type"] == kind
    assert says in error["message"]
    assert f"{kind}: {error['message']}" in failed.err
    assert "Traceback" not in failed.err


def test_a_training_says_what_it_does_and_gives_its_result_as_json(seatrial: Seatrial, home: Path) -> None:
    done = seatrial("train", "digits-mlp", "--set", "epochs=2", "--name", "mine", "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert (result["model"], result["name"], result["version"], result["epochs"]) == ("models:/mine/1", "mine", "1", 2)
    assert result["metric"] == "accuracy"
    assert 0.1 < result["value"] <= 1
    assert result["rows"] == 359
    lines = done.err.splitlines()
    assert lines[0].startswith("digits-mlp: A multi-layer perceptron")
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[3] == "trained 2 epochs; logging and registering"
    assert (home / "mlflow.db").exists()


def test_on_a_terminal_there_is_a_bar_that_counts_steps() -> None:
    from seatrial.settings import Settings
    from seatrial_training.data import load_dataset
    from seatrial_training.fit import build_module, fit
    from seatrial_training.progress import ProgressBar
    from seatrial_training.recipe import load_recipe

    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100, _environ={})
    digits, recipe = load_dataset("digits", Settings()), load_recipe("digits-mlp", changes=["epochs=2"])
    fit(build_module(recipe, digits), recipe, digits, callbacks=[ProgressBar(console)])
    assert "38/38" in terminal.getvalue()
    assert "validation accuracy" in terminal.getvalue()
