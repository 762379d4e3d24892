"""Which parts of a row an answer hangs on, according to a source model and to its variant, by the same methods for both.

An engine's answer has no gradients, so both are explained by occlusion: how much of the answer goes where a part is hidden
(Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014). Where a variant is a program itself, also
by integrated gradients (Sundararajan et al., "Axiomatic attribution for deep networks", 2017) and, at its last convolution,
by Grad-CAM (Selvaraju et al., 2017). Axes as in `gradients`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np

from seatrial.tensors import Array, Signature
from seatrial_export.deltas.gradients import Differentiable
from seatrial_export.deltas.pictures import PATCHES, Pictures
from seatrial_export.deltas.texts import Texts
from seatrial_export.exam import ROWS_AT_ONCE
from seatrial_export.samples import Inputs, Predict, answers, repeat
from seatrial_training.evaluation import OUTPUT

STEPS = 32
"""Of integrated gradients, between the baseline and the row."""
OCCLUSION, INTEGRATED, GRAD_CAM = "occlusion", "integrated gradients", "Grad-CAM"
YARDSTICK = "occlusion of the source, beside its own integrated gradients"
LEAST_PARTS = 3
"""What a text of fewer tokens hangs on cannot be compared."""
DRAWN = 4

Material: TypeAlias = Pictures | Texts


class Map(msgspec.Struct, frozen=True, kw_only=True):
    """What each part of a row adds to the answer, in lines; `of` is who was asked."""

    of: str
    method: str
    cells: tuple[tuple[float, ...], ...]


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A row, by its place among the held-out ones, why the source says `label`, and how alike (-1 to 1) both see that.

    Of `picture`, lines of red, green and blue, and `words`, the other one is empty.
    """

    row: int
    label: str
    likeness: float
    maps: tuple[Map, ...]
    picture: tuple[tuple[tuple[int, int, int], ...], ...] = ()
    words: tuple[str, ...] = ()


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """The correlation of the two maps of a row: the median over rows, and what one row in ten is below."""

    method: str
    rows: int
    median: float
    low: float


class Explanations(msgspec.Struct, frozen=True, kw_only=True):
    """`examples` are those of which source and variant think least alike."""

    likenesses: tuple[Likeness, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Who was asked: an answering side, and if it has gradients, those."""

    name: str
    predict: Predict
    gradients: Differentiable | None

    def maps(self, material: Material, signature: Signature, row: Inputs, label: int) -> dict[str, Array]:
        """By method, as lines."""
        found = {OCCLUSION: occlusion(self.predict, material, signature, row, label)}
        if self.gradients is not None:
            found[INTEGRATED] = integrated_gradients(self.gradients, material, row, label)
            if isinstance(material, Pictures) and self.gradients.convolution is not None:
                found[GRAD_CAM] = grad_cam(self.gradients, row, label)
        return found


def occlusion(predict: Predict, material: Material, signature: Signature, row: Inputs, label: int) -> Array:
    """How much lower the logit `label` is where a part is hidden."""
    hidden = answers(predict, signature, material.hidden(row), size=ROWS_AT_ONCE)[OUTPUT][:, label]
    lost: Array = predict(row)[OUTPUT][0, label] - hidden
    return lost.reshape(PATCHES, PATCHES) if isinstance(material, Pictures) else lost[None]


def integrated_gradients(source: Differentiable, material: Material, row: Inputs, label: int) -> Array:
    """From the mean colour, or from embeddings of zero, to the row."""
    parts = (np.arange(STEPS, dtype=np.float32) + 0.5) / STEPS
    if isinstance(material, Pictures):
        way_CHW = row[material.name][0] - material.mean[0]
        points = material.mean + parts[:, None, None, None] * way_CHW
        gradient_CHW = source.input_gradient(material.name, points.astype(way_CHW.dtype), label).mean(axis=0)
        return material.in_patches((way_CHW * gradient_CHW).sum(axis=0))
    node = source.embedding
    assert node is not None, "a model of tokens has an embedding: this is a bug"
    points_BTD, gradients_BTD = source.at(node, repeat(row, STEPS), label, parts[:, None, None])
    of_tokens = (points_BTD[-1] / parts[-1] * gradients_BTD.mean(axis=0)).sum(axis=-1)
    return np.asarray(of_tokens[material.places(row)])[None]


def grad_cam(source: Differentiable, row: Inputs, label: int) -> Array:
    """What speaks for `label` in the answers of the last convolution."""
    assert source.convolution is not None, "asked for the last of no convolutions: this is a bug"
    features_BCHW, gradients_BCHW = source.at(source.convolution, row, label, 1.0)
    weights_BC11 = gradients_BCHW.mean(axis=(2, 3), keepdims=True)
    return np.asarray(np.maximum((weights_BC11 * features_BCHW).sum(axis=1)[0], 0))


def likeness(one: Array, other: Array) -> float:
    """Their correlation; of a map that is the same everywhere 1 with its like, and else 0."""
    one, other = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    spread = float(one.std() * other.std())
    if spread < 1e-12:
        return float(np.allclose(one - one.mean(), other - other.mean()))
    return float(np.clip(((one - one.mean()) * (other - other.mean())).mean() / spread, -1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`number` is its place among the held-out rows, `label` what the source says of it, `name` how that class is called."""

    inputs: Inputs
    number: int
    label: int
    name: str


def explain(
    source: Explained, variant: Explained, material: Material, signature: Signature, rows: Sequence[Row]
) -> Explanations:
    likenesses: dict[str, list[float]] = {}
    examples = []
    for row in rows:
        if isinstance(material, Texts) and len(material.places(row.inputs)) < LEAST_PARTS:
            continue
        ours, theirs = (side.maps(material, signature, row.inputs, row.label) for side in (source, variant))
        for method in ours.keys() & theirs.keys():
            likenesses.setdefault(method, []).append(likeness(ours[method], theirs[method]))
        if INTEGRATED in ours:
            likenesses.setdefault(YARDSTICK, []).append(likeness(ours[OCCLUSION], ours[INTEGRATED]))
        examples.append(_example(row, material, {source.name: ours, variant.name: theirs}, likenesses[OCCLUSION][-1]))
    return Explanations(
        likenesses=tuple(
            Likeness(
                method=method,
                rows=len(found),
                median=float(np.median(found)),
                low=float(np.percentile(found, 10)),
            )
            for method in (OCCLUSION, INTEGRATED, GRAD_CAM, YARDSTICK)
            if (found := likenesses.get(method))
        ),
        examples=tuple(sorted(examples, key=lambda example: example.likeness)[:DRAWN]),
    )


def _example(row: Row, material: Material, sides: Mapping[str, Mapping[str, Array]], alike: float) -> Example:
    picture: Sequence[Sequence[tuple[int, int, int]]] = ()
    words: tuple[str, ...] = ()
    if isinstance(material, Pictures):
        picture = material.shown(row.inputs)
    else:
        words = material.words(row.inputs)
    return Example(
        row=row.number,
        label=row.name,
        likeness=alike,
        maps=tuple(
            Map(of=side, method=method, cells=tuple(tuple(line) for line in np.round(found, 5).astype(float).tolist()))
            for side, maps in sides.items()
            for method, found in maps.items()
        ),
        picture=tuple(tuple(line) for line in picture),
        words=words,
    )
