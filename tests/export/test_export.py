"""`seatrial export` as a whole, on an ONNX model of one matrix product, which takes no torch and seconds."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seatrial.bundle import open_bundle
from seatrial.engines import fingerprint
from seatrial.errors import DiskFull, InvalidSource, Misused, NotInRegistry
from seatrial.registry import BUNDLE_TAG, EXPORT_RUN_TAG, ModelRef, ModelVersion
from seatrial.registry.bundles import bundle_digest, fetch_bundle
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_export.candidate import CANDIDATES, OPENVINO_CPU, Candidate, Verdict, named
from seatrial_export.choose import Budget
from seatrial_export.export import Exported, Work, attempt, export
from seatrial_export.measure import FEWEST_ROUNDS
from seatrial_export.publish import INTERRUPTED_TAG
from seatrial_export.register import register
from seatrial_export.request import Request
from seatrial_export.samples import write_arrays
from seatrial_export.timetable import Timetable
from seatrial_serving.engines.proof import prove
from tests.commands import Typed, type_seatrial
from tests.conditions import until
from tests.disks import small_disk
from tests.export.models import some_rows
from tests.export.processes import library
from tests.serving.engine_bundles import linear_program
from tests.serving.models import linear_onnx

FLOAT, DYNAMIC, STATIC, PRUNED, SMOOTHED, MIXED, *_ = CANDIDATES
TARGET = FLOAT.target
REF = ModelRef(name="linear", version="1")


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, export={"measure_s": 0.1, "threads": 1})


@pytest.fixture
def version(settings: Settings, tmp_path: Path) -> ModelVersion:
    return register(str(linear_onnx(tmp_path / "linear.onnx")), name="linear", settings=settings)


@pytest.fixture
def registry(settings: Settings) -> EmbeddedRegistry:
    return EmbeddedRegistry(settings)


@pytest.fixture
def seatrial(
    version: ModelVersion,  # noqa: ARG001 - there is one to be typed
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Typed]:
    monkeypatch.setenv("SEATRIAL_EXPORT__MEASURE_S", "0.1")
    return partial(type_seatrial, monkeypatch=monkeypatch, capsys=capsys)


def verdicts(exported: Exported) -> dict[str, Verdict]:
    return {row.name: row.verdict for row in exported.report.rows}


def reason(exported: Exported, candidate: Candidate) -> str:
    [row] = [row for row in exported.report.rows if row.name == candidate.name]
    return row.reason


@pytest.mark.usefixtures("version")
def test_without_data_only_what_equals_the_source_can_be_chosen(settings: Settings) -> None:
    exported = export(Request(ref=REF), settings)
    assert exported.report.chosen == {TARGET: FLOAT.name}
    assert "agreement with the source model on 8 rows; no labels" in exported.report.basis
    assert "noise" in " ".join(exported.report.notes)
    found = verdicts(exported)
    assert found[STATIC.name] in (Verdict.NOT_ENOUGH_EVIDENCE, Verdict.UNFAITHFUL)
    assert Verdict.NOT_ENOUGH_EVIDENCE in found.values()
    assert found[PRUNED.name] is Verdict.NOT_APPLICABLE
    assert "was not trained by `seatrial train`" in reason(exported, PRUNED)
    assert reason(exported, MIXED) == "there are too few rows to judge by which layers should be in float"
    assert prove(exported.bundles[TARGET]) == 8
    assert not list((settings.home / "export").glob("*/*")), "what was only needed meanwhile is gone"


def write_npz(rows: dict[str, Array], path: Path) -> Path:
    write_arrays(path, rows)
    return path


def write_table(rows: dict[str, Array], path: Path) -> Path:
    """One column for each feature, as a data frame has it, with the index that pandas leaves."""
    columns = {f"feature_{i}": rows["x"][:, i] for i in range(4)}
    pq.write_table(pa.table({**columns, "__index_level_0__": np.arange(len(rows["x"]))}), path)
    return path


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("write", "name"), [(write_npz, "rows.npz"), pytest.param(write_table, "rows.parquet", marks=pytest.mark.slow)]
)
def test_samples_are_evidence_enough_for_int8(
    write: Callable[..., Path], name: str, settings: Settings, tmp_path: Path
) -> None:
    samples = write(some_rows(400), tmp_path / name)
    exported = export(Request(ref=REF, samples=samples, candidates=(FLOAT, STATIC)), settings)
    assert "agreement with the source model on 256 rows" in exported.report.basis
    _, static = exported.report.rows
    assert static.quality is not None
    assert static.quality.basis == "agreement"
    assert static.quality.rows == 256
    assert static.quality.value > 0.9
    assert static.verdict is not Verdict.NOT_ENOUGH_EVIDENCE


@pytest.mark.usefixtures("version")
def test_samples_that_do_not_fit_are_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    wide = write_npz({"x": np.zeros((300, 5), np.float32)}, tmp_path / "wide.npz")
    with pytest.raises(InvalidSource, match=r"wide.npz: input 'x' has shape \[300, 5\], expected \[-1, 4\]"):
        export(Request(ref=REF, samples=wide), settings)
    two = write_npz({"x": np.zeros((3, 4)), "z": np.zeros(3)}, tmp_path / "two.npz")
    with pytest.raises(InvalidSource, match=r"has the inputs \['x', 'z'\], the model takes \['x'\]"):
        export(Request(ref=REF, samples=two), settings)
    holed = write_npz({"x": np.full((3, 4), np.nan)}, tmp_path / "holed.npz")
    with pytest.raises(InvalidSource, match="NaN or infinity"):
        export(Request(ref=REF, samples=holed), settings)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidSource, match="allow_pickle"):
        export(Request(ref=REF, samples=pickled), settings)


def test_the_command_shows_what_it_made(seatrial: Callable[..., Typed], home: Path) -> None:
    typed = seatrial("export", "linear/1")
    assert typed.code == 0
    assert "onnx-cpu-fp32 was chosen" in typed.out
    assert "next     seatrial promote linear 1" in typed.out
    assert "onnx-cpu-fp32 *" in typed.out
    assert "onnx-cpu-int8-static: quantizing" in typed.err
    assert str(home / "bundles" / "sha256-") in typed.out


def test_a_budget_that_nothing_meets_is_exit_code_3_and_the_front_is_shown(
    seatrial: Callable[..., Typed], registry: EmbeddedRegistry
) -> None:
    typed = seatrial("export", "linear/1", "--budget", "p99_ms=1e-9", "--json")
    assert typed.code == 3
    result = json.loads(typed.out)
    assert (result["chosen"], result["bundles"], result["unmet"]) == ({}, {}, [TARGET])
    [exact] = [row for row in result["rows"] if row["name"] == FLOAT.name]
    assert exact["on_front"]
    assert exact["verdict"] == "over the budget"
    assert "its p99 latency is" in exact["reason"]
    assert exact["alone"]["p99_ms"] > 0
    assert Path(result["page"].removeprefix("file://")).is_file()
    assert BUNDLE_TAG + TARGET not in registry.resolve(REF).tags
    in_words = seatrial("export", "linear/1", "--budget", "size_mb=0")
    assert in_words.code == 3
    assert "onnx-cpu-fp32 *" in in_words.out
    assert (
        "BudgetNotMet: no variant of models:/linear/1 for onnx-cpu meets the budget accuracy_drop=0.01" in in_words.err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("linear/1", "--budget", "p99=5"), 2, "'p99' is nothing that a budget limits; did you mean 'p99_ms'?"),
        (("linear/1", "--budget", "p99_ms=fast"), 2, "write p99_ms=NUMBER"),
        (("linear/1", "--budget", "p99_ms=-1"), 2, "a limit is a number that is not negative"),
        (("linear/1", "--target", "onnx_cpu"), 2, "there is no target 'onnx_cpu'; did you mean 'onnx-cpu'?"),
        (("linear/1", "--candidate", "onnx-cpu-int4"), 2, "did you mean 'onnx-cpu-int4-weights'?"),
        (("linear/1", "--objective", "fastest"), 2, "'fastest' is not one of"),
        (("linear/1", "--batch", "0"), 2, "0 is not in the range x>=1"),
        (("linear/1", "--batch", "65"), 1, "--batch 65 was not verified: the axis 'batch' goes from 1 to 64"),
        (
            ("linear/1", "--budget", "metric=0.9"),
            1,
            "metric=0.9 takes labelled rows to hold it against, and models:/linear/1 came",
        ),
        (("linear/1", "--length", "8"), 1, "the model has no single axis beside the batch that may vary"),
        (("linear/1", "--minutes", "0"), 2, "0 is not in the range x>0"),
        (("linear/1", "--samples", "nowhere.npz"), 2, "'nowhere.npz' does not exist"),
        (("linear/9",), 1, "NotInRegistry: "),
        (("linear@champion",), 1, "NotInRegistry: "),
        (("linear",), 1, "write NAME@ALIAS, NAME/VERSION or models:/NAME/VERSION"),
    ],
)
def test_what_is_typed_wrong_is_told_at_once(
    arguments: tuple[str, ...], code: int, words: str, seatrial: Callable[..., Typed]
) -> None:
    typed = seatrial("export", *arguments)
    assert typed.code == code
    assert words in typed.err


def test_a_candidate_that_is_named_is_built_too(seatrial: Callable[..., Typed]) -> None:
    typed = seatrial("export", "linear/1", "--candidate", "onnx-cpu-int4-weights", "--json")
    *_, asked = json.loads(typed.out)["rows"]
    assert (asked["name"], asked["reason"]) == ("onnx-cpu-int4-weights", "the graph has none of MatMul")


def test_only_what_is_named_is_built_if_one_says_so(seatrial: Callable[..., Typed]) -> None:
    typed = seatrial("export", "linear/1", "--only", "--candidate", "onnx-cpu-int8-static", "--json")
    assert {row["name"] for row in json.loads(typed.out)["rows"]} == {FLOAT.name, "onnx-cpu-int8-static"}
    typed = seatrial("export", "linear/1", "--only")
    assert typed.code == 2
    assert "--only wants the candidates that it is about" in typed.err


@pytest.mark.slow
def test_a_target_given_twice_is_one(seatrial: Callable[..., Typed]) -> None:
    typed = seatrial("export", "linear/1", "--target", TARGET, "--target", TARGET, "--json")
    assert typed.code == 0
    assert list(json.loads(typed.out)["bundles"]) == [TARGET]


@pytest.mark.slow
@pytest.mark.usefixtures("version")
def test_memory_and_load_time_are_always_known_and_can_be_limited(settings: Settings) -> None:
    exported = export(Request(ref=REF, candidates=(FLOAT,)), settings)
    [row] = exported.report.rows
    assert row.memory_bytes is not None
    assert 2**16 < row.memory_bytes < 500e6
    assert row.load_s is not None
    assert 0 < row.load_s < 10
    evidence = exported.bundles[TARGET].evidence()
    assert evidence is not None
    assert (evidence.memory_bytes, evidence.load_s) == (row.memory_bytes, row.load_s)
    attempted = attempt(Request(ref=REF, budget=Budget(load_s=1e-9), candidates=(FLOAT,)), settings)
    assert "s to load; the budget is 1e-09" in reason(attempted, FLOAT)


def test_the_sizes_and_the_objective_that_are_named_are_those_of_the_report(seatrial: Callable[..., Typed]) -> None:
    typed = seatrial("export", "linear/1", "--batch", "4", "--batch", "64", "--objective", "size", "--json")
    assert typed.code == 0
    result = json.loads(typed.out)
    [exact] = [row for row in result["rows"] if row["name"] == FLOAT.name]
    assert (exact["alone"]["batch"], exact["throughput"]["batch"], exact["more"]) == (4, 64, [])
    assert result["objective"] == "size"
    assert "smallest" in Path(result["page"].removeprefix("file://")).read_text()


def test_when_the_time_is_over_nothing_more_is_begun_and_what_was_proved_is_left(
    version: ModelVersion, settings: Settings, tmp_path: Path
) -> None:
    """The clock stands still until the first candidate is verified, and then shows that the time is over."""
    now = [0.0]

    def tell(_: str, words: str) -> None:
        now[0] += 60 if words == "verifying" else 0

    request = Request(ref=REF, candidates=(FLOAT, STATIC), samples=None)
    timetable = Timetable(minutes=1, tell=tell, began=0, clock=lambda: now[0])
    work = Work(request=request, version=version, settings=settings, place=tmp_path / "place", timetable=timetable)
    with work.stand() as stand:
        examined = work.examine(stand)
        outcome = work.measure(examined, stand)
    assert [each.candidate for each in outcome.variants] == [FLOAT]
    [late] = examined.lost
    assert late.reason == "the time for the whole export was over before it could be verified"


@pytest.mark.usefixtures("version")
def test_without_any_time_each_target_has_its_float_model_and_what_else_is_built_is_killed(settings: Settings) -> None:
    """The clock shows from the start that the time is over."""
    pytest.importorskip("openvino")
    floats, statics = named([FLOAT.name, "openvino-cpu-fp32"]), named([STATIC.name, "openvino-cpu-int8-static"])
    request = Request(ref=REF, targets=(TARGET, OPENVINO_CPU), candidates=(*floats, *statics), minutes=1e-9)
    exported = export(request, settings)
    assert exported.report.chosen == {each.target: each.name for each in floats}
    assert set(exported.bundles) == {TARGET, OPENVINO_CPU}
    for row in exported.report.rows[:2]:
        assert row.row_ms is not None
        assert row.throughput is not None
        assert row.throughput.rounds >= FEWEST_ROUNDS, "as many as it takes to say anything"
    assert {reason(exported, each) for each in statics} == {
        "was killed, because the time for the whole export did not allow more"
    }


@pytest.mark.slow
@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("moment", ["bundling", "comparing"])
def test_an_engine_that_is_lost_after_all_were_timed_costs_its_target_alone(moment: str, settings: Settings) -> None:
    pytest.importorskip("openvino")
    [doomed] = named(["openvino-cpu-fp32"])

    def tell(subject: str, words: str) -> None:
        if (subject, words) == (doomed.name, moment):
            library("openvino").kill()

    request = Request(ref=REF, targets=(OPENVINO_CPU, TARGET), candidates=(doomed, FLOAT), minutes=1e-9)
    exported = attempt(request, settings, tell=tell)
    lost = "the process that imports its library crashed with SIGKILL"
    assert [each.variant for each in exported.report.deltas] == [FLOAT.name]
    assert prove(exported.bundles[TARGET]) == 8
    if moment == "bundling":
        assert verdicts(exported) == {doomed.name: Verdict.NOT_BUILT, FLOAT.name: Verdict.CHOSEN}
        assert reason(exported, doomed) == f"while it was bundled: {lost}"
        assert exported.unmet == (OPENVINO_CPU,)
    else:
        assert f"{doomed.name} was not set beside the source: {lost}" in exported.report.notes
        assert prove(exported.bundles[OPENVINO_CPU]) == 8


@pytest.mark.usefixtures("version")
def test_where_the_best_cannot_be_opened_again_to_be_bundled_the_next_best_is_taken(
    settings: Settings, tmp_path: Path
) -> None:
    bundled: list[str] = []

    def tell(subject: str, words: str) -> None:
        if words == "bundling" and not bundled:
            for bundle in map(open_bundle, (settings.home / "export").glob("*/bundles/*")):
                if bundle.manifest.variant.name == subject:
                    (bundle.path / "model.onnx").write_bytes(b"")
        bundled.extend([subject] if words == "bundling" else [])

    rows = write_npz(some_rows(400), tmp_path / "rows.npz")
    request = Request(ref=REF, candidates=(FLOAT, STATIC), samples=rows, budget=Budget(accuracy_drop=0.5))
    exported = attempt(request, settings, tell=tell)
    best, second = bundled
    assert {best, second} == {FLOAT.name, STATIC.name}
    assert verdicts(exported) == {best: Verdict.NOT_BUILT, second: Verdict.CHOSEN}
    assert reason(exported, *named([best])).startswith("while it was bundled: ")
    assert prove(exported.bundles[TARGET]) > 0


def test_a_second_export_with_another_budget_converts_nothing_again(
    version: ModelVersion, settings: Settings, tmp_path: Path
) -> None:
    export(Request(ref=REF, candidates=(FLOAT, STATIC)), settings)
    request = Request(ref=REF, candidates=(FLOAT, STATIC), budget=Budget(size_mb=1))
    work = Work(request=request, version=version, settings=settings, place=tmp_path / "place", timetable=Timetable())
    with work.stand() as stand:
        assert FLOAT in {each.candidate for each in work.examine(stand).verified}
    jobs = sorted((tmp_path / "place").glob("*/job.json"))
    assert len(jobs) == 2
    assert all(str(settings.home) in job.read_text() for job in jobs), "they were done in the first export's place"


@pytest.mark.slow
def test_two_homes_give_one_digest(
    settings: Settings, version: ModelVersion, migrated_store: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(migrated_store, elsewhere / "mlflow.db")
    other = Settings(home=elsewhere, export=settings.export)
    (tmp_path / "again").mkdir()
    source = linear_onnx(tmp_path / "again" / "linear.onnx")
    assert str(register(str(source), name="linear", settings=other)) == str(version)
    here, there = (export(Request(ref=REF, candidates=(FLOAT,)), each).report for each in (settings, other))
    assert here.bundles == there.bundles
    assert here.run_id != there.run_id


def test_a_model_without_a_batch_axis_is_exported_as_it_is(settings: Settings, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(linear_onnx(tmp_path / "fixed.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    register(str(tmp_path / "fixed.onnx"), name="fixed", settings=settings)
    exported = export(Request(ref=ModelRef(name="fixed", version="1"), candidates=(FLOAT,)), settings)
    bundle = exported.bundles[TARGET]
    assert bundle.manifest.signature.batch is None
    assert {len(golden.request.inputs[0].array) for golden in bundle.golden()} == {2}
    assert prove(bundle) == 5


UNTIL_KILLED = """
import sys, threading
from pathlib import Path
from seatrial.registry import ModelRef
from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_export.candidate import CANDIDATES
from seatrial_export.export import export
from seatrial_export.request import Request

