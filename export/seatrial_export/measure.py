"""How long each variant takes, in interleaved rounds: what disturbs the machine disturbs all of them alike.

Nothing else of ours runs meanwhile. An engine's median comes with a 95 % interval from order statistics, which assumes
nothing about how latencies are distributed.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from seatrial.bundle.evidence import Timing
from seatrial_export.quality import Z95
from seatrial_export.samples import Inputs, Predict

WARM_UP = 3
"""Calls of each variant that are not counted."""
MIN_ROUNDS, MAX_ROUNDS = 15, 500
THROUGHPUT_BATCH = 32
SLOW_CALL_S = 0.25
"""A throughput batch whose call takes longer is halved."""

Clock = Callable[[], float]


def throughput_batch(variants: Iterable[Predict], rows_of: Callable[[int], Inputs], *, limit: int) -> int:
    """The largest power of two, up to `limit`, of which no variant's call is slow."""
    size: int = 2 ** int(math.log2(min(limit, THROUGHPUT_BATCH)))
    for predict in variants:
        predict(rows_of(1))
        while size > 1 and _seconds(predict, rows_of(size)) > SLOW_CALL_S:
            size //= 2
    return size


def _seconds(predict: Predict, inputs: Inputs) -> float:
    started = time.perf_counter()
    predict(inputs)
    return time.perf_counter() - started


def measure(
    variants: Mapping[str, Predict],
    inputs: Inputs,
    *,
    batch: int,
    threads: int,
    for_s: float,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time one call of each variant per round until `for_s` has passed, in an order that rotates."""
    names = list(variants)
    latencies: dict[str, list[float]] = {name: [] for name in names}
    for name in names * WARM_UP:
        variants[name](inputs)
    with _undisturbed():
        until = clock() + for_s
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and clock() > until:
                break
            start = number % len(names)
            for name in names[start:] + names[:start]:
                started = clock()
                variants[name](inputs)
                latencies[name].append((clock() - started) * 1000)
    return {name: summary(found, batch=batch, threads=threads) for name, found in latencies.items()}


def summary(latencies_ms: Sequence[float], *, batch: int, threads: int) -> Timing:
    ordered = sorted(latencies_ms)
    low, high = median_ranks(len(ordered))
    return Timing(
        batch=batch,
        threads=threads,
        p50_ms=_quantile(ordered, 0.5),
        p99_ms=_quantile(ordered, 0.99),
        low_ms=ordered[low],
        high_ms=ordered[high],
        rounds=len(ordered),
    )


def median_ranks(n: int) -> tuple[int, int]:
    """The positions, in n ordered values, of the ends of the median's 95 % interval (normal approximation)."""
    reach = Z95 * math.sqrt(n) / 2
    return max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))


def _quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of all do not exceed."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector, which would strike whoever happens to be measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
