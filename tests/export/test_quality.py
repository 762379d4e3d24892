"""How much worse a variant is, and how sure that is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from seatrial.bundle.evidence import Agreement
from seatrial_export.quality import Right, by_agreement, by_labels, hold_out, least_cosine, paired_drop, wilson
from seatrial_export.samples import Inputs, Outputs
from seatrial_export.verify import Unfaithful
from seatrial_training.data import Split


def columns(both: int, lost: int, gained: int, neither: int) -> tuple[Right, Right]:
    """Right-or-wrong before and after, for so many rows of each kind."""
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return np.array(before), np.array(after)


def test_wilsons_interval_of_a_known_proportion() -> None:
    """81 of 263, from Newcombe's comparison of seven methods (1998), to his four digits."""
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20).low == pytest.approx(0, abs=1e-12)
    assert wilson(20, 20).high == pytest.approx(1)


def test_newcombes_paired_interval_of_a_known_table() -> None:
    """36 12 2 0: the first example of Newcombe's paper on paired differences, method 10: 0.0569 to 0.3404."""
    found = paired_drop(*columns(36, 12, 2, 0))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0569, 0.3404)


def test_equal_answers_of_few_rows_are_no_certainty_and_more_rows_make_surer() -> None:
    few, many = paired_drop(*columns(90, 0, 0, 10)), paired_drop(*columns(9000, 0, 0, 1000))
    assert few.high == pytest.approx(-few.low) == pytest.approx(0.0353, abs=1e-4)
    assert 0 < many.high < 0.001
    surer = [paired_drop(*columns(90 * n, 2 * n, n, 7 * n)).high for n in (1, 4, 16, 64)]
    assert surer == sorted(surer, reverse=True)
    assert surer[-1] > 0.01


@given(arrays.arrays(bool, 50), arrays.arrays(bool, 50))
def test_the_interval_holds_the_drop_itself_and_turns_with_the_columns(before: Right, after: Right) -> None:
    found, turned = paired_drop(before, after), paired_drop(after, before)
    drop = float(before.mean() - after.mean())
    assert found.low - 1e-9 <= drop <= found.high + 1e-9
    assert turned.low == pytest.approx(-found.high, abs=1e-9)
    assert turned.high == pytest.approx(-found.low, abs=1e-9)
    assert found.high <= 1 + 1e-9


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 400 draws of 300 rows, where the truth is a drop of 0.02: about 95 %, and not fewer than 92."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        kinds = random.choice(4, size=300, p=[0.9, 0.04, 0.02, 0.04])
        found = paired_drop((kinds == 0) | (kinds == 1), (kinds == 0) | (kinds == 2))
        covered += found.low <= 0.02 <= found.high
    assert covered >= 0.92 * 400


def test_labels_score_a_variant_row_by_row_with_its_source() -> None:
    rows = np.eye(4, dtype=np.float32)[np.arange(100) % 4]
    split = Split(inputs={"x": rows}, labels=np.arange(100) % 4)

    def source(inputs: Inputs) -> Outputs:
        return {"logits": inputs["x"]}

    def takes_zero_for_one(inputs: Inputs) -> Outputs:
        return {"logits": inputs["x"] @ np.eye(4, dtype=np.float32)[[1, 1, 2, 3]]}

    held_out = hold_out(split, source, max_batch=7)
    assert held_out.batch_size == 7
    quality = by_labels(takes_zero_for_one, held_out)
    assert (quality.value, quality.source_value, quality.rows, quality.basis) == (0.75, 1.0, 100, "labels")
    assert 0.25 < quality.drop_upper < 0.35


def test_a_variant_that_answers_nan_to_one_held_out_row_is_refused_however_many_it_gets_right() -> None:
    rows = np.eye(4, dtype=np.float32)[np.arange(100) % 4]
    split = Split(inputs={"x": rows}, labels=np.arange(100) % 4)
    held_out = hold_out(split, lambda inputs: {"logits": inputs["x"]}, max_batch=100)
    asked = iter([np.float32(np.nan), np.float32(1)])

    def nan_once(inputs: Inputs) -> Outputs:
        logits = inputs["x"].copy()
        logits[0] *= next(asked)
        return {"logits": logits}

    with pytest.raises(Unfaithful, match="held-out rows: its answers to 1 of 100 hold NaN or infinity"):
        by_labels(nan_once, held_out)


def test_agreement_has_an_interval_of_its_own() -> None:
    seen = Agreement(cases=1, max_absolute=0, max_relative=0, top1=1.0, cosine=1)
    quality = by_agreement(seen, rows=256)
    assert (quality.value, quality.source_value) == (1.0, 1.0)
    assert quality.drop_upper == pytest.approx(0.0148, abs=1e-4)
    assert least_cosine(0.01) == 0.999
