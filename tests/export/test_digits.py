"""What `seatrial export` makes of a model that `seatrial train` made: the real thing, end to end."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from seatrial.registry import BUNDLE_TAG, EXPORT_RUN_TAG, ModelRef
from seatrial.registry.bundles import fetch_bundle
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_export.candidate import OPENVINO_CPU, Verdict, named
from seatrial_export.choose import Budget
from seatrial_export.export import attempt, export
from seatrial_export.publish import OF_TAG
from seatrial_export.request import Request
from seatrial_serving.engines import open_engine, proof
from tests.digits import NAME, VERSION, ExportedDigits

REF = ModelRef(name=NAME, version=VERSION)


def test_every_candidate_is_in_the_report_with_its_numbers_or_a_reason(exported_digits: ExportedDigits) -> None:
    rows = {row.name: row for row in exported_digits.report.rows}
    assert list(rows) == [
        "onnx-cpu-fp32", "onnx-cpu-int8-dynamic", "onnx-cpu-int8-static", "onnx-cpu-fp32-pruned-50",
        "onnx-cpu-int8-smoothed-static", "onnx-cpu-int8-static-mixed", "onnx-cpu-int8-pruned-50-static",
    ]  # fmt: skip
    assert all(row.reason for row in rows.values())
    exact, static, pruned, chain = (
        rows[f"onnx-cpu-{name}"] for name in ("fp32", "int8-static", "fp32-pruned-50", "int8-pruned-50-static")
    )
    assert exact.quality is not None
    assert exact.agreement is not None
    assert exact.quality.value == exact.quality.source_value > 0.9
    assert exact.quality.rows == 180 + 359  # validation and test
    assert exact.agreement.top1 == 1
    assert exact.agreement.max_relative < 1e-4
    assert exact.size_bytes is not None
    assert static.size_bytes is not None
    assert pruned.size_bytes is not None
    assert static.size_bytes < exact.size_bytes / 2
    assert pruned.size_bytes < exact.size_bytes / 2
    assert chain.size_bytes is not None
    assert chain.size_bytes < pruned.size_bytes / 1.5
    assert chain.quality is not None
    assert pruned.quality is not None
    assert chain.quality.value > pruned.quality.value - 0.03 > 0.85
    for row in (exact, static, pruned, chain):
        assert row.alone is not None
        assert row.throughput is not None
        assert row.alone.low_ms <= row.alone.p50_ms <= row.alone.high_ms <= row.alone.p99_ms
        assert (row.alone.batch, row.throughput.batch) == (1, 32)


def test_the_chosen_variant_is_the_versions_bundle_and_replays_its_golden_requests(
    exported_digits: ExportedDigits,
) -> None:
    registry = EmbeddedRegistry(exported_digits.settings)
    version = registry.resolve(REF)
    assert version.tags[BUNDLE_TAG + "onnx-cpu"] == exported_digits.bundle.digest
    assert version.tags[EXPORT_RUN_TAG] == exported_digits.report.run_id
    bundle = exported_digits.bundle
    bundle.verify()
    assert bundle.manifest.variant.name == exported_digits.report.chosen["onnx-cpu"]
    assert bundle.manifest.labels == tuple("0123456789")
    engine = open_engine(bundle, threads=1)
    proof.replay(engine, bundle)
    sizes = [len(golden.request.inputs[0].array) for golden in bundle.golden()]
    real, edges = sizes[:4], sizes[4:]
    assert real == [1, 1, 2, 4]
    assert edges == [1] * len(edges)
    assert len(edges) == 4 or "int8" in bundle.manifest.variant.name  # which has no clear answer to some of them
    engine.close()


def test_the_report_sets_the_chosen_variant_beside_its_source_row_by_row(exported_digits: ExportedDigits) -> None:
    [deltas] = exported_digits.report.deltas
    [chosen] = [row for row in exported_digits.report.rows if row.verdict is Verdict.CHOSEN]
    assert deltas.variant == chosen.name
    assert deltas.judged is not None
    assert chosen.quality is not None
    pairs, confusion = deltas.judged.pairs, deltas.judged.confusion
    assert (pairs.rows, pairs.source, pairs.variant) == (539, chosen.quality.source_value, chosen.quality.value)
    assert (confusion.lost, confusion.gained) == (pairs.lost, pairs.gained)
    assert {part.kind for part in deltas.judged.slices} == {"class", "the source's confidence"}
    assert [part.name for part in deltas.judged.slices[:10]] == list("0123456789")
    assert deltas.probed is None, "nobody asked for it"
    assert exported_digits.report.seconds["comparing"] < 5


@pytest.mark.slow
def test_a_pruned_variant_is_probed_beside_its_source_with_gradients_of_its_own(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    settings = exported_digits.copy(tmp_path / "home").settings
    pruned = named(["onnx-cpu-fp32-pruned-50"])
    attempted = attempt(Request(ref=REF, candidates=pruned, budget=Budget(accuracy_drop=0.5), probe=True), settings)
    [deltas] = attempted.report.deltas
    assert deltas.probed is not None
    assert deltas.probed.notes == ()
    assert [curve.name for curve in deltas.probed.attacks] == ["FGSM", "PGD"]
    for curve in deltas.probed.attacks:
        found = [point.pairs.source for point in curve.points]
        assert found == sorted(found, reverse=True), "the further, the fewer are right"
    fgsm, pgd = (curve.points[-1].pairs for curve in deltas.probed.attacks)
    assert pgd.source <= fgsm.source < 0.9
    assert deltas.probed.explanations is not None
    assert [each.method for each in deltas.probed.explanations.likenesses][:3] == [
        "occlusion", "integrated gradients", "Grad-CAM",
    ]  # fmt: skip
    assert all(-1 <= each.low <= each.median < 1 for each in deltas.probed.explanations.likenesses)


def test_the_evidence_says_from_what_and_with_what_it_was_built(exported_digits: ExportedDigits) -> None:
    evidence = exported_digits.bundle.evidence()
    assert evidence is not None
    assert evidence.provenance.source == "models:/digits-cnn/1"
    assert evidence.provenance.export_run == exported_digits.report.run_id
    assert len(evidence.provenance.data_digest) == 64
    assert evidence.provenance.calibration_digest.startswith("sha256:")
    assert {"torch", "onnx", "onnxruntime"} <= evidence.provenance.tools.keys()
    assert evidence.budget == {"accuracy_drop": 0.01}


def test_the_run_goes_from_the_source_to_the_variants_in_mlflow(exported_digits: ExportedDigits) -> None:
    client = EmbeddedRegistry(exported_digits.settings).client
    run = client.get_run(exported_digits.report.run_id)
    assert (run.info.status, run.data.tags[OF_TAG]) == ("FINISHED", "models:/digits-cnn/1")
    source = client.get_model_version(NAME, VERSION).source
    assert run.inputs is not None
    assert run.outputs is not None
    assert [f"models:/{each.model_id}" for each in run.inputs.model_inputs] == [source]
    variants = [client.get_logged_model(each.model_id) for each in run.outputs.model_outputs]
    measured = [row.name for row in exported_digits.report.rows if row.row_ms is not None]
    assert sorted(variant.name for variant in variants) == sorted(measured)
    assert {metric.key for metric in variants[0].metrics or ()} >= {"accuracy", "row_ms", "p99_ms", "size_bytes"}
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
    assert artifacts == {"report/report.html", "report/report.json"}


@pytest.mark.slow
def test_an_export_repeated_in_another_home_has_the_same_digest_and_a_child_that_hangs_loses_only_itself(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    """The model is converted anew: the bundle holds nothing that a clock or a path decides. Fine-tuning is cut short."""
    copy = exported_digits.copy(tmp_path / "home")
    chosen = exported_digits.report.chosen["onnx-cpu"]
    request = Request(ref=REF)
    only = [candidate for candidate in request.candidates if candidate.name == chosen or candidate.pruning]
    settings = Settings(home=copy.home, export={"measure_s": 0.1, "fine_tune_s": 0.5, "keep_mb": 0})
    for bundle in copy.settings.bundles.iterdir():
        bundle.rename(tmp_path / bundle.name)
    exported = export(Request(ref=REF, candidates=only), settings)
    assert exported.report.bundles == exported_digits.report.bundles
    pruned, quantized = (row for row in exported.report.rows if row.name != chosen)
    for cut in (pruned, quantized):
        assert (cut.verdict, cut.reason) == (Verdict.NOT_BUILT, "did not finish within 0.5 s and was killed")
        assert "-m seatrial_export.prune job.json" in cut.command
    assert pruned.command == quantized.command, "what both start from is made once"
    assert Path(pruned.log).is_file(), "what it takes to run it again stays"
    assert exported.bundles["onnx-cpu"].path.is_relative_to(copy.home)
    version = EmbeddedRegistry(settings).resolve(REF)
    assert version.tags[EXPORT_RUN_TAG] == exported.report.run_id != exported_digits.report.run_id
    fetched = fetch_bundle(EmbeddedRegistry(settings), version, target="onnx-cpu", store=tmp_path / "fetched")
    assert fetched.digest == exported_digits.bundle.digest


def test_a_copy_of_the_digits_home_names_none_of_the_originals_files(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    copy = exported_digits.copy(tmp_path / "home")
    with closing(sqlite3.connect(copy.home / "mlflow.db")) as store:
        dump = "\n".join(store.iterdump())
    assert copy.home.as_uri() in dump
    assert exported_digits.home.as_uri() not in dump


def test_answers_of_the_bundle_are_the_held_out_accuracy_that_was_reported(exported_digits: ExportedDigits) -> None:
    from seatrial_training.data import load_dataset
    from seatrial_training.evaluation import score

    dataset = load_dataset("digits", exported_digits.settings)
    engine = open_engine(exported_digits.bundle, threads=1)
    scores = [score(engine.predict, part, batch_size=64) for part in (dataset.validation, dataset.test)]
    engine.close()
    found = np.concatenate([each.correct for each in scores]).mean()
    [chosen] = [row for row in exported_digits.report.rows if row.verdict is Verdict.CHOSEN]
    assert chosen.quality is not None
    assert found == chosen.quality.value


@pytest.mark.slow
def test_zeros_are_there_and_make_nothing_faster_and_heads_that_are_not_cannot_go(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    copy = exported_digits.copy(tmp_path / "home")
    settings = Settings(home=copy.home, export={"measure_s": 1})
    steps = ("gated-50", "sparse-80", "sparse-2of4", "heads-50")
    asked = named(["onnx-cpu-fp32", *(f"onnx-cpu-fp32-{each}" for each in steps)])
    rows = {row.name: row for row in attempt(Request(ref=REF, candidates=asked), settings).report.rows}
    for step, part in (("sparse-80", 0.8), ("sparse-2of4", 0.5), ("gated-50", 0)):
        row = rows[f"onnx-cpu-fp32-{step}"]
        assert row.quality is not None
        assert row.quality.value > 0.8
        assert "; its zeros make nothing faster: " in row.reason
        [model] = copy.home.rglob(f"prune-{step}/model.onnx")  # there, because another candidate failed
        if part:
            assert zeros(model) == pytest.approx(part, abs=0.02)
        else:
            assert len([node for node in onnx.load(model).graph.node if node.op_type == "TopK"]) == 2, (
                "one a convolution"
            )
    heads = rows["onnx-cpu-fp32-heads-50"]
    assert (heads.verdict, heads.reason) == (Verdict.NOT_BUILT, "there is no layer whose heads could go")


@pytest.mark.slow
def test_another_part_of_the_channels_goes_where_a_name_says_so_and_is_taught_once_for_both_targets(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    settings = Settings(home=exported_digits.copy(tmp_path / "home").home, export={"measure_s": 0.1})
    names = [
        "onnx-cpu-fp32-pruned-50", "onnx-cpu-int8-pruned-25-static", "openvino-cpu-int8-pruned-25-static",
        "openvino-cpu-fp32-pruned-25",
    ]  # fmt: skip
    request = Request(ref=REF, targets=("onnx-cpu", OPENVINO_CPU), candidates=named(names))
    rows = {row.name: row for row in attempt(request, settings).report.rows}
    half, static, for_openvino, less = (rows[name] for name in names)
    assert half.size_bytes is not None
    assert less.size_bytes is not None
    assert half.size_bytes < less.size_bytes
    for row in (static, for_openvino, less):
        assert row.quality is not None
        assert row.quality.value > 0.9
    assert static.size_bytes == for_openvino.size_bytes, "the same file, run by each"
    kept = [path.read_text() for path in settings.conversions.glob("*/job.json")]
    assert len([job for job in kept if '"sparsity": 0.25' in job]) == 1


@pytest.mark.slow
def test_a_search_finds_how_many_channels_may_go_and_what_it_finds_is_judged_as_all_else(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    settings = Settings(home=exported_digits.copy(tmp_path / "home").home, export={"measure_s": 0.1})
    candidates = named(["onnx-cpu-fp32", "onnx-cpu-int8-static"])
    report = attempt(Request(ref=REF, candidates=candidates, search=2), settings).report
    tried = report.sparsities
    assert tried is not None
    assert (tried.why_not, tried.cut_short) == ("", False)
    assert len(tried.built) == 2
    last = max(each.part for each in tried.taught)
    best = [f"onnx-cpu-int8-pruned-{each.percent}-static" for each in tried.taught if each.part == last]
    assert set(tried.built) == set(best)
    rows = {row.name: row for row in report.rows}
    for name in tried.built:
        quality = rows[name].quality
        assert quality is not None
        assert quality.value > 0.8


def zeros(model: Path) -> float:
    """The part of the weights, of layers that have some in each of their groups of four, that is zero."""
    tensors = [onnx.numpy_helper.to_array(each) for each in onnx.load(model).graph.initializer]
    weights = [each for each in tensors if each.ndim >= 2 and (each == 0).any()]
    return sum(int((each == 0).sum()) for each in weights) / sum(each.size for each in weights)


@pytest.mark.slow
def test_where_every_conversion_takes_too_much_memory_the_report_says_so(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    copy = exported_digits.copy(tmp_path / "home")
    settings = Settings(home=copy.home, export={"memory_bytes": 2**28, "keep_mb": 0})
    attempted = attempt(Request(ref=REF), settings)
    assert attempted.unmet == ("onnx-cpu",)
    rows = {row.name: row for row in attempted.report.rows}
    mixed = rows.pop("onnx-cpu-int8-static-mixed")
    built = rows.values()
    assert {row.verdict for row in built} == {Verdict.NOT_BUILT}
    assert all("MiB of memory, more than the 256 allowed" in row.reason for row in built)
    assert mixed.reason == "there is no static INT8 model whose layers could be"
    assert attempted.report.bundles == {}
    version = EmbeddedRegistry(settings).resolve(REF)
    assert version.tags[BUNDLE_TAG + "onnx-cpu"] == exported_digits.bundle.digest, "what was there before stays"
