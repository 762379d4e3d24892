"""The report as one HTML file: no script, no network, light and dark as the reader's system has it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from seatrial_export.candidate import Verdict
from seatrial_export.report import Report, Row

PAGE = "report.html"
TEMPLATE = "report.html.j2"
WIDTH, HEIGHT, MARGIN = 640, 300, 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A variant in the plot. `right` says on which side of it its name has room."""

    row: Row
    x: float
    y: float
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Quality over latency per row, ready to be drawn; `front` is the line through the points that nothing beats."""

    points: tuple[Point, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    y_name: str


def draw(report: Report, path: Path) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template(TEMPLATE).render(
        report=report, plot=plot(report.rows), width=WIDTH, height=HEIGHT, margin=MARGIN, Verdict=Verdict
    )
    path.write_text(page)


def plot(rows: Sequence[Row]) -> Plot | None:
    """None where no variant was measured."""
    measured = [row for row in rows if row.row_ms is not None and row.quality is not None]
    if not measured:
        return None
    x = _Scale.of([_cost(row) for row in measured], low=MARGIN, high=WIDTH - MARGIN)
    y = _Scale.of([_value(row) for row in measured], low=HEIGHT - MARGIN, high=MARGIN / 2)
    points = tuple(
        Point(row=row, x=x.place(_cost(row)), y=y.place(_value(row)), right=x.place(_cost(row)) < WIDTH / 2)
        for row in measured
    )
    on_front = sorted((point for point in points if point.row.on_front), key=lambda point: point.x)
    return Plot(
        points=points,
        front=" ".join(f"{point.x:.1f},{point.y:.1f}" for point in on_front),
        x_ticks=tuple(Tick(at=x.place(value), words=f"{value:.3g}") for value in x.ticks()),
        y_ticks=tuple(Tick(at=y.place(value), words=f"{value:.4g}") for value in y.ticks()),
        y_name=measured[0].quality.metric if measured[0].quality else "",
    )


def _cost(row: Row) -> float:
    assert row.row_ms is not None, "not measured: this is a bug"
    return row.row_ms


def _value(row: Row) -> float:
    assert row.quality is not None, "not measured: this is a bug"
    return row.quality.value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """A linear scale from values to pixels, with some room at both ends."""

    first: float
    last: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float], *, low: float, high: float) -> "_Scale":
        room = 0.1 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
        return _Scale(first=min(values) - room, last=max(values) + room, low=low, high=high)

    def place(self, value: float) -> float:
        return self.low + (value - self.first) / (self.last - self.first) * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to six round numbers within the scale."""
        rough = (self.last - self.first) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
        return [step * i for i in range(math.ceil(self.first / step), math.floor(self.last / step) + 1)]
