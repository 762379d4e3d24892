"""The exam that every candidate sits: each fault that an exporter is known for is caught, and nothing else is."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.bundle import Bundle
from seatrial.errors import EngineFailed, InvalidSource
from seatrial.tensors import Array, DataType, DynamicAxis, Padding, Signature, TensorSpec
from seatrial_export import trial
from seatrial_export.build import Built
from seatrial_export.candidate import CANDIDATES, Candidate, Lost, Verdict
from seatrial_export.exam import set_exam
from seatrial_export.golden import record
from seatrial_export.samples import Inputs, Outputs, Predict, PredictAll
from seatrial_export.shelf import Shelf
from seatrial_export.trial import Verified, ask_source, examine
from seatrial_export.verify import Unfaithful, agreement, round_up, same_neighbour, verify
from seatrial_serving.engines import Engine, open_engine
from tests.export.models import (
    FLOAT_FAULTS,
    LOSSY_FAULTS,
    Break,
    another_largest,
    doubles,
    linear_source,
    nan_for_zeros,
    right,
    some_rows,
)
from tests.serving.models import SIGNATURE, linear

FLOAT, DYNAMIC, STATIC, PRUNED, *_ = CANDIDATES


def sit(candidate: Candidate, break_: Break, folder: Path) -> Verified | Lost:
    """The exam, as an export holds it: the file in a bundle, opened by the engine that will serve it."""
    source = linear_source(folder)
    built = Built(candidate=candidate, model=break_(folder / "candidate.onnx"))
    return examine(built, source, ask_source(source), store=folder / "bundles", threads=1)


@pytest.mark.parametrize("candidate", CANDIDATES[:3], ids=lambda candidate: candidate.name)
def test_a_faithful_candidate_passes(candidate: Candidate, tmp_path: Path) -> None:
    found = sit(candidate, right, tmp_path)
    assert isinstance(found, Verified)
    assert found.proof.agreement.max_absolute < 1e-6
    assert found.proof.agreement.top1 == 1
    assert found.proof.agreement.cosine == pytest.approx(1)
    assert found.quality.basis == "agreement"
    assert found.quality.rows == 16


@pytest.mark.parametrize(("break_", "words"), FLOAT_FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_float_candidate_with_a_fault_is_found_out(break_: Break, words: str, tmp_path: Path) -> None:
    found = sit(FLOAT, break_, tmp_path)
    assert isinstance(found, Lost)
    assert found.verdict is Verdict.UNFAITHFUL
    assert re.search(words, found.reason)


@pytest.mark.parametrize(("break_", "words"), LOSSY_FAULTS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("candidate", [DYNAMIC, STATIC], ids=lambda candidate: candidate.name)
def test_a_quantized_candidate_may_be_off_but_not_broken(
    candidate: Candidate, break_: Break, words: str, tmp_path: Path
) -> None:
    found = sit(candidate, break_, tmp_path)
    assert isinstance(found, Lost)
    assert found.verdict is Verdict.UNFAITHFUL
    assert re.search(words, found.reason)


def test_a_quantized_candidate_that_is_evenly_off_passes_with_its_distance_in_the_proof() -> None:
    exam = set_exam(SIGNATURE, some_rows(), source)
    proof = verify(STATIC, lambda inputs: {"y": linear(inputs["x"], scale=1.01)}, exam)
    assert 0.01 < proof.agreement.max_absolute < 0.2
    assert proof.agreement.max_relative == proof.agreement.max_absolute / exam.scale["y"]
    assert proof.rerun["y"].steps == 4
    assert proof.rerun["y"].top1
    step = np.ptp(linear(some_rows()["x"], scale=1.01)) / 255
    assert proof.rerun["y"].absolute == round_up(4 * float(step))


def test_a_pruned_candidate_must_equal_the_program_that_it_was_converted_from() -> None:
    """It differs from the source by training; from its own program by nothing."""
    exam = set_exam(SIGNATURE, some_rows(), source)

    def retrained(inputs: Inputs) -> Outputs:
        return {"y": linear(inputs["x"], scale=1.1)}

    assert verify(PRUNED, retrained, exam, program=retrained).agreement.max_absolute > 0.1
    with pytest.raises(Unfaithful, match=r"batch 1: 'y' is .* from the source's"):
        verify(PRUNED, source, exam, program=retrained)


def test_the_grid_has_sizes_that_are_no_power_of_two_edges_and_the_largest_batch() -> None:
    exam = set_exam(SIGNATURE, some_rows(), source)
    assert [case.name for case in exam.cases] == [
        "batch 1", "batch 2", "batch 3", "batch 7", "batch 64", "zeros", "lowest", "highest", "in turn", "denormals",
        "noise", "10 times the range",
    ]  # fmt: skip
    edges = {case.name: case.inputs["x"] for case in exam.cases}
    rows = some_rows()["x"]
    assert (edges["denormals"] > 0).all()
    assert (edges["denormals"] < np.finfo(np.float32).smallest_normal).all()
    assert rows.min() <= edges["noise"].min() < edges["noise"].max() <= rows.max()
    assert (edges["10 times the range"] == 10 * rows[:2]).all()
    [company] = exam.companies
    assert list(dict.fromkeys(party.name for party in company.parties)) == [
        *(f"in a batch of {size}" for size in (1, 2, 3, 7, 64)), "among other rows", "beside rows of 10 times the range",
    ]  # fmt: skip
    among = [party for party in company.parties if party.name == "among other rows"]
    seen = {(row, position) for party in among for position, row in enumerate(party.seats)}
    assert seen == {(row, position) for row in range(5) for position in range(5)}


def test_a_source_that_answers_nan_or_mixes_its_rows_is_refused() -> None:
    def nan(inputs: Inputs) -> Outputs:
        return {"y": linear(inputs["x"]) * np.float32(np.nan)}

    def mixing(inputs: Inputs) -> Outputs:
        return {"y": linear(inputs["x"]) - linear(inputs["x"]).mean(axis=0, keepdims=True)}

    with pytest.raises(InvalidSource, match="NaN or infinity for ordinary inputs"):
        set_exam(SIGNATURE, some_rows(), nan)
    with pytest.raises(InvalidSource, match=r"itself answers a row differently .*fixed batch of 1"):
        set_exam(SIGNATURE, some_rows(), mixing)


TEXT = Signature(
    inputs=(TensorSpec(name="ids", datatype=DataType.INT64, shape=(-1, -1)),),
    outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 1)),),
    dynamic_axes=(
        DynamicAxis(name="batch", at={"ids": 0, "y": 0}, max=8),
        DynamicAxis(name="tokens", at={"ids": 1}, min=2, max=9),
    ),
    padding=Padding(axis="tokens", values={"ids": 0}),
)
IDS = {"ids": np.array([[5, 3, 0, 0], [2, 0, 0, 0], [1, 1, 4, 2], [3, 0, 0, 0], [9, 9, 9, 0]])}


def mean_of_tokens(inputs: Inputs) -> Outputs:
    """As a careful model: padding counts for nothing."""
    ids = inputs["ids"]
    return {"y": (ids.sum(axis=1, keepdims=True) / (ids != 0).sum(axis=1, keepdims=True).clip(1)).astype(np.float32)}


def test_lengths_are_tried_from_the_shortest_to_the_longest_and_padding_must_not_be_heard() -> None:
    exam = set_exam(TEXT, IDS, mean_of_tokens)
    assert [case.name for case in exam.cases if "tokens" in case.name] == [
        "tokens 2",
        "tokens 3",
        "tokens 4",
        "tokens 5",
        "tokens 9",
    ]

    def careless(inputs: Inputs) -> Outputs:
        """As an exporter that lost the mask: one more for each padded token beyond the row's own."""
        ids = inputs["ids"]
        return {
            "y": mean_of_tokens(inputs)["y"]
            + (np.float32(1e-2) * (ids == 0).sum(axis=1, keepdims=True)).astype(np.float32)
        }

    verify(FLOAT, mean_of_tokens, exam)
    with pytest.raises(Unfaithful, match=r"padded|lowest|batch"):
        verify(FLOAT, careless, exam)
    with pytest.raises(InvalidSource, match="itself answers a row differently padded"):
        set_exam(TEXT, IDS, careless)


