"""The search for finer forms of static INT8: what is tried, what of it is built, and that it is the same every time."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from seatrial.errors import ConversionFailed, InvalidSettings
from seatrial.registry import ModelRef
from seatrial.settings import Settings
from seatrial_export import quantize, study
from seatrial_export.build import Built
from seatrial_export.calibrate import Histogram, Range, percentile
from seatrial_export.candidate import CANDIDATES, Calibration, Candidate, Lost, Precision, Verdict
from seatrial_export.choose import Budget
from seatrial_export.export import attempt
from seatrial_export.onnx_graph import Graph
from seatrial_export.quality import HeldOut
from seatrial_export.register import register
from seatrial_export.request import Request
from seatrial_export.samples import write_arrays
from seatrial_export.search import ASKED, Found, Searcher, finalists, form_of, some_rows
from seatrial_export.sensitivity import Layer
from seatrial_export.static import layers
from seatrial_export.study import CUT_PPM, Rows, Studied, Trial, lost, multiplications, with_front
from seatrial_export.trial import Verified
from seatrial_training.data import Split
from seatrial_training.evaluation import score
from tests.export.engines_at_will import verified
from tests.export.test_quantize import bell_with_outlier, histogram, picky, picky_rows
from tests.serving.models import LinearBundle, save

FLOAT, STATIC = CANDIDATES[0], CANDIDATES[2]


def trial(floats: int, *, lost: float, cut_ppm: int = 100, noise: float = 0.1) -> Trial:
    return Trial(cut_ppm=cut_ppm, floats=floats, lost=lost, noise=noise, in_float=floats / 10)


# What is tried


def test_without_optuna_it_is_said_at_once() -> None:
    asked = ModelRef(name="linear", version="1")
    if importlib.util.find_spec("optuna"):
        assert Request(ref=asked, search=5).search == 5
    else:
        with pytest.raises(InvalidSettings, match=r"pip install 'seatrial\[search\]'"):
            Request(ref=asked, search=5)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study.Job:
    """Of the model whose first layer INT8 harms, by a child whose folder this is."""
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path / "calibration.npz", picky_rows(64))
    write_arrays(tmp_path / study.ROWS, picky_rows(100))
    quantization = quantize.Job(
        model=str(picky(tmp_path / "picky.onnx")), mode="static", weight_bits=8, smallest={},
        calibration="calibration.npz",
    )  # fmt: skip
    return study.Job(quantization=quantization, layers=("first", "second"), trials=10, embeds=False)


def test_each_form_is_tried_once_and_the_same_seed_tries_the_same(job: study.Job) -> None:
    found = study.study(job)
    assert found.whole
    assert found.rows == 100
    forms = [(each.cut_ppm, each.floats) for each in found.trials]
    assert forms[:2] == [(1, 0), (100, 0)]
    assert len(forms) == len(set(forms)) <= 10
    assert all(CUT_PPM[0] <= cut <= CUT_PPM[1] and 0 <= floats <= 2 for cut, floats in forms)
    work = {0: 0.0, 1: 32 / 120, 2: 96 / 120}  # 4 x 8, 8 x 8 and 8 x 3 multiplications a row
    assert [each.in_float for each in found.trials] == pytest.approx([work[floats] for _, floats in forms])
    plain, first_in_float = (next(each for each in found.trials if each.floats == floats) for floats in (0, 1))
    assert first_in_float.noise < plain.noise / 10, "that layer is what INT8 harms"
    assert first_in_float.lost < plain.lost
    assert study.study(job) == found
    assert study.study(msgspec.structs.replace(job, seed=1)).trials != found.trials


def test_a_search_that_has_no_time_ends_with_what_it_tried(job: study.Job) -> None:
    found = study.study(msgspec.structs.replace(job, for_s=0))
    assert (len(found.trials), found.whole) == (1, False)
    assert found.trials[0].on_front


def test_labels_say_what_was_lost_where_there_are_any_and_else_the_float_models_answers() -> None:
    exact = {"logits": np.array([[2, 1], [2, 1], [1, 2], [1, 2]], np.float32)}
    found = {"logits": np.array([[2, 1], [1, 2], [1, 2], [2, 1]], np.float32)}
    assert lost(found, exact, None, embeds=False) == 0.5
    assert lost(found, exact, np.array([0, 0, 1, 0]), embeds=False) == 0.0, "one lost, one gained"
    assert lost(found, exact, np.array([0, 0, 1, 1]), embeds=False) == 0.5


def test_a_convolution_multiplies_once_for_each_weight_and_place(tmp_path: Path) -> None:
    """Two channels from three by kernels of 3 x 3, over 4 x 4 places, for two rows."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 4, 4])
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"], name="conv")]
    model = onnx.load(save(tmp_path / "m.onnx", nodes, [x], [y], constants={"W": np.ones((2, 3, 3, 3), np.float32)}))
    found = multiplications(model, layers(Graph(model)), {"x": np.ones((2, 3, 6, 6), np.float32)})
    assert found == {"conv": 2 * 2 * 4 * 4 * 3 * 3 * 3}


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_more_is_cut_off_the_narrower_is_the_range(one: int, other: int) -> None:
    told: Histogram = histogram(bell_with_outlier(100))
    less, more = (percentile(told, cut_ppm=ppm) for ppm in sorted((one, other)))
    assert less.low <= more.low <= 0 <= more.high <= less.high
    assert percentile(told, cut_ppm=10_000) != Range(told.seen.low, told.seen.high)


