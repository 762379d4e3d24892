"""Timing in interleaved rounds, against a clock that the test moves."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial_export.measure import MAX_ROUNDS, MIN_ROUNDS, WARM_UP, measure, median_ranks, summary, throughput_batch
from seatrial_export.samples import Inputs, Outputs, Predict


@dataclass
class Bench:
    """Variants that take as long as they are told, on a clock of their own; `slowed` slows what runs meanwhile."""

    now: float = 0.0
    asked: list[str] = field(default_factory=list)
    slowed: float = 1.0

    def variant(self, name: str, seconds: float) -> Predict:
        def predict(_: Inputs) -> Outputs:
            self.asked.append(name)
            self.now += seconds * self.slowed
            return {}

        return predict


def test_rounds_ask_each_variant_once_in_an_order_that_rotates() -> None:
    bench = Bench()
    variants = {name: bench.variant(name, 0.001) for name in "abc"}
    measure(variants, {}, batch=1, threads=1, for_s=0, clock=lambda: bench.now)
    warm, rounds = bench.asked[: 3 * WARM_UP], bench.asked[3 * WARM_UP :]
    assert sorted(warm) == sorted("abc" * WARM_UP)
    assert len(rounds) == 3 * MIN_ROUNDS
    assert ["".join(rounds[i : i + 3]) for i in range(0, 12, 3)] == ["abc", "bca", "cab", "abc"]


def test_what_disturbs_the_machine_disturbs_all_alike() -> None:
    """The machine is three times as slow for the second half: medians move, their ratio does not."""
    bench = Bench()

    def fast(inputs: Inputs) -> Outputs:
        bench.slowed = 3.0 if len(bench.asked) > 60 else 1.0
        return bench.variant("fast", 0.001)(inputs)

    found = measure(
        {"fast": fast, "slow": bench.variant("slow", 0.002)}, {}, batch=8, threads=2, for_s=0.3, clock=lambda: bench.now
    )
    assert found["slow"].p50_ms / found["fast"].p50_ms == pytest.approx(2)
    assert found["fast"].rounds == found["slow"].rounds
    assert (found["fast"].batch, found["fast"].threads) == (8, 2)


def test_time_ends_the_rounds_but_never_before_there_are_enough() -> None:
    slow, quick = Bench(), Bench()
    found = measure({"a": slow.variant("a", 10)}, {}, batch=1, threads=1, for_s=1, clock=lambda: slow.now)
    assert found["a"].rounds == MIN_ROUNDS
    found = measure({"a": quick.variant("a", 1e-6)}, {}, batch=1, threads=1, for_s=1, clock=lambda: quick.now)
    assert found["a"].rounds == MAX_ROUNDS


def test_a_summary_of_known_latencies() -> None:
    found = summary([float(ms) for ms in range(100, 0, -1)], batch=1, threads=1)
    assert (found.p50_ms, found.p99_ms, found.rounds) == (50, 99, 100)
    assert (found.low_ms, found.high_ms) == (41, 61)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200))
def test_the_interval_holds_the_median(latencies: list[float]) -> None:
    found = summary(latencies, batch=1, threads=1)
    assert min(latencies) <= found.low_ms <= found.p50_ms <= found.high_ms <= max(latencies)
    assert found.p50_ms <= found.p99_ms


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    """Of skewed latencies, as real ones are: 600 times 50 draws whose true median is 1 ms."""
    draws = np.exp(np.random.default_rng(3).normal(size=(600, 50)))
    low, high = median_ranks(50)
    ordered = np.sort(draws, axis=1)
    covered = np.mean((ordered[:, low] <= 1) & (ordered[:, high] >= 1))
    assert 0.93 <= covered <= 0.99


def test_the_throughput_batch_is_halved_until_no_call_is_slow() -> None:
    sizes: list[int] = []

    def rows_of(size: int) -> Inputs:
        sizes.append(size)
        return {"x": np.zeros((size, 1))}

    assert throughput_batch([lambda _: {}], rows_of, limit=100) == 32
    assert throughput_batch([lambda _: {}], rows_of, limit=12) == 8
    assert throughput_batch([lambda _: {}], rows_of, limit=1) == 1
    assert sizes[-1] == 1
