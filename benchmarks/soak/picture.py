"""The course of a soak over time, drawn: what a leak, a stall or a failure looks like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.soak.course import Course, Reading

WIDTH_INCHES, ROW_INCHES = 10, 2


def draw(course: Course, path: Path) -> None:
    figure = Figure(figsize=(WIDTH_INCHES, 5 * ROW_INCHES), layout="constrained")
    rows: list[Axes] = list(figure.subplots(5, 1, sharex=True))
    readings = course.readings
    at_s = [each.at_s for each in readings]
    _line(rows[0], at_s, _rate(readings), "answered a second")
    _line(rows[1], at_s, [each.p99_ms for each in readings], "p99, ms")
    rows[1].set_yscale("log")
    _line(rows[2], at_s, [each.failed for each in readings], "failed so far")
    for name in ("gateway", "engines", "watcher"):
        _line(rows[3], at_s, [getattr(each.taken, f"{name}_mb") for each in readings], "memory, MB", name)
    for name in ("descriptors", "threads", "children"):
        _line(rows[4], at_s, [getattr(each.taken, name) for each in readings], "how many", name)
    for row in rows:
        for began, _ in course.mishaps:
            row.axvline(began, color="0.85", linewidth=0.5, zorder=0)
    for row in rows[3:]:
        row.legend(loc="upper left", fontsize="small", ncols=3)
    rows[0].set_title("Grey lines: swaps, kills and other mishaps", fontsize="small", loc="left")
    rows[-1].set_xlabel("seconds")
    figure.savefig(path)


def _line(row: Axes, at_s: Sequence[float], values: Sequence[float], what: str, name: str | None = None) -> None:
    row.plot(at_s, values, linewidth=1, label=name)
    row.set_ylabel(what)
    row.margins(x=0)


def _rate(readings: Sequence[Reading]) -> list[float]:
    times = np.array([each.at_s for each in readings])
    answered = np.array([each.answered for each in readings])
    rate: list[float] = (
        np.diff(answered, prepend=answered[:1]) / np.maximum(np.diff(times, prepend=0.0), 1e-9)
    ).tolist()
    return rate
