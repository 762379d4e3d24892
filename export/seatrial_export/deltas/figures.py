"""What the report's page shows of the deltas, in pixels: one value for each picture, which the template draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from seatrial_export.deltas import Deltas
from seatrial_export.deltas.attribution import Example, Map
from seatrial_export.deltas.distance import Distance
from seatrial_export.deltas.probed import Curve
from seatrial_export.deltas.reliability import Calibration, Reliability
from seatrial_export.deltas.slices import Slice
from seatrial_export.scale import Scale, Tick

WIDTH, HEIGHT = 256, 196
LEFT, RIGHT, TOP, BOTTOM = 44, WIDTH - 18, 12, HEIGHT - 40
LINE, MIDDLE, REACH = 22, 356, 140
"""Of the picture of slices: the height of one, where the scale begins, and how far it goes to both sides of nothing lost."""
MOST_SLICES = 12
CELL = 96
"""Pixels that a map or a picture is wide and high."""
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    colour: str = ""
    opacity: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """`marked` where source and variant are apart beyond chance."""

    x: float
    y: float
    words: str
    marked: bool = False
    radius: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`kind` is `source` or `variant`."""

    kind: str
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[Box, ...] = ()
    lines: tuple[Line, ...] = ()
    diagonal: bool = False
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A slice: what it lost, and between which ends that may lie."""

    part: Slice
    y: float
    low: float
    at: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    whiskers: tuple[Whisker, ...]
    ticks: tuple[Tick, ...]
    zero: float
    left_out: int
    left: int = MIDDLE
    width: int = MIDDLE + 2 * REACH + 20
    height: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """`strength` is from 0 to 1, of what speaks `against` the answer or for it."""

    text: str
    strength: float
    against: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A map, as boxes or as words, or the row itself."""

    title: str
    boxes: tuple[Box, ...] = ()
    words: tuple[Word, ...] = ()
    size: int = CELL


def histogram(distance: Distance) -> Panel:
    furthest = distance.percentiles[-1] or 1.0
    x = Scale(first=0, last=furthest, low=LEFT, high=RIGHT)
    y = Scale(first=0, last=max(distance.histogram) or 1, low=BOTTOM, high=TOP)
    width = (RIGHT - LEFT) / len(distance.histogram)
    return Panel(
        title=f"How far {distance.output} moved",
        x_name="largest difference in a row's answer",
        x_ticks=x.marked("{:.2g}"),
        y_ticks=y.marked("{:.0f}"),
        bars=tuple(
            Box(x=LEFT + i * width, y=y.place(rows), width=width - 1, height=BOTTOM - y.place(rows))
            for i, rows in enumerate(distance.histogram)
        ),
    )


def reliability(calibration: Calibration) -> Panel:
    x = Scale(first=0, last=1, low=LEFT, high=RIGHT)
    y = Scale(first=0, last=1, low=BOTTOM, high=TOP)

    most = max(each.rows for found in (calibration.source, calibration.variant) for each in found.bins)

    def line(kind: str, found: Reliability) -> Line:
        return Line(
            kind=kind,
            dots=tuple(
                Dot(
                    x=x.place(each.confidence),
                    y=y.place(each.accuracy),
                    radius=2 + 5 * math.sqrt(each.rows / most),
                    words=f"{kind}: {each.rows} rows, {each.confidence:.1%} sure, {each.accuracy:.1%} right",
                )
                for each in found.bins
            ),
        )

    return Panel(
        title="How sure, and how often right",
        x_name="confidence",
        x_ticks=tuple(Tick(at=x.place(value), words=f"{value:.0%}") for value in QUARTERS),
        y_ticks=tuple(Tick(at=y.place(value), words=f"{value:.0%}") for value in QUARTERS),
        lines=(line("source", calibration.source), line("variant", calibration.variant)),
        diagonal=True,
    )


def curve(found: Curve, *, x_name: str) -> Panel:
    values = [value for point in found.points for value in (point.pairs.source, point.pairs.variant)]
    x = Scale(first=0, last=found.points[-1].at * 1.04, low=LEFT, high=RIGHT)
    y = Scale.of(values, low=BOTTOM, high=TOP)

    def line(kind: str) -> Line:
        return Line(
            kind=kind,
            dots=tuple(
                Dot(
                    x=x.place(point.at),
                    y=y.place(getattr(point.pairs, kind)),
                    marked=kind == "variant" and (point.pairs.worse or point.pairs.better),
                    words=f"{kind}: {getattr(point.pairs, kind):.1%} of {point.pairs.rows} rows",
                )
                for point in found.points
            ),
        )

    return Panel(
        title=found.name,
        x_name=x_name,
        x_ticks=tuple(Tick(at=x.place(point.at), words=f"{point.at:g}") for point in found.points),
        y_ticks=y.marked("{:.0%}" if y.last - y.first > 0.06 else "{:.1%}"),
        lines=(line("source"), line("variant")),
    )


