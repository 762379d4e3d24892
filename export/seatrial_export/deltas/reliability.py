"""How far a model may be believed when it says how sure it is.

Source: Guo et al., "On calibration of modern neural networks" (2017): the confidence is the largest softmax probability,
rows are put into bins of equal width by it, and the expected calibration error is the mean distance between confidence
and accuracy of a bin, weighed by its rows.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from seatrial.tensors import Array
from seatrial_training.evaluation import Score

BINS = 15
DRAWS = 200
"""Of the rows, with replacement, for the interval of a change."""

Confidence = NDArray[np.float64]


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows whose confidence lies above `low` and up to `high`, on average at `confidence`; `accuracy` are right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """`error` is the expected calibration error; only bins that hold a row are listed."""

    error: float
    confidence: float
    bins: tuple[Bin, ...]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Of source and variant; the 95 % interval of how much larger the variant's error is, of rows drawn again in pairs."""

    source: Reliability
    variant: Reliability
    change_low: float
    change_high: float


def calibration(source: Score, variant: Score) -> Calibration:
    before, after = confidence(source.logits), confidence(variant.logits)
    random = np.random.default_rng(0)
    changes = []
    for _ in range(DRAWS):
        drawn = random.integers(source.rows, size=source.rows)
        changes.append(_error(after[drawn], variant.correct[drawn]) - _error(before[drawn], source.correct[drawn]))
    low, high = np.percentile(changes, (2.5, 97.5))
    return Calibration(
        source=reliability(before, source.correct),
        variant=reliability(after, variant.correct),
        change_low=float(low),
        change_high=float(high),
    )


def confidence(logits: Array) -> Confidence:
    """The largest softmax probability of each row; 0 where a row has no numbers."""
    logits = logits.astype(np.float64)
    finite = np.asarray(np.isfinite(logits).all(axis=-1))
    logits = np.where(finite[:, None], logits, 0.0)
    largest: Confidence = 1 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    return np.where(finite, largest, 0.0)


def reliability(sure: Confidence, correct: NDArray[np.bool_]) -> Reliability:
    rows, confidences, right = _binned(sure, correct)
    return Reliability(
        error=_error(sure, correct),
        confidence=float(sure.mean()),
        bins=tuple(
            Bin(
                low=i / BINS,
                high=(i + 1) / BINS,
                rows=int(rows[i]),
                confidence=float(confidences[i] / rows[i]),
                accuracy=float(right[i] / rows[i]),
            )
            for i in np.flatnonzero(rows).tolist()
        ),
    )


def _error(sure: Confidence, correct: NDArray[np.bool_]) -> float:
    _, confidences, right = _binned(sure, correct)
    return float(np.abs(confidences - right).sum() / len(sure))


def _binned(sure: Confidence, correct: NDArray[np.bool_]) -> tuple[Confidence, Confidence, Confidence]:
    """Of each bin: how many rows, the sum of their confidence, how many right ones."""
    place = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    rows, confidences, right = (
        np.bincount(place, weights=weights, minlength=BINS).astype(np.float64)
        for weights in (np.ones(len(sure)), sure, correct)
    )
    return rows, confidences, right
