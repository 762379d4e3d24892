"""What was found by asking source and variant more than verification does: see `probe`, which asks."""

import msgspec

from seatrial_export.deltas.attribution import Explanations
from seatrial_export.deltas.pairs import Pairs


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """How severe, and how both did."""

    at: float
    pairs: Pairs


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy of source and variant on the same spoiled rows; the first point is of rows as they are."""

    name: str
    points: tuple[Point, ...]


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """`notes` say in a sentence each what was not asked, and why; `log` and `command` are of a child that failed."""

    corruptions: tuple[Curve, ...] = ()
    attacks: tuple[Curve, ...] = ()
    explanations: Explanations | None = None
    notes: tuple[str, ...] = ()
    log: str = ""
    command: str = ""