def forest(slices: Sequence[Slice]) -> Forest:
    """Those that are beyond chance, and of the others those that changed most."""
    order = sorted(
        slices,
        key=lambda part: (
            part.pairs.worse or part.pairs.better,
            part.pairs.lost + part.pairs.gained > 0,
            abs(_drop(part)),
        ),
        reverse=True,
    )
    shown = [part for part in order if part.pairs.lost + part.pairs.gained][:MOST_SLICES]
    furthest = max((abs(end) for part in shown for end in (part.pairs.drop_low, part.pairs.drop_high)), default=1.0)
    x = Scale(first=-furthest, last=furthest, low=MIDDLE, high=MIDDLE + 2 * REACH)
    return Forest(
        whiskers=tuple(
            Whisker(
                part=part,
                y=LINE * (i + 0.5),
                low=x.place(part.pairs.drop_low),
                at=x.place(_drop(part)),
                high=x.place(part.pairs.drop_high),
            )
            for i, part in enumerate(shown)
        ),
        ticks=x.marked("{:+.0%}"),
        zero=x.place(0),
        left_out=len(slices) - len(shown),
        height=LINE * len(shown) + 40,
    )


def _drop(part: Slice) -> float:
    return part.pairs.source - part.pairs.variant


def drawings(example: Example) -> tuple[Drawing, ...]:
    """The row, and every map of it; maps of one method share their scale."""
    found = [_picture(example)] if example.picture else []
    for each in example.maps:
        largest = max(
            abs(value)
            for other in example.maps
            if other.method == each.method
            for line in other.cells
            for value in line
        )
        found.append(_map(each, largest or 1.0, example.words))
    return tuple(found)


def _picture(example: Example) -> Drawing:
    lines = example.picture
    height, width = CELL / len(lines), CELL / len(lines[0])
    return Drawing(
        title=f"row {example.row}",
        boxes=tuple(
            Box(
                x=j * width,
                y=i * height,
                width=width + 0.3,
                height=height + 0.3,
                colour="#{:02x}{:02x}{:02x}".format(*colour),
            )
            for i, line in enumerate(lines)
            for j, colour in enumerate(line)
        ),
    )


def _map(found: Map, largest: float, words: Sequence[str]) -> Drawing:
    title = f"{found.of}: {found.method}"
    if words:
        return Drawing(
            title=title,
            words=tuple(
                Word(text=word, strength=abs(value) / largest, against=value < 0)
                for word, value in zip(words, found.cells[0], strict=True)
            ),
        )
    height, width = CELL / len(found.cells), CELL / len(found.cells[0])
    return Drawing(
        title=title,
        boxes=tuple(
            Box(
                x=j * width,
                y=i * height,
                width=width,
                height=height,
                colour="against" if value < 0 else "for",
                opacity=abs(value) / largest,
            )
            for i, line in enumerate(found.cells)
            for j, value in enumerate(line)
            if value
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All pictures of one variant's deltas."""

    deltas: Deltas
    histograms: tuple[Panel, ...]
    reliability: Panel | None
    slices: Forest | None
    corruptions: tuple[Panel, ...]
    attacks: tuple[Panel, ...]
    examples: tuple[tuple[Example, tuple[Drawing, ...]], ...]


def figures(deltas: Deltas) -> Figures:
    judged, probed = deltas.judged, deltas.probed
    explained = probed.explanations if probed else None
    return Figures(
        deltas=deltas,
        histograms=tuple(histogram(each) for each in deltas.distances),
        reliability=reliability(judged.calibration) if judged else None,
        slices=forest(judged.slices) if judged else None,
        corruptions=tuple(
            curve(each, x_name="severity" if each.points[-1].at > 1 else "part of the tokens")
            for each in (probed.corruptions if probed else ())
        ),
        attacks=tuple(
            curve(each, x_name="reach, in 255ths of the range") for each in (probed.attacks if probed else ())
        ),
        examples=tuple((each, drawings(each)) for each in (explained.examples if explained else ())),
    )
