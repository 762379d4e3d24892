"""Timing in interleaved rounds, against a clock that the test moves."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial_export.measure import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    MOST_CALLS,
    WARM_UP,
    Ask,
    Rounds,
    median_ranks,
    ratio,
    throughput_batch,
)
from tests.export.engines_at_will import Lose


@dataclass
class Bench:
    """Variants whose calls take as long as they are told, on a clock of their own; `slowed` slows what runs meanwhile."""

    now: float = 0.0
    asked: list[str] = field(default_factory=list)
    slowed: float = 1.0

    def variant(self, name: str, ms: float) -> Ask:
        def ask(calls: int) -> Sequence[float]:
            self.asked.append(name)
            self.now += calls * ms * self.slowed / 1000
            return [ms * self.slowed] * calls

        return ask

    def rounds(self, **ms: float) -> Rounds:
        return Rounds({name: self.variant(name, each) for name, each in ms.items()}, clock=lambda: self.now)


def test_rounds_ask_each_variant_once_in_an_order_that_rotates() -> None:
    bench = Bench()
    bench.rounds(a=5, b=5, c=5).play("abc", for_s=0)
    warm, rounds = "".join(bench.asked[:3]), "".join(bench.asked[3:])
    assert warm == "abc"
    assert len(rounds) == 3 * MIN_ROUNDS
    assert [rounds[i : i + 3] for i in range(0, 12, 3)] == ["abc", "bca", "cab", "abc"]


def test_a_turn_is_as_many_calls_as_take_a_while_and_the_first_of_several_is_not_counted() -> None:
    asked: list[int] = []

    def ask(calls: int) -> Sequence[float]:
        asked.append(calls)
        return [9.0, *[0.5] * (calls - 1)]

    rounds = Rounds({"a": ask})
    rounds.play("a", for_s=0)
    assert asked == [WARM_UP, *[5] * MIN_ROUNDS]
    found = rounds.timing("a", batch=1, length=None, threads=1)
    assert (found.p50_ms, found.p99_ms, found.rounds) == (0.5, 0.5, MIN_ROUNDS)


def test_who_took_part_in_few_rounds_is_compared_by_them() -> None:
    bench = Bench()
    rounds = bench.rounds(a=5, b=6)
    rounds.play("ab", for_s=0, at_least=6)
    bench.slowed = 3.0
    rounds.play("a", for_s=9, at_most=20)
    assert len(rounds.medians("b")) == 6
    assert len(rounds.medians("a")) == 26
    assert rounds.typical_ms("a") == pytest.approx(15)
    assert rounds.typical_ms("b") == pytest.approx(18)


@pytest.mark.parametrize(("ms", "calls"), [(3.0, 1), (1e-9, MOST_CALLS + 1)])
def test_a_turn_has_at_least_one_call_and_no_more_than_there_may_be(ms: float, calls: int) -> None:
    asked: list[int] = []

    def ask(number: int) -> Sequence[float]:
        asked.append(number)
        return [ms] * number

    Rounds({"a": ask}).play("a", for_s=0)
    assert asked == [WARM_UP, *[calls] * MIN_ROUNDS]


def test_what_disturbs_the_machine_disturbs_all_alike() -> None:
    """The machine is three times as slow for the second half: medians move, the ratio does not."""
    bench = Bench()

    def fast(calls: int) -> Sequence[float]:
        bench.slowed = 3.0 if len(bench.asked) > 40 else 1.0
        return bench.variant("fast", 3)(calls)

    rounds = Rounds({"fast": fast, "slow": bench.variant("slow", 6)}, clock=lambda: bench.now)
    rounds.play(["fast", "slow"], for_s=0.9)
    found = ratio(rounds.medians("slow"), rounds.medians("fast"))
    assert (found.low, found.middle, found.high) == (2, 2, 2)
    timing = rounds.timing("fast", batch=8, length=16, threads=2)
    assert (timing.low_ms, timing.high_ms) == (3, 9)
    assert (timing.batch, timing.length, timing.threads) == (8, 16, 2)


def test_time_ends_a_stretch_but_never_before_there_are_enough_rounds_and_the_next_one_goes_on() -> None:
    bench = Bench()
    rounds = bench.rounds(a=10_000, b=1)
    rounds.play("a", for_s=1)
    assert len(rounds.medians("a")) == MIN_ROUNDS
    rounds.play("b", for_s=1000)
    assert len(rounds.medians("b")) == MAX_ROUNDS
    rounds.play("ab", for_s=0)
    assert len(rounds.medians("b")) == MAX_ROUNDS + MIN_ROUNDS
    both = rounds.medians("a").keys() & rounds.medians("b").keys()
    assert len(both) == MIN_ROUNDS, "only in the third stretch they were in the same rounds"


def test_who_is_lost_has_no_more_turns_and_the_others_go_on() -> None:
    bench = Bench()
    lose = Lose(bench.variant("b", 5), after=4, reason="crashed with SIGSEGV")
    rounds = Rounds({"a": bench.variant("a", 5), "b": lose}, clock=lambda: bench.now)
    rounds.play("ab", for_s=0)
    assert rounds.lost["b"].reason == "crashed with SIGSEGV"
    assert len(rounds.medians("a")) == MIN_ROUNDS
    rounds.play("ab", for_s=0)
    assert bench.asked.count("b") == 4
    rounds.play("b", for_s=0)
    assert len(rounds.medians("a")) == 2 * MIN_ROUNDS


@given(st.lists(st.floats(1e-3, 1e3), min_size=MIN_ROUNDS, max_size=MIN_ROUNDS))
def test_the_interval_holds_the_median(latencies: list[float]) -> None:
    left = [2.5] * WARM_UP + latencies
    rounds = Rounds({"a": lambda calls: [left.pop(0) for _ in range(calls)]})
    rounds.play("a", for_s=0)
    found = rounds.timing("a", batch=1, length=None, threads=1)
    assert min(latencies) <= found.low_ms <= found.p50_ms <= found.high_ms <= found.p99_ms == max(latencies)
    assert found.p50_ms == float(np.median(latencies))


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    """Of skewed latencies, as real ones are: 600 times 50 draws whose true median is 1 ms."""
    draws = np.exp(np.random.default_rng(3).normal(size=(600, 50)))
    low, high = median_ranks(50)
    ordered = np.sort(draws, axis=1)
    covered = np.mean((ordered[:, low] <= 1) & (ordered[:, high] >= 1))
    assert 0.93 <= covered <= 0.99


@pytest.mark.parametrize(
    ("limit", "slow_above", "size"), [(100, 100, 32), (12, 100, 8), (1, 100, 1), (100, 5, 4), (100, 0, 1)]
)
def test_the_throughput_batch_is_halved_until_no_call_is_slow(limit: int, slow_above: int, size: int) -> None:
    assert throughput_batch([lambda rows: 251.0 if rows > slow_above else 1.0, lambda _: 1.0], limit=limit) == size
