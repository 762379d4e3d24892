"""Conversions, each in a real child: what they make of a model, and what they say where they cannot."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from seatrial.errors import ConversionFailed
from seatrial.machine import Machine
from seatrial.settings import Settings
from seatrial_export import child, convert
from seatrial_export.build import Built, Workshop, building
from seatrial_export.candidate import CANDIDATES, Candidate, Lost, Verdict, named
from seatrial_export.child import Limits
from seatrial_export.onnx_file import clean, name_axes, name_tensors
from seatrial_export.quantize import weight_bits
from seatrial_export.source import Source
from tests.export.models import linear_source, some_rows
from tests.serving.models import save

ON_ONNX_CPU = FLOAT, DYNAMIC, STATIC, PRUNED = CANDIDATES[:4]
SMOOTHED = CANDIDATES[4]
LIMITS = Limits(time_s=120, memory_bytes=4 * 2**30, threads=1)


def built(source: Source, folder: Path, candidates: tuple[Candidate, ...]) -> list[Built | Lost]:
    with building(candidates, workshop(source, folder)) as underway:
        return [underway[each].result() for each in candidates]


def workshop(source: Source, folder: Path) -> Workshop:
    return Workshop(source=source, folder=folder, settings=Settings(home=folder), limits=LIMITS, tell=lambda *_: None)


def operators(made: Built | Lost) -> set[str]:
    assert isinstance(made, Built)
    return {node.op_type for node in onnx.load(made.model).graph.node}


def test_each_candidate_is_what_its_name_says(tmp_path: Path) -> None:
    exact, dynamic, static, pruned = built(linear_source(tmp_path), tmp_path, ON_ONNX_CPU)
    assert operators(exact) == {"Gemm"}
    assert "DynamicQuantizeLinear" in operators(dynamic)
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(static)
    assert isinstance(static, Built)
    types = {tensor.name: tensor.data_type for tensor in onnx.load(static.model).graph.initializer}
    assert types["x_zero_point"] == TensorProto.UINT8
    assert types["W_quantized"] == TensorProto.INT8
    [scales] = [tensor for tensor in onnx.load(static.model).graph.initializer if tensor.name == "W_scale"]
    assert list(scales.dims) == [3], "one for each channel"
    assert isinstance(pruned, Lost)
    assert (pruned.verdict, pruned.reason) == (
        Verdict.NOT_APPLICABLE, "pruning retrains, and it was written by hand",
    )  # fmt: skip


def test_static_ranges_come_from_the_calibration_rows(tmp_path: Path) -> None:
    rows = {"x": np.linspace(-3, 5, 4 * 64, dtype=np.float32).reshape(64, 4)}
    [made] = built(linear_source(tmp_path, rows=rows), tmp_path, (STATIC,))
    assert isinstance(made, Built)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(made.model).graph.initializer}
    assert float(constants["x_scale"]) == pytest.approx(8 / 255)
    assert made.recorded in (("7-bit-weights",), ("8-bit-weights",))


def test_a_graph_without_matrix_products_is_not_quantized(tmp_path: Path) -> None:
    source = linear_source(tmp_path)
    save(
        source.program,
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=1),
            helper.make_node("Expand", ["sum", "shape"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        constants={"shape": np.array([1, 3])},
    )
    exact, dynamic, static = built(source, tmp_path, (FLOAT, DYNAMIC, STATIC))
    assert isinstance(exact, Built)
    assert isinstance(dynamic, Lost)
    assert isinstance(static, Lost)
    assert (dynamic.verdict, dynamic.reason) == (Verdict.NOT_APPLICABLE, "the graph has none of Gemm, MatMul")
    assert (static.verdict, static.reason) == (Verdict.NOT_APPLICABLE, "the graph has none of Conv, Gemm, MatMul")


def test_what_cannot_be_converted_is_lost_with_its_log_and_command_and_so_is_what_starts_from_it(
    tmp_path: Path,
) -> None:
    source = linear_source(tmp_path)
    source.program.write_bytes(source.program.read_bytes()[:50])
    for made in built(source, tmp_path, (FLOAT, STATIC)):
        assert isinstance(made, Lost)
        assert made.verdict is Verdict.NOT_BUILT
        assert "DecodeError" in made.reason
        assert "Traceback" in Path(made.log).read_text()
        assert made.command.endswith("-P -m seatrial_export.convert job.json")


def test_an_error_meanwhile_ends_the_children(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        building(ON_ONNX_CPU, workshop(linear_source(tmp_path), tmp_path)) as underway,
    ):
        raise KeyboardInterrupt
    assert all(each.cancelled() or isinstance(each.result(), Lost) for each in underway.values())


@dataclass
class SimulatedWorkshop:
    """Builds whatever is asked at once, but for what is pruned: that takes until it is `trained`."""

    trained: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)
    alone: list[str] = field(default_factory=list)

    def obstacle_to_building(self, _: Candidate) -> None:
        """There is none."""

    def build_float(self, candidate: Candidate, *, alone: bool) -> Candidate:
        if alone:
            self.alone.append(candidate.name)
        if candidate.pruning:
            assert self.trained.wait(20)
        return candidate

    def finish(self, candidate: Candidate, base: "Future[Candidate]") -> Built:
        return Built(candidate=candidate, model=Path(base.result().name))


def test_what_takes_long_to_build_keeps_nothing_else_waiting() -> None:
    simulated = SimulatedWorkshop()
    asked = (PRUNED, *named(["onnx-cpu-fp32-heads-50", "onnx-cpu-fp32-sparse-80"]), FLOAT, DYNAMIC, STATIC, SMOOTHED)
    quick = {FLOAT, DYNAMIC, STATIC, SMOOTHED}
    try:
        with building(asked, simulated) as underway:  # type: ignore[arg-type]  # all of it that is asked
            assert list(underway)[:4] == [FLOAT, DYNAMIC, STATIC, SMOOTHED]
            for candidate in quick:
                assert isinstance(underway[candidate].result(timeout=10), Built)
            assert not any(underway[candidate].done() for candidate in asked if candidate not in quick)
            simulated.trained.set()
        for candidate in asked:
            made = underway[candidate].result()
            assert isinstance(made, Built)
            assert candidate.pruning is None or made.model.name == candidate.name, (
                "it waited for a float model of its own"
            )
    finally:
        simulated.trained.set()


def test_what_is_pruned_alike_is_made_once_for_all_targets() -> None:
    asked = named([
        "onnx-cpu-int8-pruned-25-static", "openvino-cpu-int8-pruned-25-static", "openvino-cpu-fp32-pruned-25",
        "openvino-cpu-fp32-pruned-30",
    ])  # fmt: skip
    simulated = SimulatedWorkshop()
    simulated.trained.set()
    with building(asked, simulated) as underway:  # type: ignore[arg-type]  # all of it that is asked
        made = [underway[candidate].result(timeout=10) for candidate in asked]
    assert [built.model.name for built in made if isinstance(built, Built)] == [
        *3 * ["onnx-cpu-int8-pruned-25-static"], "openvino-cpu-fp32-pruned-30",
    ]  # fmt: skip
    assert simulated.alone == [], "two trainings share the cores"
    with building(asked[:3], simulated) as underway:  # type: ignore[arg-type]  # all of it that is asked
        assert isinstance(underway[asked[2]].result(timeout=10), Built)
    assert simulated.alone == ["onnx-cpu-int8-pruned-25-static"], "one has them all"


TAKES_ITS_SIZE = """
import torch

