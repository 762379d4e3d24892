"""Gates on bundles that are right, wrong, worse and better by construction."""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from seatrial.bundle import Bound, Bundle, Draft, EngineSpec, Evidence, Golden, ModelName, VariantName, write_bundle
from seatrial.bundle.evidence import Provenance, Quality, Timing
from seatrial.machine import this_machine
from seatrial.protocol import InferRequest, Tensor
from seatrial.registry import ModelVersion
from seatrial.tensors import DataType, DynamicAxis, Signature, TensorSpec
from seatrial_promotion.entry import GateResult
from seatrial_promotion.gates import NEVER_RUN, Contender, bundle_gate, quality_gate
from seatrial_training.data import Split
from tests.serving.models import save

CLASSES = 4
ROWS = 400


def held_out() -> Split:
    """One-hot rows, each labelled with the place of its one: whoever returns its input is always right."""
    labels = np.arange(ROWS) % CLASSES
    return Split(inputs={"pixels": np.eye(CLASSES, dtype=np.float32)[labels]}, labels=labels)


@dataclass(frozen=True)
class Classifier:
    """Right but for one class in `wrong`, which it takes for the next one."""

    version: str = "1"
    wrong: tuple[int, ...] = ()
    input_name: str = "pixels"
    measured: bool = True
    proved: bool = True

    def contender(self, store: Path) -> Contender:
        bundle = self._bundle(store)
        if self.measured:
            bundle.replace_evidence(evidence(bundle))
        version = ModelVersion(name="onehot", version=self.version, run_id="", source="")
        return Contender(version=version, bundle=bundle)

    def _bundle(self, store: Path) -> Bundle:
        store.mkdir(exist_ok=True)
        weights = np.eye(CLASSES, dtype=np.float32)
        for each in self.wrong:
            weights[each] = np.roll(weights[each], 1)
        path = save(
            store / f".{self.version}.onnx",
            [helper.make_node("MatMul", [self.input_name, "W"], ["logits"])],
            [helper.make_tensor_value_info(self.input_name, TensorProto.FLOAT, ["batch", CLASSES])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            constants={"W": weights},
        )
        x = np.eye(CLASSES, dtype=np.float32)
        answer = (Tensor("logits", DataType.FP32, x @ weights),)
        bounds = {"logits": Bound(absolute=1e-6)}
        return write_bundle(
            Draft(
                model=ModelName(name="onehot", version=self.version),
                variant=VariantName(name="fp32", target="onnx-cpu", precision="fp32"),
                signature=Signature(
                    inputs=(TensorSpec(name=self.input_name, datatype=DataType.FP32, shape=(-1, CLASSES)),),
                    outputs=(TensorSpec(name="logits", datatype=DataType.FP32, shape=(-1, CLASSES)),),
                    dynamic_axes=(DynamicAxis(name="batch", at={self.input_name: 0, "logits": 0}, max=64),),
                ),
                engine=EngineSpec(name="onnxruntime"),
                graphs={"main": "model.onnx"},
                files={"model.onnx": path},
                golden=(
                    Golden(
                        request=InferRequest((Tensor(self.input_name, DataType.FP32, x),)), source=answer, rerun=answer
                    ),
                )
                * self.proved,
                source_bounds=bounds,
                rerun_bounds=bounds,
            ),
            store,
        )


def evidence(bundle: Bundle) -> Evidence:
    return Evidence(
        bundle=bundle.digest,
        written_at="2026-01-01T00:00:00Z",
        machine=this_machine(),
        provenance=Provenance(source="models:/onehot/1"),
        quality=Quality(metric="accuracy", basis="labels", rows=100, value=0.95, source_value=0.96, drop_upper=0.02),
        timings=(
            Timing(batch=64, threads=1, p50_ms=9, p99_ms=30, low_ms=8, high_ms=10, rounds=9),
            Timing(batch=1, threads=1, p50_ms=1, p99_ms=3, low_ms=1, high_ms=1, rounds=9),
        ),
        size_bytes=2_000_000,
        budget={"accuracy_drop": 0.02, "p99_ms": 5, "size_mb": 3},
    )


# The bundle gate


def test_a_whole_measured_bundle_within_its_budget_passes(tmp_path: Path) -> None:
    result = bundle_gate(Classifier().contender(tmp_path))
    assert result.passed
    assert "1 golden requests answered" in result.reason


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    contender = Classifier().contender(tmp_path)
    model = contender.bundle.file("model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    result = bundle_gate(contender)
    assert not result.passed
    assert "BundleCorrupt" in result.reason


def test_a_bundle_that_was_never_measured_is_refused(tmp_path: Path) -> None:
    assert "never measured" in bundle_gate(Classifier(measured=False).contender(tmp_path)).reason


def test_a_bundle_that_was_never_proved_is_refused_whatever_was_measured(tmp_path: Path) -> None:
    result = bundle_gate(Classifier(proved=False).contender(tmp_path))
    assert (result.passed, result.reason) == (False, NEVER_RUN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": {"p99_ms": 2.0}}, "p99_ms is 3, its budget allows 2"),
        ({"budget": {"size_mb": 1.0}}, "size_mb is 2, its budget allows 1"),
        ({"budget": {"accuracy_drop": 0.005}}, "accuracy_drop is 0.01, its budget allows 0.005"),
        ({"budget": {"p50_ms": 0.5}}, "p50_ms is 1, its budget allows 0.5"),
        ({"budget": {"throughput": 8000}}, "throughput is 7111, its budget asks for 8000"),
        ({"budget": {"metric": 0.96}}, "metric is 0.95, its budget asks for 0.96"),
        ({"budget": {"memory_mb": 10}, "memory_bytes": 11_000_000}, "memory_mb is 11, its budget allows 10"),
        ({"budget": {"load_s": 1}, "load_s": 1.5}, "load_s is 1.5, its budget allows 1"),
        ({"budget": {"p99_ms": 2.0}, "timings": ()}, "limits p99_ms, which was not measured"),
    ],
)
def test_evidence_over_the_budget_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    contender = Classifier().contender(tmp_path)
    contender.bundle.replace_evidence(msgspec.structs.replace(evidence(contender.bundle), **change))
    result = bundle_gate(contender)
    assert not result.passed
    assert words in result.reason


# The quality gate


def test_the_first_has_nobody_to_be_worse_than(tmp_path: Path) -> None:
    first = Classifier(wrong=(0,)).contender(tmp_path)
    assert quality_gate(first, None, "no data", margin=0.01).passed
    result = quality_gate(first, None, held_out(), margin=0.01)
    assert result.passed
    assert result.measured["value"] == 0.75


def test_equal_and_better_pass_and_worse_does_not(tmp_path: Path) -> None:
    right = Classifier(version="1").contender(tmp_path)
    same = Classifier(version="2").contender(tmp_path)
    worse = Classifier(version="3", wrong=(1,)).contender(tmp_path)
    assert quality_gate(same, right, held_out(), margin=0.01).passed
    assert quality_gate(right, worse, held_out(), margin=0.01).passed
    refused = quality_gate(worse, right, held_out(), margin=0.01)
    assert not refused.passed
    assert refused.measured["value"] == 0.75
    assert refused.measured["champion_value"] == 1.0
    assert "0.01 was allowed" in refused.reason
    assert quality_gate(worse, right, held_out(), margin=0.3).passed


def test_without_rows_to_compare_on_the_gate_says_so(tmp_path: Path) -> None:
    old, new = Classifier(version="1").contender(tmp_path), Classifier(version="2").contender(tmp_path)
    result = quality_gate(new, old, "it came without labelled data", margin=0.01)
    assert not result.passed
    assert "--waive quality=REASON" in result.reason


def test_models_that_take_different_inputs_cannot_be_compared(tmp_path: Path) -> None:
    old = Classifier(version="1").contender(tmp_path)
    new = Classifier(version="2", input_name="image").contender(tmp_path)
    assert "cannot be asked the same rows" in quality_gate(new, old, held_out(), margin=0.01).reason


def test_a_waiver_opens_a_gate_that_said_no_and_leaves_one_that_said_yes_alone() -> None:
    said_no = GateResult(gate="quality", passed=False, reason="worse")
    assert said_no.waived("known and accepted").open
    assert not said_no.waived("").open
    said_yes = replace(said_no, passed=True)
    assert said_yes.waived("needless") == said_yes
