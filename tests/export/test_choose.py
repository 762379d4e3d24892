"""Which variant wins, and what is said to each loser."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.bundle import Bound
from seatrial.bundle.evidence import Agreement, Quality, Timing
from seatrial.errors import InvalidSettings
from seatrial_export.candidate import CANDIDATES, Candidate, Verdict
from seatrial_export.choose import Budget, Judgement, Objective, Variant, choose, halved, on_front, undecided
from seatrial_export.verify import Proof

FLOAT, DYNAMIC, STATIC, PRUNED, *_ = CANDIDATES


def timing(p50_ms: float, *, spread: float = 0.01, batch: int = 1, p99_ms: float | None = None) -> Timing:
    low, high = p50_ms * (1 - spread), p50_ms * (1 + spread)
    return Timing(batch=batch, threads=1, p50_ms=p50_ms, p99_ms=p99_ms or high, low_ms=low, high_ms=high, rounds=100)


def variant(
    candidate: Candidate,
    *,
    row_ms: float = 1.0,
    accuracy: float = 0.9,
    drop_upper: float = 0.0,
    basis: str = "labels",
    rows: int = 1000,
    cosine: float = 1.0,
    p99_ms: float = 5.0,
    spread: float = 0.01,
    size_bytes: int = 2_000_000,
    memory_bytes: int = 30_000_000,
) -> Variant:
    return Variant(
        candidate=candidate,
        proof=Proof(
            agreement=Agreement(cases=9, max_absolute=0.1, max_relative=0.1, top1=0.99, cosine=cosine),
            source={"y": Bound(absolute=0.1)},
            rerun={"y": Bound(absolute=0.1)},
        ),
        quality=Quality(
            metric="accuracy", basis=basis, rows=rows, value=accuracy,
            source_value=1.0 if basis == "agreement" else 0.9, drop_upper=drop_upper,
        ),
        alone=timing(4.0, p99_ms=p99_ms),
        throughput=timing(32 * row_ms, batch=32, spread=spread),
        row_ms=row_ms,
        rounds=rounds(32 * row_ms, spread=spread, of=candidate),
        size_bytes=size_bytes,
        memory_bytes=memory_bytes,
        load_s=0.2,
    )  # fmt: skip


def rounds(ms: float, *, spread: float, of: Candidate) -> dict[int, float]:
    """Forty, with noise of the candidate's own."""
    noise = np.random.default_rng(zlib.crc32(of.name.encode())).normal(scale=spread, size=40)
    return {number: ms * (1 + float(each)) for number, each in enumerate(noise - np.median(noise))}


def the(judgements: tuple[Judgement, ...], candidate: Candidate) -> Judgement:
    [found] = [each for each in judgements if each.variant.candidate == candidate]
    return found


def test_the_cheapest_within_the_budget_is_chosen() -> None:
    judged = choose([variant(FLOAT, row_ms=2), variant(STATIC, row_ms=1, drop_upper=0.009)], Budget())
    assert [each.verdict for each in judged] == [Verdict.ADMITTED, Verdict.CHOSEN]
    assert the(judged, FLOAT).reason == "slower: 2 ms a row, onnx-cpu-int8-static takes 1"
    assert the(judged, STATIC).reason == "the cheapest that meets the budget: 1 ms a row"


@pytest.mark.parametrize(
    ("accuracy", "drop_upper", "verdict", "reason"),
    [
        (0.9, 0.01, Verdict.CHOSEN, "cheapest"),
        (0.895, 0.0101, Verdict.NOT_ENOUGH_EVIDENCE, "by 0.0050 on 1000 rows, and the 95 % interval of that reaches 0.0101"),
        (0.88, 0.03, Verdict.OVER_BUDGET, "accuracy falls by 0.0200; the budget is 0.01"),
    ],
)  # fmt: skip
def test_accuracy_counts_at_the_upper_end_of_its_interval(
    accuracy: float, drop_upper: float, verdict: Verdict, reason: str
) -> None:
    [judged] = choose([variant(STATIC, accuracy=accuracy, drop_upper=drop_upper)], Budget())
    assert judged.verdict is verdict
    assert reason in judged.reason


