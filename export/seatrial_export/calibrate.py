"""Which range an INT8 activation gets, from what it was on the calibration rows. Runs inside children.

`min-max` takes all that was seen. The others cut off rare values, so that the frequent ones get finer steps:
`percentile` a fixed part of them; `entropy` what leaves the distribution over the 256 levels nearest to the one seen
(S. Migacz, "8-bit inference with TensorRT", GTC 2017); `mse` what leaves the numbers nearest to those seen (Nagel et
al., "A white paper on neural network quantization", 2021, section 3.1). They are told histograms alone, filled call by
call, so that no more of the activations is in memory than one call makes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, helper

from seatrial.tensors import Array
from seatrial_export.candidate import Calibration
from seatrial_export.onnx_graph import copied, watched

LEVELS = 256
BINS = 8192
NARROWEST = LEVELS / BINS
"""The part of the whole range below which a bin would be wider than a level."""
TRIED = 64
"""Ranges that `entropy` and `mse` compare."""
TINY = 1e-30
"""A range so narrow is that of zeros."""
CUT_PPM = 100
"""Of a million values, how many `percentile` cuts off unless it is told: as many at either end."""

Call = Mapping[str, Array]
"""Inputs of one call of the model."""


@dataclass(frozen=True, slots=True)
class Range:
    """Zero is always in it: INT8 must have a level for it."""

    low: float
    high: float

    def within(self, threshold: float) -> "Range":
        return Range(max(self.low, -threshold), min(self.high, threshold))


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often values fell into each of `BINS` equal parts of `seen`."""

    seen: Range
    counts: NDArray[np.int64]

    @property
    def width(self) -> float:
        return (self.seen.high - self.seen.low) / len(self.counts)

    @property
    def centres(self) -> NDArray[np.float64]:
        return np.asarray(self.seen.low + self.width * (np.arange(len(self.counts)) + 0.5), np.float64)

    def bins(self, kept: Range) -> slice:
        start = int((kept.low - self.seen.low) / self.width)
        stop = int(np.ceil((kept.high - self.seen.low) / self.width))
        return slice(min(start, len(self.counts) - 1), max(start + 1, min(stop, len(self.counts))))

    def tried(self) -> Iterator[Range]:
        """The whole range, and narrower ones: values far from zero are cut off first, on whatever side they are."""
        farthest = max(-self.seen.low, self.seen.high)
        for part in np.geomspace(1, NARROWEST, TRIED):
            yield self.seen.within(float(part) * farthest)


def ranges(
    model: ModelProto,
    tensors: Sequence[str],
    calls: Sequence[Call],
    method: Calibration,
    *,
    cut_ppm: int | None = None,
) -> dict[str, Range]:
    """The range of each of `tensors`, which are floats of the graph's inside or its inputs."""
    seen = _extents(model, tensors, calls)
    if method is Calibration.MIN_MAX:
        return seen
    narrow = NARROWED[method] if cut_ppm is None else partial(percentile, cut_ppm=cut_ppm)
    return seen | {name: narrow(each) for name, each in histograms(model, seen, calls).items()}


def _extents(model: ModelProto, tensors: Sequence[str], calls: Sequence[Call]) -> dict[str, Range]:
    """The model takes the smallest and the largest itself, so that the tensors do not have to be kept."""
    reduced = copied(model)
    ends = {f"{operator}.{name}": (operator, name) for name in tensors for operator in ("ReduceMin", "ReduceMax")}
    reduced.graph.node.extend(
        helper.make_node(operator, [name], [end], keepdims=0) for end, (operator, name) in ends.items()
    )
    found = np.array([list(call.values()) for call in observed(watched(reduced, list(ends)), list(ends), calls)])
    lows, highs = found[:, 0::2].min(axis=0, initial=0.0), found[:, 1::2].max(axis=0, initial=0.0)
    return {name: Range(float(low), float(high)) for name, low, high in zip(tensors, lows, highs, strict=True)}


def histograms(model: ModelProto, extents: Mapping[str, Range], calls: Sequence[Call]) -> dict[str, Histogram]:
    """Of those tensors whose `extents` can be divided."""
    seen = {name: each for name, each in extents.items() if TINY < each.high - each.low < math.inf}
    counts = {name: np.zeros(BINS, np.int64) for name in seen}
    inside = [name for name in seen if name not in calls[0]]
    for call, made in zip(calls, observed(watched(model, inside), inside, calls), strict=True):
        for name, each in seen.items():
            values = made[name] if name in made else call[name]
            place = (values.ravel() - each.low) * (BINS / (each.high - each.low))
            counts[name] += np.bincount(place.astype(np.int32).clip(0, BINS - 1), minlength=BINS)
    return {name: Histogram(seen=seen[name], counts=count) for name, count in counts.items()}


def observed(model: bytes, outputs: Sequence[str], calls: Iterable[Call]) -> Iterator[dict[str, Array]]:
    """What the model answers to each call; without `outputs` nothing."""
    if not outputs:
        yield from ({} for _ in calls)
        return
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for call in calls:
        yield dict(zip(outputs, session.run(list(outputs), dict(call)), strict=True))


def percentile(histogram: Histogram, *, cut_ppm: int = CUT_PPM) -> Range:
    reached = np.cumsum(histogram.counts) / histogram.counts.sum()
    cut = cut_ppm / 2e6
    low = histogram.seen.low + histogram.width * int(np.searchsorted(reached, cut, side="right"))
    high = histogram.seen.low + histogram.width * (int(np.searchsorted(reached, 1 - cut)) + 1)
    return Range(min(low, 0.0), max(min(high, histogram.seen.high), 0.0))


def entropy(histogram: Histogram) -> Range:
    return min(histogram.tried(), key=lambda kept: _divergence(histogram.counts, histogram.bins(kept)))


def mean_squared_error(histogram: Histogram) -> Range:
    return min(histogram.tried(), key=lambda kept: _squared_error(histogram, kept))


NARROWED: Mapping[Calibration, Callable[[Histogram], Range]] = {
    Calibration.PERCENTILE: percentile,
    Calibration.ENTROPY: entropy,
    Calibration.MSE: mean_squared_error,
}


def _divergence(counts: NDArray[np.int64], kept: slice) -> float:
    """How much is lost (Kullback-Leibler) where each level spreads its values over all of its bins that hold any."""
    inside = counts[kept].astype(np.float64)
    level = np.arange(len(inside)) * LEVELS // len(inside)
    filled = np.bincount(level, inside > 0, LEVELS)
    spread = np.bincount(level, inside, LEVELS) / np.maximum(filled, 1)
    found = np.where(inside > 0, spread[level], 0)
    inside[0] += counts[: kept.start].sum()
    inside[-1] += counts[kept.stop :].sum()
    if not found.any():
        return float("inf")
    held = inside > 0
    p, q = inside[held] / inside.sum(), np.maximum(found[held] / found.sum(), 1e-9)
    return float(np.sum(p * np.log(p / q)))


def _squared_error(histogram: Histogram, kept: Range) -> float:
    rounded = as_levels(histogram.centres, kept)
    return float(np.sum(histogram.counts * (histogram.centres - rounded) ** 2))


def as_levels(values: Array, kept: Range) -> Array:
    """What unsigned INT8 makes of `values`."""
    step = max((kept.high - kept.low) / (LEVELS - 1), float(np.finfo(np.float32).tiny))
    zero = round(-kept.low / step)
    level = np.clip(np.round(values / step) + zero, 0, LEVELS - 1)
    return np.asarray((level - zero) * step, values.dtype)
