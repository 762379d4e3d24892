"""One training that was not interrupted, for the tests that look at what it left, and for those that compare with it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from seatrial.settings import Settings
from seatrial_training.train import Registered, train
from tests.training.killed import CHANGES, RECIPE


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The version that `seatrial train` made, in a registry of its own. Tests only read it."""

    registered: Registered
    settings: Settings
    told: tuple[str, ...]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Whole:
    from seatrial_training.recipe import load_recipe

    home = tmp_path_factory.mktemp("whole")
    shutil.copyfile(migrated_store, home / "mlflow.db")
    settings, told = Settings(home=home), list[str]()
    registered = train(load_recipe(RECIPE, changes=CHANGES), settings, tell=told.append)
    return Whole(registered=registered, settings=settings, told=tuple(told))
