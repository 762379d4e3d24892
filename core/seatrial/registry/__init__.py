"""Models and their versions, as MLflow keeps them, behind one reading interface with two forms.

*rest* asks a tracking server over HTTP and needs nothing but `httpx`; *embedded* uses MLflow itself, in this process,
and is what a local database needs. Only training, export, promotion and the watcher child load the second.
"""

import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from seatrial.errors import InvalidSource, MissingExtra
from seatrial.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*( [A-Za-z0-9_.-]+)*")
_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_LOGGED_MODEL = re.compile(r"models:/(?P<id>m-[0-9a-f]+)")

EXPORT_RUN_TAG = "seatrial.export_run"
BUNDLE_TAG = "seatrial.bundle."
PAGE = 1000
"""Models that are asked for at a time; MLflow gives no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """What somebody calls a model version: by number, or by an alias that may move."""

    name: str
    version: str | None = None
    alias: str | None = None

    @staticmethod
    def parse(text: str) -> "ModelRef":
        """Read `NAME@ALIAS`, `NAME/VERSION`, or either behind `models:/`. Raises `InvalidSource`."""
        match = _REFERENCE.fullmatch(text)
        if not match or not _NAME.fullmatch(match["name"]):
            raise InvalidSource(
                f"'{text}' names no model version; write NAME@ALIAS, NAME/VERSION or models:/NAME/VERSION"
            )
        return ModelRef(name=match["name"], version=match["version"], alias=match["alias"])

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a registered model. `source` is where MLflow keeps its files; `run_id` may be empty."""

    name: str
    version: str
    run_id: str
    source: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def logged_model(self) -> str | None:
        """The id of the LoggedModel that it was made from, which MLflow keeps nowhere but in its source."""
        found = _LOGGED_MODEL.fullmatch(self.source)
        return found["id"] if found else None


class Registry(Protocol):
    """Reads. Every method raises `RegistryUnreachable` or `NotInRegistry`, saying what to do."""

    def resolve(self, ref: ModelRef) -> ModelVersion: ...

    def aliased(self) -> Collection[ModelVersion]:
        """Every version of any model that an alias points at."""

    def fetch(self, run_id: str, artifact: str, into: Path) -> None:
        """Download one file, `artifact` below the artifacts of a run, to the path `into`."""

    def close(self) -> None: ...


def open_registry(settings: Settings) -> Registry:
    """The form that fits the tracking address of `settings`; no question is asked yet."""
    if settings.registry_is_remote:
        from seatrial.registry.rest import RestRegistry

        return RestRegistry(settings)
    try:
        embedded = importlib.import_module("seatrial.registry.embedded")
    except ModuleNotFoundError as missing:
        raise MissingExtra(missing.name or "mlflow", extra="training") from missing
    registry: Registry = embedded.EmbeddedRegistry(settings)
    return registry
