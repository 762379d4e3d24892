"""What tuning measured as one HTML file: throughput over latency, the front, every configuration. No script, no network."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from seatrial.files import write_whole
from seatrial_serving.tune.advice import as_toml
from seatrial_serving.tune.search import Point
from seatrial_serving.tune.summary import figures
from seatrial_serving.tune.tuned import Tuned

TEMPLATE = Path(__file__).with_name("page.html")
WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, WIDTH - 16, 28, HEIGHT - 48


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    point: Point
    name: str
    kind: str


def draw(tuned: Tuned, path: Path) -> None:
    request = tuned.request
    filled = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"Tuning of {request.what}"),
        facts=html.escape(
            f"p99 within {request.p99_ms:g} ms · {tuned.traffic} · {request.protocol} · {tuned.machine.cpu}, "
            f"{tuned.machine.cores} cores · {tuned.took_s:.0f} s"
        ),
        verdict=html.escape(tuned.verdict.words),
        advice=f"<pre>{html.escape(as_toml(tuned.advice))}</pre>" if tuned.advice else "",
        plot=_plot(_marks(tuned), p99_ms=request.p99_ms),
        rows="\n".join(_rows(tuned)),
    )
    write_whole(path, filled.encode())


def front(points: Sequence[Point]) -> list[Point]:
    """Those than which no other is both faster and answers more, the fastest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.p99_ms, -point.per_second)):
        if not found or point.per_second > found[-1].per_second:
            found.append(point)
    return found


def _marks(tuned: Tuned) -> list[_Mark]:
    chosen = tuned.verdict.chosen
    kinds = {tuned.present: "now", chosen: "chosen"} if tuned.advice else {tuned.present: "now"}
    return [
        _Mark(
            point=point,
            name=f"{measured.configuration.beside(tuned.present)}, {point.callers} callers: "
            f"{point.per_second:,.0f} requests/s, p99 {point.p99_ms:.3g} ms",
            kind=kinds.get(measured.configuration, "other"),
        )
        for measured in tuned.found
        for point in measured.points
    ]


def _plot(marks: Sequence[_Mark], *, p99_ms: float) -> str:
    """Requests a second to the right, latency upwards on a logarithmic scale."""
    most = max(mark.point.per_second for mark in marks)
    latencies = [p99_ms, *(mark.point.p99_ms for mark in marks)]
    low, high = math.log10(min(latencies)) - 0.1, math.log10(max(latencies)) + 0.1

    def x(per_second: float) -> float:
        return LEFT + per_second / (1.05 * most) * (RIGHT - LEFT)

    def y(ms: float) -> float:
        return BOTTOM - (math.log10(ms) - low) / (high - low) * (BOTTOM - TOP)

    drawn = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="p99 latency over requests a second">']
    for ms in _round_numbers(low, high):
        drawn.append(f'<line class="grid" x1="{LEFT}" y1="{y(ms):.1f}" x2="{RIGHT}" y2="{y(ms):.1f}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y(ms) + 4:.1f}" text-anchor="end">{ms:g}</text>')
    drawn += [
        f'<text x="{x(rate):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{rate:,.0f}</text>'
        for rate in (most / 4, most / 2, most)
    ]
    drawn += [
        f'<text x="{LEFT}" y="14">p99, milliseconds</text>',
        f'<text x="{RIGHT}" y="{BOTTOM + 36}" text-anchor="end">requests a second</text>',
        f'<line class="bound" x1="{LEFT}" y1="{y(p99_ms):.1f}" x2="{RIGHT}" y2="{y(p99_ms):.1f}"/>',
    ]
    corners = [f"{x(p.per_second):.1f},{y(p.p99_ms):.1f}" for p in front([mark.point for mark in marks])]
    drawn.append(f'<polyline class="front" points="{" ".join(corners)}"/>')
    for mark in sorted(marks, key=lambda mark: mark.kind != "other"):  # those that are told apart lie on top
        place = f'cx="{x(mark.point.per_second):.1f}" cy="{y(mark.point.p99_ms):.1f}"'
        drawn.append(f'<circle class="{mark.kind}" {place} r="5"><title>{html.escape(mark.name)}</title></circle>')
    return "\n".join([*drawn, "</svg>"])


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between the logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [value for value in values if low <= math.log10(value) <= high]


def _rows(tuned: Tuned) -> list[str]:
    lines = []
    for measured in tuned.found:
        *numbers, why = figures(measured, tuned.request.p99_ms)
        name = measured.configuration.beside(tuned.present)
        cells = [f"<td>{html.escape(name)}</td>", *(f'<td class="number">{number}</td>' for number in numbers)]
        lines.append(f"<tr>{''.join(cells)}<td>{html.escape(why)}</td></tr>")
    return lines
