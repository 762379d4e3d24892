"""Recipes: what they may say, and what is said to those who misspell."""

from pathlib import Path

import pytest

from seatrial.errors import InvalidRecipe
from seatrial_training.recipe import Recipe, built_in_recipes, load_recipe

SMALLEST = "name: mine\ndescription: small\ndata: digits\narchitecture: {name: mlp}\nepochs: 3\n"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(SMALLEST)
    return file


def test_the_recipes_that_the_issue_names_come_with_us() -> None:
    assert list(built_in_recipes()) == [
        "cifar10-resnet",
        "cifar10-resnet18",
        "clinc150-minilm",
        "clinc150-transformer",
        "digits-cnn",
        "digits-cnn-distilled",
        "digits-cnn-int8",
        "digits-mlp",
    ]


@pytest.mark.parametrize("recipe", built_in_recipes().values(), ids=lambda recipe: recipe.name)
def test_a_written_recipe_reads_back_as_an_equal_one(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(recipe.as_yaml())
    again = load_recipe(str(tmp_path / "again.yaml"))
    assert again == recipe
    assert again.digest == recipe.digest


def test_what_is_not_written_has_its_default(mine: Path) -> None:
    recipe = load_recipe(str(mine))
    assert (recipe.batch_size, recipe.precision, recipe.averaging, recipe.model_name) == (64, "auto", None, "mine")


def test_a_default_that_is_written_out_changes_nothing(mine: Path) -> None:
    assert load_recipe(str(mine), changes=["batch_size=64"]).digest == load_recipe(str(mine)).digest


def test_set_changes_one_value_wherever_it_is(mine: Path) -> None:
    changes = ["epochs=5", "optimizer.learning_rate=1e-3", "averaging.decay=0.9", "model=other", "augment=[crop, flip]"]
    recipe = load_recipe(str(mine), changes=changes)
    assert recipe.epochs == 5
    assert recipe.optimizer.learning_rate == 0.001
    assert recipe.averaging is not None
    assert recipe.averaging.decay == 0.9
    assert recipe.model_name == "other"
    assert recipe.augment == ("crop", "flip")
    assert recipe.digest != load_recipe(str(mine)).digest


def test_set_null_takes_a_group_away() -> None:
    assert load_recipe("digits-mlp", changes=["averaging=null"]).averaging is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("epoch=5", "there is no 'epoch'; did you mean 'epochs'?"),
        ("optimizer.learnig_rate=1", "there is no 'optimizer.learnig_rate'; did you mean 'optimizer.learning_rate'?"),
        ("averaging.dekay=0.9", "there is no 'averaging.dekay'; did you mean 'averaging.decay'?"),
        ("optimizer.name=adam", "'optimizer.name' is 'adam': input should be 'adamw' or 'sgd'"),
        ("epochs=0", "'epochs' is 0: input should be greater than or equal to 1"),
        ("epochs=many", "'epochs' is 'many'"),
        ("epochs='5'", "'epochs' is '5'"),
        ("small_images.scale=0.5", "'small_images.epochs' is missing"),
        ("epochs", "'epochs' changes nothing; write KEY=VALUE"),
        ("epochs.more=5", "goes into 'epochs', which is 3, not a group"),
        ("augment=[crop", "--set augment=[crop is not YAML"),
    ],
)
def test_a_wrong_value_is_named_with_the_one_that_was_meant(mine: Path, change: str, says: str) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        load_recipe(str(mine), changes=[change])
    assert says in str(refused.value)


def test_every_mistake_is_named_at_once(mine: Path) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        load_recipe(str(mine), changes=["epoch=5", "batch_size=0"])
    assert len(str(refused.value).splitlines()) == 2


def test_a_recipe_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="there is no recipe 'digit-cnn'; did you mean 'digits-cnn'"):
        load_recipe("digit-cnn")
    with pytest.raises(InvalidRecipe, match="or give a file"):
        load_recipe(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("text", ["- a\n- list\n", "name: [", ""])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(InvalidRecipe, match=r"wrong\.yaml"):
        load_recipe(str(tmp_path / "wrong.yaml"))