MASKED = Signature(
    inputs=(
        TensorSpec(name="ids", datatype=DataType.INT64, shape=(-1, -1)),
        TensorSpec(name="mask", datatype=DataType.INT64, shape=(-1, -1)),
    ),
    outputs=(
        TensorSpec(name="states", datatype=DataType.FP32, shape=(-1, -1)),
        TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 1)),
    ),
    dynamic_axes=(
        DynamicAxis(name="batch", at={"ids": 0, "mask": 0, "states": 0, "y": 0}, max=8),
        DynamicAxis(name="tokens", at={"ids": 1, "mask": 1, "states": 1}, max=9),
    ),
    padding=Padding(axis="tokens", values={"ids": 3, "mask": 0}),
)


def masked_mean(inputs: Inputs) -> Outputs:
    ids, mask = inputs["ids"], inputs["mask"]
    mean = (ids * mask).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True).clip(1)
    return {"states": ids.astype(np.float32), "y": mean.astype(np.float32)}


def test_a_mask_that_is_not_heeded_is_found_out_by_rows_that_all_came_equally_long() -> None:
    exam = set_exam(MASKED, {"ids": np.arange(1, 31).reshape(5, 6), "mask": np.ones((5, 6), np.int64)}, masked_mean)

    def heedless(inputs: Inputs) -> Outputs:
        return masked_mean({**inputs, "mask": np.ones_like(inputs["mask"])})

    verify(FLOAT, masked_mean, exam)
    with pytest.raises(Unfaithful, match="padded to 9: 'y' is"):
        verify(FLOAT, heedless, exam)
    with pytest.raises(Unfaithful, match="a row is answered differently padded to 6"):
        verify(FLOAT, heedless, replace(exam, cases=()))
    assert [party.name for party in exam.companies[1].parties] == ["padded to 6", "padded to 9"]
    assert [row["ids"].shape[1] for row in exam.companies[1].alone] == [1, 2, 3, 4, 6]