def test_a_float_variant_is_not_asked_for_quality_which_its_proof_has_shown() -> None:
    [judged] = choose([variant(FLOAT, accuracy=0.9, drop_upper=0.02, rows=20)], Budget())
    assert judged.verdict is Verdict.CHOSEN


@pytest.mark.parametrize(
    ("rows", "agreement", "cosine", "verdict", "reason"),
    [
        (256, 0.99, 0.999, Verdict.CHOSEN, "cheapest"),
        (255, 1.0, 1.0, Verdict.NOT_ENOUGH_EVIDENCE, "it takes 256 rows to judge it and there are 255; give more with --samples"),
        (256, 0.989, 1.0, Verdict.OVER_BUDGET, "agrees with the source in 98.90% of the rows; 99.00% are asked"),
        (256, 1.0, 0.998, Verdict.OVER_BUDGET, "cosine 0.99800 to the source's; 0.999 is asked"),
    ],
)  # fmt: skip
def test_without_labels_agreement_decides(
    rows: int, agreement: float, cosine: float, verdict: Verdict, reason: str
) -> None:
    given = variant(STATIC, basis="agreement", rows=rows, accuracy=agreement, cosine=cosine, drop_upper=0.02)
    [judged] = choose([given], Budget())
    assert judged.verdict is verdict
    assert reason in judged.reason


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(p99_ms=4.9), "its p99 latency is 5 ms; the budget is 4.9"),
        (Budget(size_mb=1.9), "its model file has 2 MB; the budget is 1.9"),
        (Budget(memory_mb=29), "its engine takes 30 MB of memory; the budget is 29"),
        (Budget(p50_ms=3.9), "its median latency is 4 ms; the budget is 3.9"),
        (Budget(load_s=0.1), "its engine takes 0.2 s to load; the budget is 0.1"),
        (Budget(throughput=1001), "it answers 1000 rows a second; the budget asks for 1001"),
        (Budget(metric=0.91), "its accuracy is 0.9000; the budget asks for 0.91"),
    ],
)
def test_what_misses_the_budget_loses_even_as_the_only_one(budget: Budget, reason: str) -> None:
    [judged] = choose([variant(FLOAT)], budget)
    assert (judged.verdict, judged.reason) == (Verdict.OVER_BUDGET, reason)
    assert judged.on_front
    just = Budget(p50_ms=4, p99_ms=5, size_mb=2, memory_mb=30, load_s=0.2, throughput=1000, metric=0.9)
    [met] = choose([variant(FLOAT)], just)
    assert met.verdict is Verdict.CHOSEN


def test_a_floor_for_the_metric_takes_labels() -> None:
    [judged] = choose([variant(FLOAT, basis="agreement", accuracy=1.0)], Budget(metric=0.5))
    assert judged.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "no labels came with the model" in judged.reason


def test_of_those_that_are_as_cheap_within_3_percent_accuracy_decides_and_then_simplicity() -> None:
    near = [variant(FLOAT, row_ms=1.01), variant(STATIC, row_ms=1.0)]
    assert the(choose(near, Budget()), FLOAT).verdict is Verdict.CHOSEN
    loser = the(choose(near, Budget()), STATIC)
    assert loser.reason == "as fast as onnx-cpu-fp32 within 3 %, but that one is simpler"
    better = [near[0], variant(STATIC, row_ms=1.0, accuracy=0.91)]
    assert the(choose(better, Budget()), STATIC).verdict is Verdict.CHOSEN
    worse = [variant(FLOAT, row_ms=1.01, accuracy=0.91), variant(STATIC, row_ms=1.0)]
    assert the(choose(worse, Budget()), STATIC).reason.endswith("but that one is more accurate")
    apart = [variant(FLOAT, row_ms=1.05, accuracy=0.91), variant(STATIC, row_ms=1.0)]
    assert the(choose(apart, Budget()), STATIC).verdict is Verdict.CHOSEN


def test_who_is_not_proved_to_be_as_cheap_does_not_win_by_accuracy() -> None:
    """A noisy variant whose interval holds 1 and reaches to 1.2: that it may be as fast is no reason to take it."""
    noisy = variant(FLOAT, row_ms=1.03, accuracy=0.91, spread=0.3)
    judged = choose([noisy, variant(STATIC, row_ms=1.0)], Budget())
    assert the(judged, STATIC).verdict is Verdict.CHOSEN
    assert "the rounds could not tell them apart" in the(judged, FLOAT).reason