class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)

torch.export.save(torch.export.export(Fixed().eval(), (torch.ones(2, 4),)), "program.pt2")
"""


@pytest.mark.slow
def test_an_axis_that_became_fixed_is_told(tmp_path: Path) -> None:
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", TAKES_ITS_SIZE], cwd=tmp_path, check=True)
    job = convert.Job(
        program=str(tmp_path / "program.pt2"), inputs=("x",), outputs=("y",),
        axes={"x": {0: "batch"}, "y": {0: "batch"}}, smallest={"batch": 1},
    )  # fmt: skip
    with pytest.raises(ConversionFailed, match="axis 'batch' of 'x' became fixed at 2 in the ONNX graph"):
        child.run("seatrial_export.convert", job, folder=tmp_path / "child", answer=convert.Converted, limits=LIMITS)


def test_an_inner_tensor_gives_its_name_to_an_output_that_wants_it(tmp_path: Path) -> None:
    """As where a model's layer is called what its answer is called."""
    nodes = [
        helper.make_node("Relu", ["given"], ["embedding"]),
        helper.make_node("Add", ["embedding", "embedding_1"], ["last"]),
        helper.make_node("Neg", ["embedding"], ["x"]),
    ]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("given", "last", "x")}
    constant = {"embedding_1": np.ones(1, np.float32)}
    model = onnx.load(
        save(tmp_path / "m.onnx", nodes, [values["given"]], [values["last"], values["x"]], constants=constant)
    )
    name_tensors(model, inputs=["x"], outputs=["embedding", "given"])
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    plus, minus = session.run(["embedding", "given"], {"x": np.array([-2, 3], np.float32)})
    assert plus.tolist() == [1, 4]
    assert minus.tolist() == [0, -3]


