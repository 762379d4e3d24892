"""The registry through MLflow itself, in this process: what a local database needs, and all that writes.

Importing this module imports MLflow (seconds, 100 MB). No server does: it starts `seatrial.registry.watch`.
"""

import errno
import logging
import os
import shutil
import tempfile
from pathlib import Path

import mlflow
import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from sqlalchemy.exc import OperationalError

from seatrial.errors import NotInRegistry, RegistryUnreachable
from seatrial.files import telling_of_full_disk
from seatrial.registry import PAGE, ModelRef, ModelVersion
from seatrial.settings import Settings

SCANTY_BYTES = 64 * 1024
"""Where less is free after a download that failed, that is why."""


class EmbeddedRegistry:
    """Reads as every `Registry` does; `client` is MLflow's own, for writing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.client = connect(settings)

    def resolve(self, ref: ModelRef) -> ModelVersion:
        try:
            if ref.version is None:
                found = self.client.get_model_version_by_alias(ref.name, ref.alias or "")
            else:
                found = self.client.get_model_version(ref.name, ref.version)
        except MlflowException as error:
            raise self._explain(error, f"no {ref}; `seatrial status` lists what there is") from error
        return _version(found)

    def aliased(self) -> list[ModelVersion]:
        refs: dict[ModelRef, None] = {}
        token = None
        while True:
            page = self.client.search_registered_models(max_results=PAGE, page_token=token)
            refs |= {ModelRef(name=model.name, version=str(v)): None for model in page for v in model.aliases.values()}
            if not (token := page.token):
                return [self.resolve(ref) for ref in refs]

    def fetch(self, run_id: str, artifact: str, into: Path) -> None:
        with telling_of_full_disk(into), tempfile.TemporaryDirectory(dir=into.parent) as aside:
            try:
                downloaded = self.client.download_artifacts(run_id, artifact, dst_path=aside)
            except (MlflowException, OSError) as error:
                if shutil.disk_usage(aside).free < SCANTY_BYTES:  # MLflow does not pass on why it failed
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise NotInRegistry(f"run {run_id} has no artifact '{artifact}' ({error})") from error
            shutil.move(downloaded, into)

    def close(self) -> None:
        """Nothing: MLflow keeps its connections for the life of the process."""

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, created if need be with its artifacts where the settings want them."""
        if (found := self.client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name, artifact_location=self._artifacts_of(name)))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return self.experiment(name)

    def _artifacts_of(self, name: str) -> str | None:
        location = self._settings.artifact_location
        return f"{location}/{name}" if location else None

    def _explain(self, error: MlflowException, absent: str) -> NotInRegistry | RegistryUnreachable:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            return NotInRegistry(f"the registry at {self._settings.tracking_uri} has {absent}")
        return RegistryUnreachable(f"the registry at {self._settings.tracking_uri} does not answer: {error}")


def download(version: ModelVersion, into: Path) -> Path:
    """Fetch the files of `version`; where they lie."""
    into.mkdir(parents=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(str(version), dst_path=str(into)))
    except (MlflowException, OSError) as error:
        raise NotInRegistry(f"the files of {version} cannot be fetched from {version.source}: {error}") from error


def connect(settings: Settings) -> mlflow.MlflowClient:
    """MLflow's client for the tracking address of `settings`, which also becomes the default of this process.

    A missing local database is created and migrated here, which takes seconds.
    """
    for chatty in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # type: ignore[no-untyped-call] # MLflow's own
    if not settings.registry_is_remote:
        settings.home.mkdir(parents=True, exist_ok=True)
    uri, before = settings.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if before is None:  # MLflow wrote it into the environment too, where the settings of another home would find it
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before
    try:
        client = mlflow.MlflowClient()
        client.search_experiments(max_results=1)
    except (MlflowException, OperationalError) as error:
        raise RegistryUnreachable(
            f"the registry at {uri} does not answer: {error}. Is it running, and is MLFLOW_TRACKING_URI right?"
        ) from error
    return client


def _version(found: MlflowVersion) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        source=found.source or "",
        tags=dict(found.tags),
        aliases=tuple(found.aliases),
    )