def test_every_token_and_a_row_of_padding_alone_are_asked_whether_or_not_a_real_row_has_them() -> None:
    exam = set_exam(TEXT, IDS, mean_of_tokens)
    [every] = exam.tables
    assert every.name == "every value of 'ids'"
    assert set(every.inputs["ids"].ravel()) == set(range(10))
    [alone] = [case for case in exam.cases if case.name == "padding alone"]
    assert alone.inputs["ids"].tolist() == [[0] * 9]

    def loses_eight(inputs: Inputs) -> Outputs:
        return mean_of_tokens({"ids": np.where(inputs["ids"] == 8, 7, inputs["ids"])})

    def divides_by_none(inputs: Inputs) -> Outputs:
        ids = inputs["ids"]
        with np.errstate(invalid="ignore"):
            return {"y": (ids.sum(1, keepdims=True) / (ids != 0).sum(1, keepdims=True)).astype(np.float32)}

    with pytest.raises(Unfaithful, match="every value of 'ids': 'y' is"):
        verify(FLOAT, loses_eight, replace(exam, cases=()))
    with pytest.raises(Unfaithful, match="padding alone: 'y' holds NaN"):
        verify(FLOAT, divides_by_none, replace(exam, cases=(alone,)))
    undefined = set_exam(TEXT, IDS, divides_by_none)
    assert not {"padding alone", "zeros"} & {case.name for case in undefined.cases}