home, moment, here = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def tell(subject, words):
    if moment in (subject, words):
        here.touch()
        threading.Event().wait()

settings = Settings(home=home, export={"measure_s": 0.1, "threads": 1})
export(Request(ref=ModelRef(name="linear", version="1"), candidates=CANDIDATES[:1]), settings, tell=tell)
"""


@contextmanager
def halted(moment: str, settings: Settings, here: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An export in another process, which has come to `moment` and stays there; killed -9 when the block ends."""
    process = subprocess.Popen([sys.executable, "-c", UNTIL_KILLED, str(settings.home), moment, str(here)])
    try:
        until(lambda: here.exists() or process.poll() is not None, within_s=120)
        assert process.poll() is None
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("moment", "reused"),
    [pytest.param("measuring", True, marks=pytest.mark.slow), ("naming the bundle", False)],
)  # fmt: skip
def test_an_export_that_was_killed_leaves_nothing_half_and_the_next_call_takes_over(
    moment: str, reused: bool, version: ModelVersion, settings: Settings, registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    with (
        halted(moment, settings, tmp_path / "here"),
        pytest.raises(Misused, match="is being exported by another process"),
    ):
        export(Request(ref=REF, candidates=(FLOAT,)), settings)
    with pytest.raises(NotInRegistry, match="build one with: seatrial export models:/linear/1"):
        bundle_digest(registry.resolve(REF), target=TARGET)
    experiment = registry.experiment("seatrial/export")
    [left] = registry.client.search_runs([experiment])
    assert left.info.status == "RUNNING"

    exported = export(Request(ref=REF, candidates=(FLOAT,)), settings)
    runs = {run.info.run_id: run for run in registry.client.search_runs([experiment])}
    assert runs[left.info.run_id].data.tags[INTERRUPTED_TAG] == "true"
    assert (exported.report.run_id == left.info.run_id) is reused
    assert [run.info.status for run in runs.values()].count("FINISHED") == 1
    assert runs[left.info.run_id].info.status == ("FINISHED" if reused else "KILLED")
    found = registry.resolve(REF)
    assert found.tags[EXPORT_RUN_TAG] == exported.report.run_id
    assert (
        fetch_bundle(registry, found, target=TARGET, store=tmp_path / "fetched").digest
        == exported.report.bundles[TARGET]
    )
    variants = registry.client.search_logged_models([experiment])
    assert [variant.source_run_id for variant in variants] == [exported.report.run_id]
    assert str(version) == exported.report.model


@pytest.mark.slow
def test_an_export_that_fails_says_so_in_its_run_and_leaves_the_bundle_that_was_there(
    version: ModelVersion, settings: Settings, registry: EmbeddedRegistry
) -> None:
    before = export(Request(ref=REF, candidates=(FLOAT,)), settings).report

    def stumble(_: str, words: str) -> None:
        if words == "naming the bundle":
            raise KeyboardInterrupt

    other = Settings(home=settings.home, export={"measure_s": 0.1, "threads": 1, "max_batch": 32})  # another bundle
    with pytest.raises(KeyboardInterrupt):
        export(Request(ref=REF, candidates=(FLOAT,)), other, tell=stumble)
    runs = registry.client.search_runs([registry.experiment("seatrial/export")])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    now = registry.resolve(ModelRef(name=version.name, version=version.version))
    assert now.tags[EXPORT_RUN_TAG] != before.run_id
    store = settings.home / "fetched-anew"
    assert fetch_bundle(registry, now, target=TARGET, store=store).digest == before.bundles[TARGET]


def test_a_full_disk_is_told_with_what_to_do_and_nothing_is_kept(
    version: ModelVersion, settings: Settings, registry: EmbeddedRegistry
) -> None:
    with small_disk(settings.bundles, kib=12) as store:
        with pytest.raises(DiskFull, match=r"no space left .*run the same command again"):
            export(Request(ref=REF, candidates=(FLOAT,)), settings)
        assert list(store.iterdir()) == []
    with pytest.raises(NotInRegistry, match="has no bundle"):
        bundle_digest(registry.resolve(REF), target=TARGET)
    [run] = registry.client.search_runs([registry.experiment("seatrial/export")])
    assert run.info.status == "FAILED"
    exported = export(Request(ref=REF, candidates=(FLOAT,)), settings)
    assert exported.report.model == str(version)
    assert [path.name for path in settings.bundles.iterdir()] == [exported.bundles[TARGET].path.name]


# Other targets


@pytest.mark.slow
@pytest.mark.usefixtures("version")
def test_each_target_has_a_winner_and_each_bundle_names_the_others(settings: Settings) -> None:
    first = export(Request(ref=REF, candidates=(FLOAT,)), settings)
    targets = ("openvino-cpu", "pt2-cpu", "onnx-cuda")
    exported = attempt(Request(ref=REF, targets=targets), settings)
    found = verdicts(exported)
    assert exported.report.chosen == {"openvino-cpu": "openvino-cpu-fp32"}
    assert set(exported.unmet) == {"pt2-cpu", "onnx-cuda"}
    assert found["pt2-cpu-fp32"] is Verdict.NOT_APPLICABLE
    assert found["onnx-cuda-fp32"] is Verdict.NOT_APPLICABLE
    reasons = {row.name: row.reason for row in exported.report.rows}
    assert "made of torch's programs alone" in reasons["pt2-cpu-fp32"]
    assert "NVIDIA" in reasons["onnx-cuda-fp32"] or "CUDAExecutionProvider" in reasons["onnx-cuda-fp32"]
    bundle = exported.bundles["openvino-cpu"]
    assert bundle.manifest.engine.name == "openvino"
    assert prove(bundle) == 8
    evidence = bundle.evidence()
    assert evidence is not None
    [sibling] = evidence.siblings
    assert (sibling.target, sibling.variant) == (TARGET, FLOAT.name)
    assert sibling.digest == first.bundles[TARGET].digest


@pytest.mark.slow
def test_a_program_is_served_as_it_is_and_compiled(settings: Settings, tmp_path: Path) -> None:
    program = linear_program(tmp_path / "linear.pt2")
    register(str(program), name="linear", settings=settings)
    targets = ("pt2-cpu", "aoti-cpu", "torchscript-cpu", *(["executorch-cpu"] if find_spec("executorch") else []))
    exported = export(Request(ref=REF, targets=targets), settings)
    assert exported.report.chosen == {target: f"{target}-fp32" for target in targets}
    for target, bundle in exported.bundles.items():
        assert prove(bundle) == 8, target
    assert exported.bundles["pt2-cpu"].manifest.hardware is None
    assert exported.bundles["aoti-cpu"].manifest.hardware == fingerprint("aotinductor")