# What of it is built


trials = st.lists(
    st.builds(
        Trial, cut_ppm=st.integers(1, 9), floats=st.integers(0, 9), lost=st.sampled_from([0.0, 0.1, 0.2]),
        noise=st.sampled_from([0.1, 0.2]), in_float=st.sampled_from([0.0, 0.5, 0.9]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(trials)
def test_on_the_front_nobody_is_beaten_and_whoever_is_not_is(given: list[Trial]) -> None:
    found = with_front(given)
    front = [each for each in found if each.on_front]
    assert front
    for each in found:
        beaten = any(
            other.lost <= each.lost
            and other.in_float <= each.in_float
            and (other.lost, other.in_float, other.noise) != (each.lost, each.in_float, each.noise)
            and (other.lost < each.lost or other.in_float < each.in_float or other.noise < each.noise)
            for other in found
        )
        assert each.on_front is not beaten


def test_built_are_the_cheapest_that_seem_to_keep_the_accuracy_and_then_the_nearest_to_it() -> None:
    tried = with_front([
        trial(0, lost=0.2), trial(1, lost=0.1), trial(2, lost=0.009), trial(3, lost=0.005), trial(4, lost=0.001),
        trial(5, lost=0.0), trial(6, lost=0.05),
    ])  # fmt: skip
    studied = Studied(trials=tried, seed=0, rows=100)
    assert finalists(studied, Budget()) == [2, 3, 4, 5]
    assert finalists(studied, Budget(accuracy_drop=0.15)) == [1, 2, 3, 4]
    assert finalists(studied, Budget(accuracy_drop=0)) == [5, 4, 3, 2]


def test_a_form_is_a_candidate_with_a_name_of_its_own() -> None:
    form = form_of(STATIC, trial(3, lost=0.0, cut_ppm=40))
    assert form == Candidate(
        target="onnx-cpu", precision=Precision.INT8, compression=STATIC.compression,
        calibration=Calibration.PERCENTILE, cut_ppm=40, floats=3,
    )  # fmt: skip
    assert form.name == "onnx-cpu-int8-static-percentile-40ppm-3-float"
    assert form_of(STATIC, trial(0, lost=0.0)).name == "onnx-cpu-int8-static-percentile-100ppm"


def test_at_most_half_of_the_rows_that_judge_are_searched_by() -> None:
    logits = np.eye(3, dtype=np.float32)[np.arange(2000) % 3]
    split = Split(inputs={"x": logits}, labels=np.arange(2000) % 3)
    held_out = HeldOut(
        split=split, source=score(lambda given: {"logits": given["x"]}, split, batch_size=64), batch_size=64
    )
    asked = some_rows({"x": logits}, held_out)
    assert len(asked.inputs["x"]) == ASKED
    assert asked.labels is not None
    assert (asked.inputs["x"].argmax(axis=-1) == asked.labels).all(), "each row kept its label"
    few = some_rows({"x": logits[:300]}, None)
    assert (len(few.inputs["x"]), few.labels) == (150, None)


@dataclass
class SimulatedWorkshop:
    """Three forms lie on the front; of the second one nothing can be built."""

    refined: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def sensitivity(self, *_: object) -> tuple[Layer, ...]:
        return tuple(Layer(name=name, operator="Conv", noise=0.1) for name in "abcdef")

    def study(self, target: str, base: Built, *, layers: Sequence[str], rows: Rows, trials: int) -> Studied:
        assert (target, base.candidate, list(layers), trials) == ("onnx-cpu", STATIC, ["a", "b", "c"], 9)
        tried = [trial(0, lost=0.3), trial(1, lost=0.2), trial(2, lost=0.1), trial(2, lost=0.2)]
        return Studied(trials=with_front(tried), seed=0, rows=len(rows.inputs["x"]), whole=False)

    def refine(self, candidate: Candidate, base: Built, layers: Sequence[str]) -> Built:
        if candidate.floats == 1:
            raise ConversionFailed("crashed with SIGSEGV")
        self.refined.append((candidate.name, tuple(layers[: candidate.floats])))
        return Built(candidate=candidate, model=base.model)


def searched(workshop: SimulatedWorkshop, folder: Path, *, base: Candidate = STATIC) -> Found:
    bundle = LinearBundle().write(folder)
    searcher = Searcher(
        workshop=workshop,  # type: ignore[arg-type]  # all of it that is asked
        examine=lambda built: verified(built.candidate, bundle),
        budget=Budget(),
        rows=Rows(inputs={"x": np.ones((50, 4))}, labels=None),
        trials=9,
    )
    return searcher.search("onnx-cpu", [(Built(candidate=base, model=Path("m.onnx")), verified(base, bundle))])


def test_the_front_becomes_candidates_and_one_that_cannot_be_built_is_lost_alone(tmp_path: Path) -> None:
    workshop = SimulatedWorkshop()
    found = searched(workshop, tmp_path)
    two, one, none = found.finalists
    assert isinstance(two, Verified)
    assert isinstance(one, Lost)
    assert isinstance(none, Verified)
    assert (one.verdict, one.reason) == (Verdict.NOT_BUILT, "crashed with SIGSEGV")
    assert workshop.refined == [
        ("onnx-cpu-int8-static-percentile-100ppm-2-float", ("a", "b")),
        ("onnx-cpu-int8-static-percentile-100ppm", ()),
    ]
    assert (found.search.base, found.search.rows, found.search.cut_short) == (STATIC.name, 50, True)
    assert found.search.built == {
        2: two.candidate.name, 1: "onnx-cpu-int8-static-percentile-100ppm-1-float", 0: none.candidate.name,
    }  # fmt: skip


def test_where_there_is_no_static_int8_nothing_is_searched(tmp_path: Path) -> None:
    found = searched(SimulatedWorkshop(), tmp_path, base=FLOAT)
    assert found.finalists == ()
    assert found.search.why_not == "there is no static INT8 model for onnx-cpu"


# As a whole


@pytest.mark.slow
def test_an_export_that_searches_finds_a_form_that_keeps_the_accuracy_and_a_second_one_tries_nothing_again(
    home: Path,
) -> None:
    pytest.importorskip("optuna")
    settings = Settings(home=home, export={"measure_s": 0.1, "threads": 1})
    register(str(picky(home / "picky.onnx")), name="picky", settings=settings)
    write_arrays(home / "rows.npz", picky_rows())
    request = Request(
        ref=ModelRef(name="picky", version="1"), samples=home / "rows.npz", candidates=(FLOAT, STATIC), search=8,
        budget=Budget(accuracy_drop=0.05),
    )  # fmt: skip
    report = attempt(request, settings).report
    [search] = report.searches
    assert search.why_not == ""
    assert (search.base, search.rows) == (STATIC.name, 128)
    assert report.sparsities is not None
    assert "was not trained by `seatrial train`" in report.sparsities.why_not
    _, plain, *forms = report.rows
    assert plain.verdict in (Verdict.OVER_BUDGET, Verdict.UNFAITHFUL)
    assert [row.name for row in forms] == list(search.built.values())
    kept = [row for row in forms if row.verdict in (Verdict.CHOSEN, Verdict.ADMITTED)]
    assert kept
    assert all(row.name.endswith("1-float") for row in kept)
    assert attempt(request, settings).report.searches == report.searches
    kept_studies = [path for path in settings.conversions.glob("*/job.json") if '"trials": 8' in path.read_text()]
    assert len(kept_studies) == 1
