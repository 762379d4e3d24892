"""Rows that are pictures: how the world spoils them, and what is left of one when a part is hidden.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations" (2019),
with the levels of their CIFAR-10-C. They are for values from 0 to 1, so each channel is brought there by its range.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.random import Generator

from seatrial.tensors import Array, Signature
from seatrial_export.samples import Inputs

SEVERITIES = (1, 3, 5)
CHANNELS = (1, 3)
PATCHES = 8
"""Along height and width: what is hidden at once is one of them."""
PIXELS = 32
"""Most, along height and width, that a picture in the report has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The input `name`, whose channels go from `low` to `high` and are `mean` on average; all 1C11."""

    name: str
    low: Array
    high: Array
    mean: Array

    @staticmethod
    def of(signature: Signature, rows: Inputs) -> "Pictures | None":
        """None where rows are not one picture each."""
        [first, *others] = signature.inputs
        array = rows[first.name]
        if others or array.dtype.kind != "f" or array.ndim != 4 or array.shape[1] not in CHANNELS:
            return None
        over = (0, 2, 3)
        low, high, mean = (take(axis=over, keepdims=True) for take in (array.min, array.max, array.mean))
        return Pictures(name=first.name, low=low, high=np.maximum(high, low + 1e-6), mean=mean)

    def corrupted(self, rows: Inputs) -> Iterator[tuple[str, float, Inputs]]:
        """What was done to the rows, how severely, and what became of them."""
        span = self.high - self.low
        unit = (rows[self.name] - self.low) / span
        for name, (spoil, levels) in CORRUPTIONS.items():
            for severity, level in zip(SEVERITIES, levels, strict=True):
                spoilt = np.clip(spoil(unit, level, np.random.default_rng(severity)), 0, 1)
                yield name, severity, {self.name: (self.low + span * spoilt).astype(unit.dtype)}

    def hidden(self, row: Inputs) -> Inputs:
        """The row once for each patch, in reading order, with that patch in the mean colour."""
        picture = row[self.name][0]
        patches = [np.copy(picture) for _ in range(PATCHES * PATCHES)]
        for patch, (top, left) in zip(patches, np.ndindex(PATCHES, PATCHES), strict=True):
            patch[:, _part(picture.shape[1], top), _part(picture.shape[2], left)] = self.mean[0]
        return {self.name: np.stack(patches)}

    def in_patches(self, attribution_HW: Array) -> Array:
        """The sum of each patch."""
        height, width = attribution_HW.shape
        return np.array(
            [[attribution_HW[_part(height, i), _part(width, j)].sum() for j in range(PATCHES)] for i in range(PATCHES)]
        )

    def shown(self, row: Inputs) -> list[list[tuple[int, int, int]]]:
        """Lines of red, green and blue from 0 to 255, every so-maniest pixel of a large one."""
        unit = ((row[self.name] - self.low) / (self.high - self.low))[0]
        step = -(-max(unit.shape[1:]) // PIXELS)
        colours = np.broadcast_to(np.rint(255 * unit[:, ::step, ::step]), (3, *unit[0, ::step, ::step].shape))
        return [[(int(red), int(green), int(blue)) for red, green, blue in line] for line in colours.transpose(1, 2, 0)]


def _part(size: int, number: int) -> slice:
    """Of an axis, for the patch of this number; where there are fewer places than patches, some share one."""
    return slice(number * size // PATCHES, max((number + 1) * size // PATCHES, number * size // PATCHES + 1))


def _noise(unit: Array, level: float, random: Generator) -> Array:
    return np.asarray(unit + random.normal(scale=level, size=unit.shape))


def _blur(unit: Array, level: float, _: Generator) -> Array:
    """`level` is the deviation in pixels; what lies beyond the edge is as the edge."""
    reach = max(1, round(4 * level))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / level) ** 2)
    for axis in (2, 3):
        padded = np.pad(unit, [(reach, reach) if i == axis else (0, 0) for i in range(4)], mode="edge")
        unit = sliding_window_view(padded, len(weights), axis=axis) @ (weights / weights.sum())
    return unit


def _contrast(unit: Array, level: float, _: Generator) -> Array:
    mean = unit.mean(axis=(2, 3), keepdims=True)
    return np.asarray(mean + level * (unit - mean))


def _brightness(unit: Array, level: float, _: Generator) -> Array:
    """Of all channels; the paper raises the V of HSV."""
    return np.asarray(unit + level)


CORRUPTIONS: dict[str, tuple[Callable[[Array, float, Generator], Array], tuple[float, ...]]] = {
    "Gaussian noise": (_noise, (0.04, 0.08, 0.10)),
    "Gaussian blur": (_blur, (0.4, 0.7, 1.0)),
    "contrast": (_contrast, (0.75, 0.4, 0.15)),
    "brightness": (_brightness, (0.05, 0.15, 0.3)),
}
"""Each with the levels of the paper's severities 1, 3 and 5."""
