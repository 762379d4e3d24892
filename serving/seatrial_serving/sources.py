"""What `seatrial serve` was asked to serve: something on this disk, or a reference into the registry."""

import re
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from seatrial.bundle import MAIN, MANIFEST, Bundle, Driver, open_bundle
from seatrial.errors import BadRequest, InvalidSource
from seatrial.protocol import Tensor, decode_request
from seatrial.registry import ModelRef, open_registry
from seatrial.registry.bundles import fetch_fitting
from seatrial.settings import Serving, Settings
from seatrial_serving.ensemble import Find, Plan, read_ensemble
from seatrial_serving.generation import Identity
from seatrial_serving.triton import ensemble as triton
from seatrial_serving.triton.folder import TritonModel, TritonRepository
from seatrial_serving.tune.follow import follow

ENSEMBLE = ".toml"
FILES = (".onnx", ENSEMBLE)
LARGEST_EXAMPLE = 64 * 1024
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDisk:
    """A bundle's directory; or a bare ONNX file or a file that declares an ensemble, which nobody vouches for."""

    path: Path

    @property
    def declares_ensemble(self) -> bool:
        return self.path.suffix == ENSEMBLE


Source: TypeAlias = OnDisk | ModelRef | TritonModel
"""What one generation at a time is of."""


def parse(what: str) -> OnDisk | ModelRef | TritonRepository:
    """Raises `InvalidSource`, with the forms that there are."""
    path = Path(what)
    if (path / MANIFEST).is_file() or (path.suffix in FILES and path.is_file()):
        return OnDisk(path=path.absolute())
    if TritonRepository.is_one(path):
        return TritonRepository(path.absolute())
    if path.is_dir():
        raise InvalidSource(
            f"the directory {what} is no bundle: it has no {MANIFEST}; and it is no Triton model repository: "
            "none of its directories has a config.pbtxt or a version"
        )
    if path.suffix in FILES:
        raise InvalidSource(f"there is no file {what}")
    return ModelRef.parse(what)


def fetch(source: OnDisk | ModelRef | TritonRepository, settings: Settings) -> Bundle:
    """The bundle that `source` means now, on this disk; an alias is read once.

    Raises `InvalidSource` for what is no bundle, else what the registry or the bundle raises.
    """
    if isinstance(source, TritonRepository):
        raise InvalidSource(
            f"{source.path} is a Triton model repository, and this takes bundles; `seatrial serve` serves it"
        )
    if isinstance(source, OnDisk):
        if source.declares_ensemble:
            raise InvalidSource(f"{source.path} declares an ensemble, and this takes one bundle")
        if source.path.is_file():
            raise InvalidSource(
                f"{source.path} is a bare ONNX file, and this takes a bundle: make one with "
                "`seatrial register FILE.onnx --name NAME` and `seatrial export NAME/1`"
            )
        return open_bundle(source.path)
    with closing(open_registry(settings)) as registry:
        version = registry.resolve(source)
        return fetch_fitting(registry, version, targets=settings.registry.targets, store=settings.bundles)


def _example(bundle: Bundle) -> tuple[Tensor, ...]:
    """The inputs of the first small golden request; nothing has been verified yet, so what cannot be read is passed over."""
    for golden in bundle.manifest.golden:
        body = golden.request
        if golden.graph == MAIN and bundle.manifest.files[body.file].size <= LARGEST_EXAMPLE:
            with suppress(OSError, BadRequest), bundle.file(body.file).open("rb") as file:
                return decode_request(file.read(LARGEST_EXAMPLE), json_length=body.json_length).inputs
    return ()


def describe(path: Path, server: Serving, *, alias: str) -> tuple[Identity, Serving]:
    """Who is in `path`, and how it is to be served: a model of a Triton repository may bring settings along, and so does a
    bundle that was tuned, where that is wanted.

    Raises `BundleCorrupt`, `InvalidSource`, `EngineUnavailable`.
    """
    if path.is_file():
        return identify(path, alias=alias), server
    if (path / MANIFEST).exists():
        return identify(path, alias=alias), follow(path, server) if server.tuned else server
    model = TritonModel.at(path)
    return model.identity(), model.settings(server)  # in this order: an engine finds out if a file changes from then on


def plan(path: Path, find: Find) -> Plan | None:
    """How the ensemble that `path` declares is put together; None for a model that computes by itself.

    Raises `InvalidSource`, else what `find` raises.
    """
    if path.suffix == ENSEMBLE:
        return Plan.of(read_ensemble(path), find)
    if path.is_file() or (path / MANIFEST).exists():
        return None
    model = TritonModel.at(path)
    return triton.plan(model, find) if model.parts() else None


def identify(path: Path, *, alias: str) -> Identity:
    """Who is in `path`, by its manifest; an ensemble says its name, a bare ONNX file is named after itself.

    Raises `BundleCorrupt` or `InvalidSource`.
    """
    if path.is_dir():
        bundle = open_bundle(path)
        manifest = bundle.manifest
        return Identity(
            name=manifest.model.name,
            version=manifest.model.version,
            variant=manifest.variant.name,
            digest=bundle.digest,
            alias=alias,
            platform=f"{manifest.engine.name}_{manifest.variant.target.partition('-')[0]}",
            labels=manifest.labels,
            verified=True,
            stateful=manifest.driver is Driver.STATEFUL,
            example=_example(bundle),
        )
    if path.suffix == ENSEMBLE:
        return _unverified(read_ensemble(path).name, alias=alias, variant="ensemble", platform="ensemble")
    if not _MODEL_NAME.fullmatch(path.stem):
        raise InvalidSource(
            f"'{path.stem}' cannot be a model's name; rename {path.name} to letters, digits, '.', '_', '-'"
        )
    return _unverified(path.stem, alias=alias, variant="unverified", platform="onnxruntime_onnx")


def _unverified(name: str, *, alias: str, variant: str, platform: str) -> Identity:
    return Identity(
        name=name,
        version="1",
        variant=variant,
        digest="",
        alias=alias,
        platform=platform,
        labels=(),
        verified=False,
    )
