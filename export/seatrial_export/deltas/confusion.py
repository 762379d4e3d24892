"""Which rows of which class are answered with another class than the source's."""

from collections.abc import Sequence

import msgspec
import numpy as np

from seatrial_export.deltas.pairs import mcnemar
from seatrial_training.data import Labels
from seatrial_training.evaluation import Score

NO_CLASS = "no answer"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Rows, by their place among the held-out ones, that are of the class `truth` and went from one answer to another."""

    truth: str
    source: str
    variant: str
    rows: tuple[int, ...]

    @property
    def kind(self) -> str:
        if self.source == self.truth:
            return "lost"
        return "gained" if self.variant == self.truth else "still wrong"


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """`moves` has the commonest first. `p_value` is McNemar's, of `lost` against `gained`."""

    lost: int
    gained: int
    still_wrong: int
    p_value: float
    moves: tuple[Move, ...]


def confusion(source: Score, variant: Score, truth: Labels, *, labels: Sequence[str]) -> Confusion:
    lost, gained = (int(np.sum(one.correct & ~other.correct)) for one, other in ((source, variant), (variant, source)))
    moves: dict[tuple[int, int, int], list[int]] = {}
    moved = np.flatnonzero(source.predicted != variant.predicted)
    for row in moved.tolist():
        moves.setdefault((int(truth[row]), int(source.predicted[row]), int(variant.predicted[row])), []).append(row)
    return Confusion(
        lost=lost,
        gained=gained,
        still_wrong=len(moved) - lost - gained,
        p_value=mcnemar(lost, gained),
        moves=tuple(
            Move(truth=name(at, labels), source=name(was, labels), variant=name(became, labels), rows=tuple(rows))
            for (at, was, became), rows in sorted(moves.items(), key=lambda move: (-len(move[1]), move[0]))
        ),
    )


def name(label: int, labels: Sequence[str]) -> str:
    """Of a class: its number where nobody named it."""
    if label < 0:
        return NO_CLASS
    return labels[label] if label < len(labels) else str(label)
