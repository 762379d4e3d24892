"""A recipe: a named, complete description of a training run, read from YAML and changed by `--set`.

Knows which values there are and which are allowed. Knows neither torch nor data sets: what an architecture's config may
hold is the architecture's own business, and is checked when it is built.
"""

import hashlib
import json
import re
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seatrial.errors import InvalidRecipe
from seatrial.spelling import did_you_mean


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Network(_Part):
    name: str
    """One of the registered architectures."""
    config: dict[str, Any] = {}
    """What the architecture leaves open: sizes, depth, dropout."""


class Optimizer(_Part):
    name: Literal["adamw", "sgd"] = "adamw"
    """`sgd` has Nesterov's momentum."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest, which the schedule reaches at the end of the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Applied to matrices and convolutions, never to biases and normalisation."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of `sgd`; ignored by `adamw`."""


class Schedule(_Part):
    warmup: float = Field(default=0.1, ge=0, le=1)
    """The part of all steps over which the learning rate rises, linearly, from nearly nothing."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """What is left of the learning rate at the end of the cosine that follows."""


class Averaging(_Part):
    decay: float = Field(default=0.99, gt=0, lt=1)
    """How much of the average each step keeps. The averaged weights are validated, and are the result."""


class SmallImages(_Part):
    scale: float = Field(gt=0, lt=1)
    """Height and width, as a part of the images' own. An epoch costs the square of it."""
    epochs: float = Field(gt=0, lt=1)
    """The part of all epochs, the first ones, that are trained on small images; the rest see them as they are."""


class EarlyStopping(_Part):
    patience: int = Field(default=10, ge=1)
    """Epochs without a better validation accuracy after which training ends."""


class Distillation(_Part):
    teacher: str
    """The registered version whose answers are learnt, as `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    temperature: float = Field(default=4.0, gt=0)
    """What the logits of both are divided by: the higher, the more the teacher's small probabilities count."""
    weight: float = Field(default=0.9, gt=0, le=1)
    """The teacher's part of the loss; the labels have the rest."""
    features: dict[str, str] = {}
    """Layers of the student, each with the teacher's layer whose output it learns, through a projection."""
    features_weight: float = Field(default=1.0, gt=0)
    """Of the mean squared error of each of these layers, beside the rest of the loss."""


class Pruning(_Part):
    kind: Literal["channels", "heads", "gated", "magnitude", "2:4"]
    """Whole channels, or attention heads, which go before the training begins; channels that each row chooses among, by gates
    that are trained; or single weights, which become zeros: the smallest of all, or two of every four, which GPUs with sparse
    tensor cores can make use of."""
    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """The part that goes; of channels about that, so that whole registers of eight are left where a layer has more."""
    scope: Literal["global", "layer"] = "global"
    """Of `magnitude`: whether the smallest weights are looked for in the whole network or in each layer."""
    ramp: float = Field(default=0.5, ge=0, lt=1)
    """Of zeros: the part of all steps over which they become more."""

    @property
    def makes_zeros(self) -> bool:
        return self.kind in ("magnitude", "2:4")


class Quantization(_Part):
    weight_bits: Literal[7, 8] = 7
    """What weights are rounded to. Every CPU sums products with 7 bits exactly; 8 is for those with VNNI or AMX."""


