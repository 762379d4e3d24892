"""What a chosen variant does differently from its source, beyond one number of accuracy.

Pure functions from the answers of both to the same rows, and for what takes more questions (`probe`) a child process.
Knows nothing of how variants are built or chosen; the report holds what is found here, and `figures` draws it.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from seatrial.tensors import Signature
from seatrial_export.deltas.confusion import Confusion, confusion, name
from seatrial_export.deltas.distance import Distance, apart, distances
from seatrial_export.deltas.pairs import Pairs, pair
from seatrial_export.deltas.probed import Probed
from seatrial_export.deltas.reliability import Calibration, calibration, confidence
from seatrial_export.deltas.slices import Slice, slices
from seatrial_export.samples import Outputs
from seatrial_training.data import Split
from seatrial_training.evaluation import OUTPUT, Score

MOST_CHANGED = 10


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A row, by its place among those asked, whose answer moved by `distance`; each class with its confidence."""

    row: int
    distance: float
    truth: str
    source: tuple[str, float]
    variant: tuple[str, float]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What takes labels. `changed` are the rows whose answers moved most."""

    pairs: Pairs
    confusion: Confusion
    calibration: Calibration
    slices: tuple[Slice, ...]
    changed: tuple[Changed, ...]


class Deltas(msgspec.Struct, frozen=True, kw_only=True):
    """Of one variant. `judged` is None without labels, `probed` where nobody asked for it."""

    variant: str
    distances: tuple[Distance, ...]
    judged: Judged | None = None
    probed: Probed | None = None


def compare(variant: str, source: Outputs, found: Outputs) -> Deltas:
    """Where no labels came: how far the answers `found` lie from the source's."""
    return Deltas(variant=variant, distances=distances(source, found))


def judge(
    variant: str, source: Score, found: Score, held_out: Split, *, signature: Signature, labels: Sequence[str]
) -> Deltas:
    """`source` and `found` are the answers to `held_out`; `labels` name the classes, as far as they have names."""
    return Deltas(
        variant=variant,
        distances=distances({OUTPUT: source.logits}, {OUTPUT: found.logits}),
        judged=Judged(
            pairs=pair(source.correct, found.correct),
            confusion=confusion(source, found, held_out.labels, labels=labels),
            calibration=calibration(source, found),
            slices=slices(source, found, held_out, signature=signature, labels=labels),
            changed=_most_changed(source, found, held_out, labels),
        ),
    )


def _most_changed(source: Score, found: Score, held_out: Split, labels: Sequence[str]) -> tuple[Changed, ...]:
    moved = apart(source.logits, found.logits)
    sure = [confidence(score.logits) for score in (source, found)]
    return tuple(
        Changed(
            row=row,
            distance=float(moved[row]),
            truth=name(int(held_out.labels[row]), labels),
            source=(name(int(source.predicted[row]), labels), float(sure[0][row])),
            variant=(name(int(found.predicted[row]), labels), float(sure[1][row])),
        )
        for row in np.argsort(-moved, kind="stable")[:MOST_CHANGED].tolist()
    )
