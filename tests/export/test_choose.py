"""Which variant wins, and what is said to each loser."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.bundle import Bound
from seatrial.bundle.evidence import Agreement, Quality, Timing
from seatrial.errors import InvalidSettings
from seatrial_export.candidate import CANDIDATES, Candidate, Verdict
from seatrial_export.choose import Budget, Judgement, Variant, choose, on_front
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
        size_bytes=2_000_000,
        memory_bytes=30_000_000,
    )  # fmt: skip


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
    ],
)
def test_costs_over_the_budget_lose_even_for_the_only_one(budget: Budget, reason: str) -> None:
    [judged] = choose([variant(FLOAT)], budget)
    assert (judged.verdict, judged.reason) == (Verdict.OVER_BUDGET, reason)
    assert judged.on_front
    [met] = choose([variant(FLOAT)], Budget(p99_ms=5, size_mb=2, memory_mb=30))
    assert met.verdict is Verdict.CHOSEN


def test_among_those_that_cannot_be_told_apart_accuracy_decides_and_then_simplicity() -> None:
    near = [variant(FLOAT, row_ms=1.01), variant(STATIC, row_ms=1.0)]
    assert the(choose(near, Budget()), FLOAT).verdict is Verdict.CHOSEN
    loser = the(choose(near, Budget()), STATIC)
    assert loser.reason == "as fast as onnx-cpu-fp32, within what can be told apart, but that one is simpler"
    better = [near[0], variant(STATIC, row_ms=1.0, accuracy=0.91)]
    assert the(choose(better, Budget()), STATIC).verdict is Verdict.CHOSEN
    assert "is more accurate" in the(choose(better, Budget()), FLOAT).reason
    apart = [variant(FLOAT, row_ms=1.03), variant(STATIC, row_ms=1.0)]
    assert the(choose(apart, Budget()), STATIC).verdict is Verdict.CHOSEN


def test_the_front_has_what_no_other_beats_whatever_its_verdict() -> None:
    best, cheap, beaten = (
        variant(FLOAT, row_ms=2, accuracy=0.95), variant(PRUNED, row_ms=1, accuracy=0.5, drop_upper=0.4),
        variant(STATIC, row_ms=3, accuracy=0.94),
    )  # fmt: skip
    assert [each.on_front for each in choose([best, cheap, beaten], Budget())] == [True, True, False]


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
        assert all(each.variant.throughput.high_ms >= winner.variant.throughput.low_ms for each in admitted)
        assert not winner.variant.candidate.lossy or winner.variant.quality.drop_upper <= 0.01
    if given:
        fastest = min(given, key=lambda each: (each.row_ms, -each.quality.value))
        assert on_front(fastest, given)


def test_a_budget_is_read_from_pairs() -> None:
    assert Budget.parse(["p99_ms=5", "accuracy_drop=0"]) == Budget(accuracy_drop=0, p99_ms=5)
    assert Budget.parse([]).as_dict() == {"accuracy_drop": 0.01}
    for wrong in ("p99_ms", "p99_ms=", "p99_ms=nan", "p99_ms=inf", "p99_ms=-1", "speed=1", "=1"):
        with pytest.raises(InvalidSettings):
            Budget.parse([wrong])


def test_a_variant_without_measured_memory_is_not_held_to_a_memory_budget_that_nobody_gave() -> None:
    [judged] = choose([replace(variant(FLOAT), memory_bytes=None)], Budget())
    assert judged.verdict is Verdict.CHOSEN
