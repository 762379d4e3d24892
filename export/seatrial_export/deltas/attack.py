"""Rows changed as little as possible to be answered wrongly: FGSM and PGD, made on the source by its gradients.

Sources: Goodfellow et al., "Explaining and harnessing adversarial examples" (2015), one step along the sign of the loss's
gradient; Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), several small ones from a
random start, each brought back into the allowed cube. A variant has no gradients: against it they are transferred.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from seatrial.tensors import Array
from seatrial_export.deltas.gradients import Differentiable
from seatrial_export.samples import Inputs, joined, take
from seatrial_training.data import Labels

REACHES = (2, 4, 8, 16)
"""How far a number may be moved, in 255ths of the range that its channel has in the rows."""
STEPS = 10
STRIDE = 2.5
"""Steps are so many times as long as the cube needs: a row can cross it."""

Ranges: TypeAlias = Mapping[str, tuple[Array, Array]]
"""Of each input that holds floats, the ends of each channel."""


class Cube:
    """What may become of `rows`: no number further than `reach` 255ths of its range from where it was, none out of its range."""

    def __init__(self, rows: Inputs, ranges: Ranges, reach: float) -> None:
        self.rows = rows
        self.sides = {
            name: (reach / 255 * (high - low)).astype(rows[name].dtype) for name, (low, high) in ranges.items()
        }
        self._ranges = ranges

    def brought_back(self, rows: Inputs) -> Inputs:
        found = dict(rows)
        for name, side in self.sides.items():
            near = np.clip(rows[name], self.rows[name] - side, self.rows[name] + side)
            found[name] = np.clip(near, *self._ranges[name]).astype(self.rows[name].dtype)
        return found


def attacked(
    attack: str, source: Differentiable, rows: Inputs, truth: Labels, *, reach: float, size: int
) -> dict[str, Array]:
    """`rows`, which are of the classes `truth`, after the attack of that name; `size` of them at a time."""
    ranges = {name: _range(array) for name, array in rows.items() if array.dtype.kind == "f"}
    parts = [slice(start, start + size) for start in range(0, len(truth), size)]
    return joined([ATTACKS[attack](source, Cube(take(rows, part), ranges, reach), truth[part]) for part in parts])


def fgsm(source: Differentiable, cube: Cube, truth: Labels) -> Inputs:
    return _step(source, cube.rows, truth, cube, length=1.0)


def pgd(source: Differentiable, cube: Cube, truth: Labels) -> Inputs:
    random = np.random.default_rng(0)
    found = cube.brought_back(
        {
            name: array + cube.sides[name] * random.uniform(-1, 1, array.shape) if name in cube.sides else array
            for name, array in cube.rows.items()
        }
    )
    for _ in range(STEPS):
        found = _step(source, found, truth, cube, length=STRIDE / STEPS)
    return found


ATTACKS: Mapping[str, Callable[[Differentiable, Cube, Labels], Inputs]] = {"FGSM": fgsm, "PGD": pgd}


def _step(source: Differentiable, rows: Inputs, truth: Labels, cube: Cube, *, length: float) -> Inputs:
    gradients = source.loss_gradients(rows, truth)
    return cube.brought_back(
        {**rows, **{name: rows[name] + length * cube.sides[name] * np.sign(gradients[name]) for name in cube.sides}}
    )


def _range(array: Array) -> tuple[Array, Array]:
    """The lowest and the highest number of each channel, or of each column."""
    over = tuple(axis for axis in range(array.ndim) if axis != 1)
    return array.min(axis=over, keepdims=True), array.max(axis=over, keepdims=True)
