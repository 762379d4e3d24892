"""Accuracy by parts of the held-out rows: an average can hide what a class, or long texts, have lost.

Every part has its paired interval, wide enough for all parts of its kind together, so that one of five rows, or one of 150
classes, does not cry wolf.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from seatrial.tensors import Array, Signature
from seatrial_export.deltas.confusion import name
from seatrial_export.deltas.pairs import Pairs, pair
from seatrial_export.deltas.reliability import confidence
from seatrial_export.samples import Inputs
from seatrial_training.data import Split
from seatrial_training.evaluation import Score

PARTS = 4
"""About equally many rows in each, where a number orders them."""

Chosen = NDArray[np.bool_]


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` says by what the rows were parted, `name` which of them these are."""

    kind: str
    name: str
    pairs: Pairs


def slices(
    source: Score, variant: Score, held_out: Split, *, signature: Signature, labels: Sequence[str]
) -> tuple[Slice, ...]:
    """By class, by length where rows have one, and by how sure the source is."""
    kinds: dict[str, list[tuple[str, Chosen]]] = {
        "class": [(name(label, labels), held_out.labels == label) for label in np.unique(held_out.labels).tolist()]
    }
    if (length := lengths(held_out.inputs, signature)) is not None:
        kinds["length"] = _parts(length, "{:.0f}")
    kinds["the source's confidence"] = _parts(confidence(source.logits), "{:.3f}")
    return tuple(
        Slice(kind=kind, name=part, pairs=pair(source.correct[rows], variant.correct[rows], among=len(parts)))
        for kind, parts in kinds.items()
        for part, rows in parts
    )


def lengths(inputs: Inputs, signature: Signature) -> NDArray[np.int64] | None:
    """Of each row without the padding at its end; None where rows are not padded."""
    if signature.padding is None:
        return None
    [axis] = [axis for axis in signature.dynamic_axes if axis.name == signature.padding.axis]
    found = [_lengths(inputs[name], axis.at[name], value) for name, value in signature.padding.values.items()]
    longest: NDArray[np.int64] = np.max(found, axis=0)
    return longest


def _lengths(array: Array, axis: int, padding: float) -> NDArray[np.int64]:
    real = np.moveaxis(array != padding, axis, 1)
    real = real.reshape(*real.shape[:2], -1).any(axis=2)
    places: NDArray[np.int64] = np.where(real, np.arange(1, real.shape[1] + 1), 0).max(axis=1, initial=0)
    return places


def _parts(values: NDArray[np.int64] | NDArray[np.float64], form: str) -> list[tuple[str, Chosen]]:
    """About equally many rows in each, named by their lowest and their highest value; equal values stay together."""
    place = np.searchsorted(np.unique(np.quantile(values, np.arange(1, PARTS) / PARTS)), values, side="left")
    parts = [place == part for part in np.unique(place)]
    return [
        (" to ".join(dict.fromkeys(form.format(end) for end in (values[rows].min(), values[rows].max()))), rows)
        for rows in parts
    ]