def test_rounds_are_compared_one_by_one() -> None:
    """Both swing by half from round to round, together: medians say nothing, the ratios that one is 4 % slower each time."""
    swing = {number: 32 * (1 + 0.5 * (number % 7) / 7) for number in range(40)}
    fast, slow = variant(STATIC, spread=0.5), variant(FLOAT, row_ms=1.04, accuracy=0.91, spread=0.5)
    judged = choose(
        [replace(slow, rounds={number: 1.04 * ms for number, ms in swing.items()}), replace(fast, rounds=swing)],
        Budget(),
    )
    assert the(judged, STATIC).verdict is Verdict.CHOSEN
    assert the(judged, FLOAT).reason.startswith("slower: 1.04 ms a row")


def test_two_are_undecided_where_they_may_be_equal_and_may_differ_by_more_than_3_percent() -> None:
    def pair(row_ms: float, spread: float) -> list[Variant]:
        return [variant(FLOAT, spread=spread), variant(STATIC, row_ms=row_ms, spread=spread)]

    assert undecided(pair(1.0, 0.01), Budget(), Objective.CHEAPEST) == (), "known to be alike"
    assert undecided(pair(1.2, 0.01), Budget(), Objective.CHEAPEST) == (), "known to differ"
    assert undecided(pair(1.01, 0.2), Budget(), Objective.CHEAPEST) == (), "the simpler one is known to be as cheap"
    blurred = pair(0.99, 0.2)
    assert set(map(id, undecided(blurred, Budget(), Objective.CHEAPEST))) == set(map(id, blurred))
    assert undecided(blurred, Budget(size_mb=1), Objective.CHEAPEST) == (), "neither can be chosen"
    assert undecided(blurred[:1], Budget(), Objective.CHEAPEST) == ()
    better = [variant(FLOAT, row_ms=1.03, accuracy=0.91), variant(STATIC)]
    assert len(undecided(better, Budget(), Objective.CHEAPEST)) == 2, "whether the better one is within 3 % decides"
    worse = [variant(STATIC), variant(FLOAT, row_ms=1.03, accuracy=0.89)]
    assert undecided(worse, Budget(), Objective.CHEAPEST) == (), "that the worse one may be within 3 % does not"
    third = [variant(DYNAMIC), variant(STATIC, row_ms=1.005), *better[:1], variant(PRUNED, row_ms=1.2, accuracy=0.95)]
    assert [each.candidate for each in undecided(third, Budget(), Objective.CHEAPEST)] == [DYNAMIC, FLOAT]
    smaller = [blurred[0], replace(blurred[1], size_bytes=1000)]
    assert undecided(smaller, Budget(), Objective.SIZE) == (), "its time does not matter"


def test_worth_more_rounds_is_the_better_half_of_those_whose_answers_the_budget_admits() -> None:
    wrong = variant(PRUNED, row_ms=0.1, accuracy=0.5, drop_upper=0.4)
    late = variant(DYNAMIC, row_ms=1, p99_ms=50)
    quick, slow, slowest = (variant(STATIC, row_ms=row_ms, size_bytes=int(1e6 * row_ms)) for row_ms in (2, 3, 4))
    given, within = [slowest, wrong, slow, late, quick], Budget(p99_ms=10)
    assert halved(given, Budget(), Objective.CHEAPEST) == [late, quick]
    assert halved(given, within, Objective.CHEAPEST) == [quick, slow], "what meets the budget comes first"
    assert halved([wrong, late, quick], within, Objective.CHEAPEST) == [quick, late], "one late call may be chance"
    assert halved([slowest, quick], Budget(), Objective.CHEAPEST) == [quick, slowest], "the last two stay"
    assert halved([wrong], Budget(), Objective.CHEAPEST) == []
    assert halved([*given, late], Budget(), Objective.SIZE) == [late, late, quick]
    alike = [variant(candidate, row_ms=1 + number / 100, spread=0.3) for number, candidate in enumerate(CANDIDATES[:5])]
    assert len(halved([*alike, slow], Budget(), Objective.CHEAPEST)) == 5, "each of them may be the fastest"
    best = variant(DYNAMIC, row_ms=4, accuracy=0.91)
    assert halved([quick, slow, best], Budget(), Objective.ACCURACY) == [best, quick]