class Recipe(_Part):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """The recipe's own name; a model is registered under it unless `model` says otherwise."""
    description: str
    """One line for those who choose among recipes."""
    model: str | None = None
    """The name of the registered model; by default the recipe's."""
    data: str
    """The data set."""
    architecture: Network
    pretrained: str | None = None
    """Published weights to begin with, where the architecture has a place for them; null for random ones."""
    start: str | None = None
    """A registered version of this architecture to begin with, as `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    seed: int = Field(default=0, ge=0)
    """Decides initial weights, order of rows, augmentation and dropout."""
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up for one step."""
    augment: tuple[str, ...] = ()
    """Random changes made to each training batch, in this order."""
    small_images: SmallImages | None = None
    """Begin with smaller images, which makes training cheaper; null for none. For networks that take any size."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gradient_clip: float | None = Field(default=1.0, gt=0)
    """The largest norm of the gradient; null for no limit."""
    precision: Literal["auto", "32", "bf16", "fp16"] = "auto"
    """Mixed precision; `auto` uses it where the hardware has it."""
    averaging: Averaging | None = None
    """An exponential moving average of the weights; null for none."""
    early_stopping: EarlyStopping | None = None
    """null to train all epochs."""
    distillation: Distillation | None = None
    """Learn from a registered version, the teacher, beside the labels; null for labels alone."""
    pruning: Pruning | None = None
    """Take weights out; null for none."""
    quantization: Quantization | None = None
    """Train with the rounding of static INT8 in the way; null for none."""
    threads: int | None = Field(default=None, ge=1)
    """Threads to train on; null for as many as we have cores. A small network is faster on one: more would wait for one
    another longer than they compute."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.start and self.pretrained:
            raise ValueError("a training begins with a registered version or with published weights; set one to null")
        if self.pruning and self.pruning.makes_zeros and (self.averaging or self.early_stopping):
            raise ValueError(
                "zeros come step by step, and stay in no average; set averaging=null and early_stopping=null"
            )
        if self.pruning and self.pruning.kind == "2:4" and self.pruning.sparsity != 0.5:
            raise ValueError("two of four is half of them; leave pruning.sparsity at 0.5")
        return self

    @property
    def model_name(self) -> str:
        return self.model or self.name

    @property
    def digest(self) -> str:
        """The same for recipes that are equal in every value, written or default."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def as_yaml(self) -> str:
        """Every value, defaults too; `load_recipe` reads it back as an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


def load_recipe(name_or_path: str, *, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of that name, or in that file, with each of `changes` (`optimizer.learning_rate=1e-3`) made in turn.

    Raises `InvalidRecipe`, naming every value that is wrong or unknown, and the one that was likely meant.
    """
    text, where = _read(name_or_path)
    values = _parse(text, where=where)
    if not isinstance(values, dict):
        raise InvalidRecipe(f"{where} holds {type(values).__name__}, expected keys and values")
    for change in changes:
        _apply(change, values)
    try:
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise InvalidRecipe("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from error


def built_in_recipes() -> dict[str, Recipe]:
    return {name: load_recipe(name) for name in _built_in()}


def _built_in() -> list[str]:
    folder = resources.files("seatrial_training") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(name_or_path: str) -> tuple[str, str]:
    if name_or_path in (names := _built_in()):
        return (resources.files("seatrial_training") / "recipes" / f"{name_or_path}.yaml").read_text(), name_or_path
    try:
        return Path(name_or_path).read_text(), name_or_path
    except OSError as error:
        meant = did_you_mean(name_or_path, names, otherwise=f"there are {', '.join(names)}, or give a file")
        raise InvalidRecipe(f"there is no recipe '{name_or_path}'{meant}") from error


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 does; version 1.1 wants `1.0e-3` and takes the other for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"), list("-+0123456789.")
)


def _parse(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise InvalidRecipe(f"{where} is not YAML: {error}") from error


def _apply(change: str, values: dict[str, Any]) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise InvalidRecipe(f"'{change}' changes nothing; write KEY=VALUE, as in optimizer.learning_rate=1e-3")
    *groups, key = path.split(".")
    for group in groups:
        inner = values.get(group)
        if inner is None:
            inner = values[group] = {}
        if not isinstance(inner, dict):
            raise InvalidRecipe(f"'{change}' goes into '{group}', which is {inner!r}, not a group of values")
        values = inner
    values[key] = _parse(text, where=f"--set {change}")


def _explain(problem: Mapping[str, Any]) -> str:
    if not problem["loc"]:  # what joins several values
        return str(problem["msg"]).removeprefix("Value error, ")
    *parents, _ = problem["loc"]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [".".join([*map(str, parents), field]) for field in _fields(parents)]
        return f"there is no '{name}'" + did_you_mean(name, known, otherwise=f"there are {', '.join(known)}")
    if problem["type"] == "missing":
        return f"'{name}' is missing"
    return f"'{name}' is {problem['input']!r}: {problem['msg'].lower()}"


def _fields(path: Iterable[str]) -> Iterable[str]:
    """The names in the group at `path`."""
    group: type[BaseModel] = Recipe
    for name in path:
        annotation = group.model_fields[name].annotation
        choices = (annotation, *typing.get_args(annotation))
        group = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
    return group.model_fields
