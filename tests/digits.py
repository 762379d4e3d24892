"""The digits model, really trained and really exported, once for all tests of a run.

`python -m tests.digits HOME` makes it, in a process of its own, in a home that has an MLflow database already.
"""

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seatrial.bundle import Bundle, open_bundle
from seatrial.settings import Settings

if TYPE_CHECKING:
    from seatrial_export.report import Report

NAME, VERSION = "digits-cnn", "1"
EPOCHS = 20
REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class ExportedDigits:
    """`models:/digits-cnn/1` with its bundle, in `home`. Tests read it; one that writes takes a copy."""

    home: Path

    @property
    def made(self) -> bool:
        return (self.home / REPORT).exists()

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home)

    @cached_property
    def report(self) -> "Report":
        from seatrial_export.report import Report

        return msgspec.json.decode((self.home / REPORT).read_bytes(), type=Report)

    @cached_property
    def bundle(self) -> Bundle:
        digest = self.report.bundles["onnx-cpu"]
        return open_bundle(self.settings.bundles / digest.replace(":", "-"), expected=digest)

    def copy(self, home: Path) -> "ExportedDigits":
        """All of it in another home, whose database names its own artifacts."""
        shutil.copytree(self.home, home)
        before, after = ((each / "artifacts").as_uri() for each in (self.home, home))
        with closing(sqlite3.connect(home / "mlflow.db")) as store, store:
            for table, column in _PLACES:
                store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, after))
        return ExportedDigits(home=home)


_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's tables keep addresses of artifacts."""


def make(home: Path) -> None:
    from seatrial.registry import ModelRef
    from seatrial_export.export import export
    from seatrial_export.request import Request
    from seatrial_training.recipe import load_recipe
    from seatrial_training.train import train

    settings = Settings(home=home, export={"measure_s": 0.5})
    with _one_core():
        train(load_recipe("digits-cnn", changes=(f"epochs={EPOCHS}",)), settings)
    exported = export(Request(ref=ModelRef(name=NAME, version=VERSION)), settings)
    (home / REPORT).write_bytes(exported.report.encode())


@contextmanager
def _one_core() -> Iterator[None]:
    """On cores that others use too, a second thread of so small a model waits more than it works."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
