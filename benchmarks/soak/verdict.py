"""What must hold of a soak, each with what was found.

Memory is judged by its slope over the second half, when everything that grows once has grown: the median of the slopes
between all pairs of readings, which a swap's passing engines do not move. The gateway may grow by one MiB, which is what
the allocator wanders, and 16 bytes for each request: a leaked object of any kind would be 48 or more. Engines are replaced
all the time, and may differ by a twentieth.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.soak.course import Course, Reading
from benchmarks.soak.subject import MB

POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio's own, which it starts one after the other and keeps."""
MOST_SHOWN, LONGEST = 5, 300
JUDGED_S = 60.0
"""A shorter half says nothing about memory."""
WANDERING_MB, REQUEST_BYTES, ENGINES_PART = 2**20 / MB, 16, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    promise: str
    found: str
    holds: bool | None
    """None where the run was too short to say."""

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold", None: "not judged"}[self.holds]


def judge(course: Course, logged: str) -> list[Finding]:
    """`logged` is what the server wrote to its log."""
    before, after = course.before, course.after
    differences = course.ledger.differences(course.counted)
    asked = course.ledger.seen.total()
    return [
        _none(
            "no well-behaved request failed, each refusal was the right one",
            course.ledger.failures,
            f"none of {asked:,}",
        ),
        _none(
            "the server counted what its clients saw", differences, f"no difference in {sum(course.counted.values()):,}"
        ),
        _none(
            "nothing unexpected in the server's log",
            [line for line in logged.splitlines() if _unexpected(line)],
            "no line",
        ),
        *_memory(course.readings),
        _no_more("descriptors at the end <= at the start", after.descriptors, before.descriptors),
        _no_more(
            "threads at the end <= at the start and those of the pool", after.threads, before.threads + POOL_THREADS
        ),
        _no_more("children at the end <= at the start", after.children, before.children),
    ]


def _unexpected(line: str) -> bool:
    return "Traceback" in line or "this is a bug" in line or " CRITICAL " in line


def _none(promise: str, found: Sequence[str], otherwise: str) -> Finding:
    shown = "; ".join(" ".join(each[:LONGEST].split()).replace("|", "/") for each in found[:MOST_SHOWN])
    return Finding(promise=promise, found=f"{len(found)}: {shown}" if found else otherwise, holds=not found)


def _no_more(promise: str, after: int, before: int) -> Finding:
    return Finding(promise=promise, found=f"{after} of {before}", holds=after <= before)


def _memory(readings: Sequence[Reading]) -> list[Finding]:
    half = readings[len(readings) // 2 :]
    span_s = half[-1].at_s - half[0].at_s
    requests = half[-1].answered - half[0].answered
    engines_mb = [each.taken.engines_mb for each in half]
    bounds = {
        "gateway": ([each.taken.gateway_mb for each in half], WANDERING_MB + REQUEST_BYTES * requests / MB),
        "engines": (engines_mb, ENGINES_PART * float(np.median(engines_mb))),
        "watcher": ([each.taken.watcher_mb for each in half], math.inf),
    }
    return [
        _growth(name, [each.at_s for each in half], memory, bound_mb, span_s=span_s)
        for name, (memory, bound_mb) in bounds.items()
    ]


def _growth(name: str, at_s: Sequence[float], memory_mb: Sequence[float], bound_mb: float, *, span_s: float) -> Finding:
    per_s = slope(at_s, memory_mb)
    grown = per_s * span_s
    judged = span_s >= JUDGED_S and math.isfinite(bound_mb)
    allowed = f" <= {bound_mb:.1f} MB" if math.isfinite(bound_mb) else ""
    return Finding(
        promise=f"memory of the {name}: growth in the second half{allowed}",
        found=f"{grown:+.2f} MB, {3600 * per_s:+.0f} MB an hour, at {np.median(memory_mb):.0f} MB",
        holds=grown <= bound_mb if judged else None,
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Theil and Sen: the median of the slopes between all pairs of points."""
    first, second = np.triu_indices(len(x), k=1)
    if not len(first):
        return 0.0
    xs, ys = np.asarray(x), np.asarray(y)
    return float(np.median((ys[second] - ys[first]) / (xs[second] - xs[first])))