def test_a_symbol_keeps_one_name_wherever_it_stands() -> None:
    def value(name: str, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph([], "g", [value("x", "s0", 4), value("m", "s0", "s1")], [value("y", "s0", "s1", None)])
    model = helper.make_model(graph)
    name_axes(model, {"x": {0: "batch"}, "m": {1: "tokens"}, "y": {2: "width"}})
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"x": ["batch", 4], "m": ["batch", "tokens"], "y": ["batch", "tokens", "width"]}
    with pytest.raises(ConversionFailed, match="axis 'batch' of 'x' became fixed at 4"):
        name_axes(model, {"x": {1: "batch"}})


def test_a_cleaned_file_has_nothing_of_where_and_when_it_was_made(tmp_path: Path) -> None:
    model = onnx.load(linear_source(tmp_path).program)
    before = model.SerializeToString()
    model.doc_string = model.graph.doc_string = "/home/me/model.py"
    helper.set_model_props(model, {"when": "today"})
    node = model.graph.node[0]
    node.doc_string = "line 12"
    node.metadata_props.add(key="stack", value="File /home/me/model.py")
    model.graph.value_info.append(helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1]))
    clean(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        (("avx2",), 7), (("avx2", "avx512f"), 7), (("avx2", "avx_vnni"), 8), (("avx512f", "avx512_vnni"), 8),
        (("avx2", "amx_int8"), 8), (("asimddp",), 8), ((), 8),
    ],
)  # fmt: skip
def test_weights_have_seven_bits_where_sums_would_saturate(features: tuple[str, ...], bits: int) -> None:
    assert weight_bits(Machine(cpu="", cores=1, features=features, memory_bytes=1)) == bits


def test_rows_for_calibration_come_in_calls_that_the_model_takes(tmp_path: Path) -> None:
    """64 rows, where the model takes at most 5 at once."""
    import msgspec

    from tests.serving.models import SIGNATURE

    [axis] = SIGNATURE.dynamic_axes
    few = msgspec.structs.replace(SIGNATURE, dynamic_axes=(msgspec.structs.replace(axis, max=5),))
    [made] = built(linear_source(tmp_path, rows=some_rows(64), signature=few), tmp_path, (STATIC,))
    assert isinstance(made, Built)
    job = (tmp_path / "quantize-onnx-cpu-int8-static" / child.JOB).read_text()
    assert '"rows": 5' in job
