"""The registered versions that a training comes from: the one that it begins with, and the one that it learns from.

Knows how to get a module out of a version, and whether it fits the data. Knows nothing of how it is used. What a recipe
calls by an alias is pinned to a version first: aliases move, and a run that goes on must go on with the same.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from seatrial.errors import InvalidRecipe
from seatrial.registry import ModelRef, ModelVersion
from seatrial.registry.embedded import EmbeddedRegistry, download
from seatrial.settings import Settings
from seatrial_models import architecture
from seatrial_training.data import Dataset
from seatrial_training.recipe import Recipe
from seatrial_training.retrainable import NotRetrainable, Retrainable, read_retrainable


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """`module` has the version's weights, of which `digest` is, and is in eval mode."""

    version: ModelVersion
    digest: str
    module: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """None where the recipe names none."""

    start: Ancestor | None = None
    teacher: Ancestor | None = None

    @property
    def tags(self) -> Mapping[str, str]:
        """For the run and for the version that comes of it."""
        return {
            f"seatrial.{key}": value
            for role, ancestor in self._named()
            for key, value in ((role, str(ancestor.version)), (f"{role}_digest", ancestor.digest))
        }

    @property
    def logged_models(self) -> tuple[str, ...]:
        found = (ancestor.version.logged_model for _, ancestor in self._named())
        return tuple(dict.fromkeys(model for model in found if model))

    def _named(self) -> Iterator[tuple[str, Ancestor]]:
        for role, ancestor in (("start", self.start), ("teacher", self.teacher)):
            if ancestor is not None:
                yield role, ancestor


NO_ANCESTRY = Ancestry()


def pinned(recipe: Recipe, settings: Settings) -> Recipe:
    """`recipe` with the numbers of the versions that it calls by an alias. Raises `InvalidSource`, `NotInRegistry`."""
    if recipe.start is None and recipe.distillation is None:
        return recipe
    registry = EmbeddedRegistry(settings)

    def number(text: str) -> str:
        return str(registry.resolve(ModelRef.parse(text)))

    lesson = recipe.distillation
    return recipe.model_copy(
        update={
            "start": recipe.start and number(recipe.start),
            "distillation": lesson and lesson.model_copy(update={"teacher": number(lesson.teacher)}),
        }
    )


def ancestry(recipe: Recipe, dataset: Dataset, settings: Settings) -> Ancestry:
    """The versions that `recipe`, which is pinned, names. Raises `InvalidRecipe` for one that cannot be an ancestor."""
    if recipe.start is None and recipe.distillation is None:
        return NO_ANCESTRY
    registry = EmbeddedRegistry(settings)
    return Ancestry(
        start=_start(recipe, registry, dataset) if recipe.start else None,
        teacher=_fetch(recipe.distillation.teacher, registry, dataset)[0] if recipe.distillation else None,
    )


def _start(recipe: Recipe, registry: EmbeddedRegistry, dataset: Dataset) -> Ancestor:
    assert recipe.start is not None, "a start that nobody asked for: this is a bug"
    ancestor, found = _fetch(recipe.start, registry, dataset)
    wanted = recipe.architecture
    if _built(found.architecture, found.config) != _built(wanted.name, wanted.config):
        raise InvalidRecipe(
            f"recipe '{recipe.name}' begins with {ancestor.version}, which is a '{found.architecture}' with "
            f"{dict(found.config)}; set architecture to that, it is a '{wanted.name}' with {wanted.config}"
        )
    return ancestor


def _built(name: str, config: Mapping[str, Any]) -> tuple[str, object]:
    """What decides how a module is built, defaults included."""
    return name, architecture(name).configure(config)


def _fetch(ref: str, registry: EmbeddedRegistry, dataset: Dataset) -> tuple[Ancestor, Retrainable]:
    version = registry.resolve(ModelRef.parse(ref))
    with tempfile.TemporaryDirectory(prefix="seatrial-ancestor-") as aside:
        found = read_retrainable(download(version, Path(aside) / "model"))
        if isinstance(found, NotRetrainable):
            raise InvalidRecipe(f"{version} cannot be built as a module, to train or to learn from: {found.reason}")
        _check(found, version, dataset)
        weights = found.weights.read_bytes()
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        return Ancestor(version=version, digest=digest, module=found.module()), found


def _check(found: Retrainable, version: ModelVersion, dataset: Dataset) -> None:
    """Numbers mean the same to it as in the data: those of the classes, and of the pieces of a text."""
    if found.labels != dataset.labels:
        raise InvalidRecipe(f"{version} tells other classes apart than the data set '{dataset.name}' has")
    if (found.tokenizer.read_text() if found.tokenizer else None) != dataset.tokenizer:
        raise InvalidRecipe(f"{version} takes texts that another tokenizer cut than that of '{dataset.name}'")