def test_more_integers_than_there_is_room_for_are_spread_evenly() -> None:
    ids = np.array([[-(2**62), 2**62]] * 5)
    exam = set_exam(TEXT, {"ids": ids}, lambda given: {"y": np.zeros((len(given["ids"]), 1), np.float32)})
    values = np.concatenate([case.inputs["ids"].ravel() for case in exam.tables])
    assert (len(values), values.min(), values.max()) == (2048, -(2**62), 2**62)
    assert len(set(np.diff(np.unique(values)) // 2**40)) == 1


def test_a_length_that_became_fixed_is_named() -> None:
    def takes_four(inputs: Inputs) -> Outputs:
        if inputs["ids"].shape[1] != 4:
            raise EngineFailed("Got: 2 Expected: 4")
        return mean_of_tokens(inputs)

    exam = set_exam(TEXT, IDS, mean_of_tokens)
    with pytest.raises(
        Unfaithful, match=r"the axis 'tokens' became fixed at 4: 2, 3, 5, 9 are not answered \(tokens 2: "
    ):
        verify(FLOAT, takes_four, exam)


def test_a_fault_that_shows_in_one_row_alone_or_in_small_answers_alone_is_found() -> None:
    rows = some_rows(200)
    exam = set_exam(SIGNATURE, rows, source)

    def wrong_for_the_hundredth(inputs: Inputs) -> Outputs:
        return {"y": linear(inputs["x"]) + np.float32(0.01) * (inputs["x"] == rows["x"][99]).all(1, keepdims=True)}

    with pytest.raises(Unfaithful, match=r"real rows: 'y' is 0\.01 from the source's"):
        verify(FLOAT, wrong_for_the_hundredth, exam)

    def small(inputs: Inputs) -> Outputs:
        return {"y": linear(inputs["x"], scale=2e-6)}

    exam = set_exam(SIGNATURE, rows, small)
    verify(FLOAT, small, exam)
    with pytest.raises(
        Unfaithful, match=r"real rows: 'y' is .*e-06 from the source's on average.* 0.001 of that is allowed"
    ):
        verify(FLOAT, lambda inputs: {"y": np.zeros_like(small(inputs)["y"])}, exam)


def test_tolerance_goes_by_the_precision_in_which_the_source_computes() -> None:
    def double(inputs: Inputs) -> Outputs:
        return {"y": inputs["x"].astype(np.float64)[:, :3] / 3}

    def in_single(inputs: Inputs) -> Outputs:
        return {"y": (inputs["x"][:, :3] / np.float32(3)).astype(np.float64)}

    def in_another_order(inputs: Inputs) -> Outputs:
        return {"y": in_single(inputs)["y"] * (1 + 1e-6)}

    with pytest.raises(Unfaithful, match=r"batch 1: 'y' is .*e-0[89] from the source's, 1.*e-09 is allowed"):
        verify(FLOAT, in_single, set_exam(SIGNATURE, some_rows(), double))
    verify(FLOAT, in_another_order, set_exam(SIGNATURE, some_rows(), in_single))

    def half(inputs: Inputs) -> Outputs:
        return {"y": inputs["x"][:, :3].astype(np.float16)}

    off = np.float16(1 + 4e-3)
    proof = verify(FLOAT, lambda inputs: {"y": half(inputs)["y"] * off}, set_exam(SIGNATURE, some_rows(), half))
    assert proof.source["y"].relative == 0.01


def test_nan_never_agrees_and_neither_does_infinity() -> None:
    numbers = np.array([[1.0, 2.0], [1e200, 3e200]])

    def agreed(found: Array) -> tuple[float, float]:
        seen = agreement({"y": numbers}, {"y": found}, cases=1, distance={"y": 0.0}, scale={"y": 1.0})
        return seen.top1, round(seen.cosine, 9)

    assert agreed(2 * numbers) == (1, 1)
    assert agreed(numbers * [1, np.nan]) == (0, 0)
    assert agreed(numbers * [np.nan, 1]) == (0, 0)
    assert agreed(numbers * [1, np.inf]) == (1, 0)


def test_embeddings_agree_where_the_nearest_other_row_is_the_same() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 1]], np.float32)
    assert same_neighbour(3 * rows, rows).all(), (
        "lengths do not count, and of two that are equally near either is right"
    )
    strayed = rows.copy()
    strayed[1] = [0.1, 1]  # it lies with the others now, nearest to the fourth
    assert same_neighbour(strayed, rows).tolist() == [True, False, True, False, True]


def test_an_embedding_has_no_largest_element_that_must_stay() -> None:
    def small(inputs: Inputs) -> Outputs:
        return {"y": source(inputs)["y"] / 10}

    def turns(inputs: Inputs) -> Outputs:
        """Always a little off, and beside others in another direction, so that another element is the largest."""
        y = small(inputs)["y"]
        return {"y": y + np.float32(0.2) + np.array([0.3, -0.3, 0], np.float32) * (len(y) > 1)}

    with pytest.raises(Unfaithful, match="the largest of 'y' is another one"):
        verify(STATIC, turns, set_exam(SIGNATURE, some_rows(), small))
    proof = verify(STATIC, turns, set_exam(SIGNATURE, some_rows(), small, embeds=True))
    assert not proof.rerun["y"].top1
    assert not proof.source["y"].top1


