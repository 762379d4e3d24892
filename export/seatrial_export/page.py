"""The report as one HTML file: no script, no network, light and dark as the reader's system has it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from seatrial_export.candidate import Verdict
from seatrial_export.choose import FLOORS
from seatrial_export.deltas.figures import figures
from seatrial_export.report import Report, Row
from seatrial_export.scale import Scale, Tick
from seatrial_export.search import Search
from seatrial_export.study import Trial

PAGE = "report.html"
TEMPLATE = "report.html.j2"

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 16, 44, HEIGHT - 48
LABEL_HEIGHT, LETTER_WIDTH, HIGHEST_LABEL = 15, 6.5, 24
"""Roughly, of the plot's own font."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A variant in the plot, in pixels. `number` is its place in the table; the `_low` and `_high` ends are whiskers'."""

    row: Row
    number: int
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Quality over latency per row, ready to be drawn.

    `front` are the steps through the points that nothing beats, `beaten` what lies below them; `floor` is the lowest
    quality that the budget allows, where labels judge.
    """

    points: tuple[Point, ...]
    front: str
    beaten: str
    floor: float | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    y_name: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A form that was tried, in pixels."""

    trial: Trial
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """What each form of a search loses over the part of it that is left in float, ready to be drawn; the front comes last."""

    search: Search
    dots: tuple[Dot, ...] = ()
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    width: int = 300
    height: int = 220
    left: int = 56
    right: int = 290
    top: int = 12
    bottom: int = 186


def scattered(search: Search) -> Scatter:
    empty = Scatter(search=search)
    if not search.trials:
        return empty
    x = Scale.of([0.0, *(100 * trial.in_float for trial in search.trials)], low=empty.left, high=empty.right)
    y = Scale.of([0.0, *(trial.lost for trial in search.trials)], low=empty.bottom, high=empty.top)
    dots = [
        Dot(trial=trial, x=x.place(100 * trial.in_float), y=y.place(trial.lost))
        for trial in sorted(search.trials, key=lambda trial: trial.on_front)
    ]
    return replace(empty, dots=tuple(dots), x_ticks=x.marked("{:.3g} %"), y_ticks=y.marked("{:.3g}"))


def draw(report: Report, path: Path) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"px": "{:.1f}".format, "kind": _kind}
    environment.globals |= {"floors": FLOORS}
    slowest = max((row.row_ms for row in report.rows if row.row_ms is not None), default=1.0)
    drawn = [figures(each) for each in report.deltas]
    page = environment.get_template(TEMPLATE)
    searches = [scattered(search) for search in report.searches]
    path.write_text(page.render(report=report, plot=plot(report), slowest=slowest, figures=drawn, searches=searches))


def _kind(verdict: Verdict) -> str:
    """Which of the page's few colours a verdict has."""
    kinds = {
        Verdict.CHOSEN: "chosen",
        Verdict.ADMITTED: "admitted",
        Verdict.NOT_APPLICABLE: "aside",
        Verdict.UNVERIFIED: "aside",
    }
    return kinds.get(verdict, "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What the plot shows of a row, in its units."""

    row: Row
    number: int
    cost: float
    cost_low: float
    cost_high: float
    value: float
    value_low: float


def plot(report: Report) -> Plot | None:
    """None where no variant was measured."""
    measured = [each for number, row in enumerate(report.rows, start=1) if (each := _measured(row, number))]
    if not measured:
        return None
    floor = _floor(report)
    values = [value for each in measured for value in (each.value, each.value_low)] + ([floor] if floor else [])
    x = Scale.of([0.0, *(each.cost_high for each in measured)], low=LEFT, high=RIGHT)
    y = Scale.of(values, low=BOTTOM, high=TOP)
    front = _steps([(x.place(each.cost), y.place(each.value)) for each in _unbeaten(measured)])
    return Plot(
        points=_points(measured, x, y),
        front=_path(front),
        beaten=_path([(front[0][0], BOTTOM), *front, (RIGHT, BOTTOM)]),
        floor=None if floor is None else y.place(floor),
        x_ticks=x.marked("{:.3g}"),
        y_ticks=y.marked("{:.4g}"),
        y_name=measured[0].row.quality.metric if measured[0].row.quality else "",
    )


def _measured(row: Row, number: int) -> _Measured | None:
    if row.row_ms is None or row.quality is None or row.throughput is None:
        return None
    batch = row.throughput.batch
    return _Measured(
        row=row,
        number=number,
        cost=row.row_ms,
        cost_low=row.throughput.low_ms / batch,
        cost_high=row.throughput.high_ms / batch,
        value=row.quality.value,
        value_low=row.quality.source_value - row.quality.drop_upper,
    )


def _floor(report: Report) -> float | None:
    """Agreement is held against its limit itself, not at the end of its interval: there a line would mislead."""
    judged = [row.quality for row in report.rows if row.quality and row.quality.basis == "labels"]
    return judged[0].source_value - report.budget["accuracy_drop"] if judged else None


def _unbeaten(measured: Sequence[_Measured]) -> list[_Measured]:
    """Each is better than all that cost less; from the cheapest to the best."""
    found: list[_Measured] = []
    for each in sorted(measured, key=lambda each: (each.cost, -each.value)):
        if not found or each.value > found[-1].value:
            found.append(each)
    return found


def _steps(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """From each point to the right as far as the next, then up to it; from the last to the edge."""
    corners = [front[0]]
    for (_, before), (x, y) in itertools.pairwise(front):
        corners += [(x, before), (x, y)]
    return [*corners, (RIGHT, front[-1][1])]


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _points(measured: Sequence[_Measured], x: Scale, y: Scale) -> tuple[Point, ...]:
    """With labels above them, towards the side that has room; where they would overlap higher, and where that is full below."""
    points: list[Point] = []
    for each in sorted(measured, key=lambda each: each.value):
        at, right = x.place(each.cost), x.place(each.cost) < (LEFT + RIGHT) / 2
        point = Point(
            row=each.row, number=each.number,
            x=at, x_low=x.place(each.cost_low), x_high=x.place(each.cost_high),
            y=y.place(each.value), y_low=y.place(each.value_low),
            label_x=at + (-8 if right else 8), label_y=y.place(each.value) - 13, anchor="start" if right else "end",
        )  # fmt: skip
        above = range(int(point.label_y), HIGHEST_LABEL, -1)
        below = range(int(point.y) + LABEL_HEIGHT + 6, BOTTOM)
        placed = (replace(point, label_y=label_y) for label_y in (*above, *below))
        points.append(next((one for one in placed if not any(_overlap(one, other) for other in points)), point))
    return tuple(points)


def _overlap(one: Point, other: Point) -> bool:
    (a, b), (c, d) = _extent(one), _extent(other)
    return a < d and c < b and abs(one.label_y - other.label_y) < LABEL_HEIGHT


def _extent(point: Point) -> tuple[float, float]:
    """From where to where the point and its label go, from left to right."""
    reach = LETTER_WIDTH * len(point.row.name)
    return (point.x - 8, point.x + reach) if point.anchor == "start" else (point.x - reach, point.x + 8)