def test_another_objective_decides_first_and_the_cost_of_what_it_leaves() -> None:
    given = [
        variant(FLOAT, row_ms=3, accuracy=0.92, size_bytes=4_000_000),
        variant(DYNAMIC, row_ms=2, accuracy=0.92, size_bytes=1_000_000),
        variant(STATIC, row_ms=1, accuracy=0.9, size_bytes=1_000_000),
    ]
    small, accurate = (choose(given, Budget(), objective) for objective in (Objective.SIZE, Objective.ACCURACY))
    assert the(small, STATIC).reason == "the smallest that meets the budget: 1 MB"
    assert the(small, FLOAT).reason == "larger: 4 MB, onnx-cpu-int8-static has 1"
    assert the(small, DYNAMIC).reason == "slower: 2 ms a row, onnx-cpu-int8-static takes 1"
    assert the(accurate, DYNAMIC).reason == "the best that meets the budget: accuracy 0.9200"
    assert the(accurate, STATIC).reason == "less accurate: accuracy 0.9000, onnx-cpu-int8-dynamic has 0.9200"
    within = Budget(size_mb=0.5)
    assert all(each.verdict is Verdict.OVER_BUDGET for each in choose(given, within, Objective.ACCURACY))


def test_the_front_has_what_no_other_beats_whatever_its_verdict() -> None:
    best, cheap, beaten = (
        variant(FLOAT, row_ms=2, accuracy=0.95), variant(PRUNED, row_ms=1, accuracy=0.5, drop_upper=0.4),
        variant(STATIC, row_ms=3, accuracy=0.94),
    )  # fmt: skip
    assert [each.on_front for each in choose([best, cheap, beaten], Budget())] == [True, True, False]
    for spared in (replace(beaten, size_bytes=1_000_000), replace(beaten, memory_bytes=20_000_000)):
        assert on_front(spared, [best, cheap, spared])
    assert not on_front(replace(beaten, memory_bytes=29_999_999), [best, cheap, beaten]), "less than can be measured"


variants = st.lists(
    st.builds(
        lambda candidate, row_ms, accuracy, drop_upper: variant(
            candidate, row_ms=row_ms, accuracy=accuracy, drop_upper=drop_upper
        ),
        st.sampled_from(CANDIDATES), st.floats(0.1, 10), st.floats(0, 1), st.floats(-0.1, 0.2),
    ),
    max_size=4, unique_by=lambda each: each.candidate,
)  # fmt: skip


@given(variants)
def test_whatever_is_given_at_most_one_wins_and_all_are_told_why(given: list[Variant]) -> None:
    judged = choose(given, Budget())
    assert [each.variant for each in judged] == given
    assert all(each.reason for each in judged)
    admitted = [each for each in judged if each.verdict in (Verdict.CHOSEN, Verdict.ADMITTED)]
    chosen = [each for each in judged if each.verdict is Verdict.CHOSEN]
    assert len(chosen) == (1 if admitted else 0)
    for winner in chosen:
        assert winner.variant.row_ms <= 1.05 * min(each.variant.row_ms for each in admitted)
        assert not winner.variant.candidate.lossy or winner.variant.quality.drop_upper <= 0.01
    if given:
        fastest = min(given, key=lambda each: (each.row_ms, -each.quality.value))
        assert on_front(fastest, given)


def test_a_budget_is_read_from_pairs() -> None:
    assert Budget.parse(["p99_ms=5", "accuracy_drop=0"]) == Budget(accuracy_drop=0, p99_ms=5)
    assert Budget.parse(["throughput=40", "metric=0.9", "load_s=1", "p50_ms=2"]).as_dict() == {
        "accuracy_drop": 0.01, "metric": 0.9, "p50_ms": 2, "throughput": 40, "load_s": 1,
    }  # fmt: skip
    assert Budget.parse([]).as_dict() == {"accuracy_drop": 0.01}
    for wrong in ("p99_ms", "p99_ms=", "p99_ms=nan", "p99_ms=inf", "p99_ms=-1", "speed=1", "=1"):
        with pytest.raises(InvalidSettings):
            Budget.parse([wrong])