def one_by_one(predict: Predict) -> PredictAll:
    return lambda calls: [predict(inputs) for inputs in calls]


def test_golden_requests_of_a_quantized_variant_are_those_whose_largest_output_is_clear() -> None:
    """Of 16 rows only those with a margin: a rounding elsewhere must not turn the answer of a golden request."""
    exam = set_exam(SIGNATURE, some_rows(), source)
    proof = verify(STATIC, source, exam)
    recording = record(exam, proof, source=source, variant=one_by_one(source))
    for golden in recording.golden:
        top = np.sort(golden.rerun[0].array, axis=-1)
        assert (top[:, -1] - top[:, -2] > 2 * proof.rerun["y"].absolute).all()
    assert recording.rerun["y"].top1
    assert [len(golden.request.inputs[0].array) for golden in recording.golden][:4] == [1, 1, 2, 4]


def test_where_no_row_is_clear_the_golden_requests_do_not_ask_for_the_largest() -> None:
    def flat(inputs: Inputs) -> Outputs:
        return {"y": np.tile(linear(inputs["x"])[:, :1], 3)}

    exam = set_exam(SIGNATURE, some_rows(), flat)
    recording = record(exam, verify(STATIC, flat, exam), source=flat, variant=one_by_one(flat))
    assert len(recording.golden) == 8
    assert not recording.rerun["y"].top1
    assert not recording.source["y"].top1


@given(st.floats(1e-12, 1e12))
def test_a_bound_is_rounded_up_to_two_digits(number: float) -> None:
    assert number * (1 - 1e-9) <= round_up(number) <= 1.1 * number * (1 + 1e-9)


def source(inputs: Inputs) -> dict[str, Array]:
    return {"y": linear(inputs["x"])}


# What was proved before


def test_what_was_proved_is_believed_for_the_same_bundle_and_the_same_questions_alone(tmp_path: Path) -> None:
    source, shelf = linear_source(tmp_path), Shelf(place=tmp_path / "shelf", most_bytes=10**6, known={})
    questions = ask_source(source)
    built = Built(candidate=FLOAT, model=right(tmp_path / "right.onnx"))
    ask = partial(examine, source=source, store=tmp_path / "bundles", threads=1, shelf=shelf)
    proved = ask(built, questions=questions)
    assert isinstance(proved, Verified)
    upside_down = replace(questions, exam=replace(questions.exam, source={"y": -questions.exam.source["y"]}))
    assert ask(built, questions=upside_down) == proved, "it was not asked: these questions call themselves the same"
    anew = ask(built, questions=replace(upside_down, digest="sha256:other"))
    assert isinstance(anew, Lost)
    assert "real rows: 'y' is" in anew.reason


def test_what_was_refused_is_not_asked_again_unless_it_gave_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_and_count(bundle: Bundle, *, threads: int) -> Engine:
        opened.append(bundle.digest)
        return open_engine(bundle, threads=threads)

    monkeypatch.setattr(trial, "open_engine", open_and_count)
    source, shelf = linear_source(tmp_path), Shelf(place=tmp_path / "shelf", most_bytes=10**6, known={})
    ask = partial(
        examine, source=source, questions=ask_source(source), store=tmp_path / "bundles", threads=1, shelf=shelf
    )
    asked = {}
    for make in (right, another_largest, nan_for_zeros, doubles):
        built = Built(candidate=FLOAT, model=make(tmp_path / f"{make.__name__}.onnx"))
        first, second = ask(built), ask(built)
        assert first == second
        asked[make], opened[:] = len(opened), []
    assert asked == {right: 1, another_largest: 1, nan_for_zeros: 1, doubles: 2}


def test_questions_have_one_digest_until_a_number_of_them_changes(tmp_path: Path) -> None:
    one, again = (ask_source(linear_source(tmp_path)).digest for _ in range(2))
    rows = some_rows()
    rows["x"][3, 2] += 1e-6
    assert one == again != ask_source(linear_source(tmp_path, rows=rows)).digest
