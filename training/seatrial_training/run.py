"""One training run, which outlives its process: a place on this disk and a run in MLflow.

The place is named by the recipe and the data, so the same command finds it again after a kill, and with it the MLflow run
that it began. Knows nothing of what is trained.
"""

import fcntl
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Metric, Param
from mlflow.exceptions import MlflowException

from seatrial.errors import Misused, RegistryUnreachable
from seatrial.files import telling_of_full_disk, write_whole
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_training.ancestor import NO_ANCESTRY, Ancestry
from seatrial_training.data import Dataset
from seatrial_training.fit import Epoch
from seatrial_training.recipe import Recipe

EXPERIMENT = "seatrial/train"
TOKEN = "seatrial.run"
RECIPE_TAG, DATA_TAG = "seatrial.recipe", "seatrial.data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`place` is this run's alone while it is open. `resumed` tells whether an earlier process began it."""

    id: str
    experiment: str
    place: Path
    registry: EmbeddedRegistry
    ancestry: Ancestry
    resumed: bool

    @property
    def client(self) -> MlflowClient:
        return self.registry.client

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Log those of `epochs` that MLflow does not have yet, so that one that was trained twice is there once."""
        history = self.client.get_metric_history(self.id, "training_loss")
        logged = max((metric.step for metric in history), default=0)
        now = _now_ms()
        metrics = [
            Metric(name, value, now, epoch.number)
            for epoch in epochs
            if epoch.number > logged
            for name, value in epoch.metrics.items()
        ]
        if metrics:
            self.client.log_batch(self.id, metrics=metrics)

    def finish(self) -> None:
        """Nothing is left to do: the next run of the same recipe is another one."""
        self.client.set_terminated(self.id, "FINISHED")
        shutil.rmtree(self.place)


@contextmanager
def open_run(
    recipe: Recipe, dataset: Dataset, settings: Settings, *, ancestry: Ancestry = NO_ANCESTRY, fresh: bool = False
) -> Iterator[Run]:
    """The unfinished run of this recipe on this data, or a new one; with `fresh`, an unfinished one is given up.

    Raises `Misused` while another process has it open. An error of MLflow's inside the block says how to go on.
    """
    key = f"{recipe.name}-{_key(recipe, dataset)}"
    place = settings.home / "runs" / key
    with telling_of_full_disk(place), _only_one(place):
        registry = EmbeddedRegistry(settings)
        try:
            experiment = registry.experiment(EXPERIMENT)
            if fresh and place.exists():
                _give_up(registry.client, experiment, place)
            token, known = _token(place)
            run_id = _find(registry.client, experiment, token) or _begin(
                registry.client, experiment, token, recipe, dataset, ancestry
            )
            yield Run(
                id=run_id, experiment=experiment, place=place, registry=registry, ancestry=ancestry, resumed=known
            )
        except MlflowException as error:
            raise RegistryUnreachable(
                f"the registry at {settings.tracking_uri} failed: {error}. What was trained so far is in {place}; "
                "the same command goes on from it"
            ) from error


def _key(recipe: Recipe, dataset: Dataset) -> str:
    return hashlib.sha256(f"{recipe.digest} {dataset.digest}".encode()).hexdigest()[:12]


@contextmanager
def _only_one(place: Path) -> Iterator[None]:
    """Hold the lock of `place`, which the kernel releases when the process ends, however it ends."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Misused(
                f"another process trains this recipe in {place}; wait for it, or change the recipe"
            ) from error
        yield


def _token(place: Path) -> tuple[str, bool]:
    """The name that the run's tag in MLflow has, and whether it was given before."""
    file = place / "run.json"
    if file.exists():
        return str(json.loads(file.read_text())["token"]), True
    token = uuid.uuid4().hex
    write_whole(file, json.dumps({"token": token}).encode())
    return token, False


def _find(client: MlflowClient, experiment: str, token: str) -> str | None:
    found = client.search_runs([experiment], filter_string=f"tags.`{TOKEN}` = '{token}'", max_results=1)
    if not found:
        return None
    client.update_run(found[0].info.run_id, status="RUNNING")
    return str(found[0].info.run_id)


def _begin(
    client: MlflowClient, experiment: str, token: str, recipe: Recipe, dataset: Dataset, ancestry: Ancestry
) -> str:
    tags = {TOKEN: token, RECIPE_TAG: recipe.name, DATA_TAG: dataset.digest, **ancestry.tags}
    run_id = client.create_run(experiment, tags=tags, run_name=recipe.name).info.run_id
    params = [Param(name, str(value)) for name, value in _flat(recipe.model_dump(mode="json"))]
    client.log_batch(run_id, params=params)
    entity = MlflowDataset(
        name=dataset.name, digest=dataset.digest[:36], source_type="seatrial", source=json.dumps({"name": dataset.name})
    )
    client.log_inputs(
        run_id,
        datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])],
        models=[LoggedModelInput(model) for model in ancestry.logged_models],
    )
    return str(run_id)


def _give_up(client: MlflowClient, experiment: str, place: Path) -> None:
    token, known = _token(place)
    if known and (run_id := _find(client, experiment, token)):
        client.set_terminated(run_id, "KILLED")
    shutil.rmtree(place)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _now_ms() -> int:
    return int(time.time() * 1000)
