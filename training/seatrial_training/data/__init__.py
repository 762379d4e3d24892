"""Data sets as three splits of arrays, the same on every machine.

Knows what a data set is and which there are. How one is read and split, its own module knows.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from seatrial.errors import InvalidRecipe
from seatrial.settings import Settings
from seatrial.spelling import did_you_mean
from seatrial.tensors import Array

Labels: TypeAlias = NDArray[np.int64]

PADDING_ID, UNKNOWN_ID = 0, 1
"""What stands, in rows of token ids, behind the end of a text, and for a piece that the tokenizer does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows of inputs, by the names of a signature's inputs, and the class of each."""

    inputs: Mapping[str, Array]
    labels: Labels

    def __post_init__(self) -> None:
        rows = {name: len(array) for name, array in self.inputs.items()}
        assert set(rows.values()) == {len(self.labels)}, f"{rows} rows for {len(self.labels)} labels: this is a bug"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: slice | NDArray[np.intp]) -> "Split":
        return Split(inputs={name: array[rows] for name, array in self.inputs.items()}, labels=self.labels[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a model card says of the data."""

    title: str
    source: str
    licence: str
    preparation: str
    """How the model's input is made from the raw thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """`labels` are the names of the classes, by number. `digest` changes with the data and with how it is prepared.

    `tokenizer`, for text, is the JSON of a `tokenizers` tokenizer.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    digest: str
    about: About
    tokenizer: str | None = None


DATASETS: Mapping[str, str] = {
    "cifar10": "seatrial_training.data.cifar10",
    "clinc150": "seatrial_training.data.clinc150",
    "clinc150-wordpiece": "seatrial_training.data.clinc150_wordpiece",
    "digits": "seatrial_training.data.digits",
}
"""Each name with the module whose `load(settings)` makes it."""


def load_dataset(name: str, settings: Settings) -> Dataset:
    """Read or make the data set `name`. Raises `InvalidRecipe` for an unknown name, `DataMissing` for absent files."""
    if name not in DATASETS:
        meant = did_you_mean(name, DATASETS, otherwise=f"there are {', '.join(DATASETS)}")
        raise InvalidRecipe(f"there is no data set '{name}'{meant}")
    load: Callable[[Settings], Dataset] = importlib.import_module(DATASETS[name]).load
    return load(settings)
