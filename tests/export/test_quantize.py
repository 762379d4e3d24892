"""Static INT8: where ranges come from, what smoothing moves, which layers stay in float."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import nn

from seatrial.errors import InvalidSettings
from seatrial.registry import ModelRef
from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_export import quantize, sensitivity
from seatrial_export.calibrate import BINS, NARROWED, Histogram, Range, as_levels, observed, ranges
from seatrial_export.candidate import CANDIDATES, Calibration, Verdict, named
from seatrial_export.choose import Budget
from seatrial_export.export import attempt
from seatrial_export.mix import find_fewest
from seatrial_export.register import register
from seatrial_export.request import Request
from seatrial_export.samples import write_arrays
from seatrial_export.sensitivity import noise
from seatrial_export.smooth import smooth
from seatrial_export.static import calibrated
from seatrial_training.recipe import Quantization
from seatrial_training.rounding import Rounding
from tests.export.models import some_rows
from tests.serving.models import BIAS, WEIGHTS, linear_onnx, save

FLOAT, DYNAMIC, STATIC, PRUNED, SMOOTHED, MIXED, *_ = CANDIDATES
WIDTH = 16


def histogram(values: NDArray[np.float64]) -> Histogram:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts, _ = np.histogram(values, BINS, (low, high))
    return Histogram(seen=Range(low, high), counts=counts)


def bell_with_outlier(outlier: float) -> NDArray[np.float64]:
    return np.append(np.random.default_rng(0).normal(size=100_000), [outlier])


# Ranges


def test_min_max_takes_what_was_seen_and_zero(tmp_path: Path) -> None:
    model = onnx.load(linear_onnx(tmp_path / "linear.onnx"))
    calls = [{"x": np.full((2, 4), 3, np.float32)}, {"x": np.array([[1, 2, 7, 4]], np.float32)}]
    found = ranges(model, ["x", "y"], calls, Calibration.MIN_MAX)
    assert found == {"x": Range(0.0, 7.0), "y": Range(0.0, 8.5)}


@pytest.mark.parametrize(("method", "high"), [(Calibration.PERCENTILE, 6), (Calibration.ENTROPY, 10)])
def test_one_far_value_does_not_set_the_range(method: Calibration, high: float) -> None:
    found = NARROWED[method](histogram(bell_with_outlier(100)))
    assert -6 < found.low < -2
    assert 2 < found.high < high


@pytest.mark.parametrize("method", NARROWED)
def test_where_all_values_are_alike_frequent_the_range_is_kept(method: Calibration) -> None:
    found = NARROWED[method](histogram(np.linspace(-3, 5, 100_000)))
    assert found.low == pytest.approx(-3, abs=0.4)
    assert found.high == pytest.approx(5, abs=0.4)


@pytest.mark.parametrize("method", NARROWED)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50, unique=True))
def test_every_range_has_zero_in_it_and_nothing_beyond_what_was_seen(method: Calibration, numbers: list[float]) -> None:
    told = histogram(np.array(numbers))
    found = NARROWED[method](told)
    slack = told.width * 1e-6
    assert told.seen.low - slack <= found.low <= 0 <= found.high <= told.seen.high + slack


def test_mse_is_nearer_to_the_values_than_any_other_range() -> None:

    def error(kept: Range) -> float:
        return float(np.mean((as_levels(values, kept) - values) ** 2))

    values = bell_with_outlier(30)
    told = histogram(values)
    found = NARROWED[Calibration.MSE](told)
    assert error(found) <= 1.02 * min(error(kept) for kept in told.tried())
    assert error(found) < 0.95 * error(told.seen)


def test_the_method_sets_the_scale_that_is_written(tmp_path: Path) -> None:
    """One row in 512 is a hundred times the others: the range of all, or steps that fit the others."""
    rows = some_rows(512)["x"]
    rows[0] *= 100
    model = onnx.load(linear_onnx(tmp_path / "linear.onnx"))
    scales = {}
    for method in Calibration:
        made = calibrated(model, [{"x": rows}], method=method, weight_bits=8).quantized(["Gemm-0"])
        [scale] = [each for each in made.graph.initializer if each.name == "x_scale"]
        scales[method] = float(onnx.numpy_helper.to_array(scale))
    assert scales[Calibration.MIN_MAX] == pytest.approx(np.ptp(rows) / 255)
    assert scales[Calibration.MSE] > scales[Calibration.MIN_MAX] / 2, "an error of a hundred is dear"
    assert scales[Calibration.ENTROPY] < scales[Calibration.MIN_MAX] / 2


class Linear(nn.Module):
    """The linear model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.layer.weight.data, self.layer.bias.data = torch.from_numpy(WEIGHTS.T.copy()), torch.from_numpy(BIAS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layer(x)
        return answer


def test_training_for_int8_rounds_as_the_export_does(tmp_path: Path) -> None:
    """With 7 bits, whose sums are exact on every CPU. The engine rounds the bias too, to the step of its sums."""
    model, rows = onnx.load(linear_onnx(tmp_path / "linear.onnx")), some_rows(64)
    made = calibrated(model, [rows], method=Calibration.MIN_MAX, weight_bits=7).quantized(["Gemm-0"])
    [answered] = observed(made.SerializeToString(), ["y"], [rows])
    module = Linear().train()
    with torch.no_grad():
        trained = Rounding(Quantization(weight_bits=7), module).ask(module, {"x": torch.from_numpy(rows["x"])}).numpy()
        exact = module(torch.from_numpy(rows["x"])).numpy()
    np.testing.assert_allclose(trained, answered["y"], atol=2e-4)
    assert np.abs(exact - answered["y"]).max() > 1e-3


def test_a_candidate_is_named_by_its_method() -> None:
    found = named(["onnx-cpu-int8-static", "onnx-cpu-int8-static-entropy"])
    assert [each.calibration for each in found] == [Calibration.MIN_MAX, Calibration.ENTROPY]
    with pytest.raises(InvalidSettings, match="did you mean 'onnx-cpu-int8-static-mse'"):
        named(["onnx-cpu-int8-static-mes"])


# Smoothing


def weights(rows: int, columns: int, *, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def model(path: Path, nodes: Sequence[NodeProto], constants: dict[str, Array]) -> ModelProto:
    """From x, rows of `WIDTH`, to y; inner tensors get types."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, WIDTH]) for name in ("x", "y"))
    return onnx.shape_inference.infer_shapes(onnx.load(save(path, nodes, [x], [y], constants=constants)))


def normalised(path: Path, *, residual: bool) -> ModelProto:
    """Two products read what a normalisation makes, one channel of which is loud; with `residual` a sum reads it too."""
    scale = np.ones(WIDTH, np.float32)
    scale[3] = 200
    q, k = (weights(WIDTH, WIDTH, seed=seed) for seed in (1, 2))
    q[3] /= 200
    k[3] /= 200
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "Wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["n", "Wk"], ["k"], name="key"),
        helper.make_node("Add", ["q", "k"], ["y" if not residual else "sum"]),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["sum", "n"], ["y"]))
    return model(path, nodes, {"scale": scale, "bias": weights(1, WIDTH, seed=6)[0], "Wq": q, "Wk": k})


def fed_forward(path: Path, *, reshaped: bool) -> ModelProto:
    """A product, a bias and a `Relu` make what the next product reads: one channel of it is loud.

    With `reshaped` there is something between that lets no scale pass, and the weights lie the other way round.
    """
    up, down, bias = weights(WIDTH, WIDTH, seed=3), weights(WIDTH, WIDTH, seed=4), weights(1, WIDTH, seed=5)[0]
    up[:, 5] *= 300
    down[5] /= 300
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["u"], name="up"),
        helper.make_node("Add", ["bias", "u"], ["v"]),
        helper.make_node("Relu", ["v"], ["w"]),
    ]
    if reshaped:
        nodes += [
            helper.make_node("Reshape", ["w", "flat"], ["f"]),
            helper.make_node("Gemm", ["f", "down"], ["g"], name="down", transB=1),
            helper.make_node("Reshape", ["g", "deep"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["w", "down"], ["y"], name="down"))
    shapes = {"flat": np.array([-1, WIDTH]), "deep": np.array([-1, 4, WIDTH])} if reshaped else {}
    return model(path, nodes, {"up": up, "bias": bias, "down": down.T if reshaped else down, **shapes})


def calls(number: int = 16) -> list[dict[str, Array]]:
    rows = np.random.default_rng(9).normal(size=(number, 2, 4, WIDTH)).astype(np.float32)
    return [{"x": call} for call in rows]


def answers(given: ModelProto) -> list[Array]:
    return [np.concatenate([each["y"] for each in observed(given.SerializeToString(), ["y"], calls())])]


def static(given: ModelProto) -> ModelProto:
    whole = calibrated(given, calls(), method=Calibration.MIN_MAX, weight_bits=8)
    return whole.quantized([node.name for node in whole.layers])


def test_dynamic_int8_takes_weights_that_two_products_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["one"], name="one", transB=1),
        helper.make_node("Mul", ["x", "minus"], ["turned"]),
        helper.make_node("Gemm", ["turned", "w"], ["other"], name="other", transB=1),
        helper.make_node("Concat", ["one", "other"], ["y"], axis=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", WIDTH), ("y", 6))
    ]
    constants: dict[str, Array] = {"w": weights, "minus": np.array(-1, np.float32)}
    path = save(tmp_path / "shared.onnx", nodes, ends[:1], ends[1:], constants=constants)
    monkeypatch.chdir(tmp_path)
    quantize.quantize(quantize.Job(model=str(path), mode="dynamic", weight_bits=8, smallest={"batch": 1}))
    made = Path(quantize.MODEL).read_bytes()
    x = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    [found] = observed(made, ["y"], [{"x": x}])
    assert found["y"] == pytest.approx(np.concatenate([x @ weights.T, -x @ weights.T], axis=1), abs=0.2)


@pytest.mark.parametrize(
    ("make", "operators"),
    [
        (lambda path: normalised(path, residual=False), ["LayerNormalization", "MatMul", "MatMul", "Add"]),
        (lambda path: normalised(path, residual=True), ["LayerNormalization", "Mul", "MatMul", "MatMul", "Add", "Add"]),
        (lambda path: fed_forward(path, reshaped=False), ["MatMul", "Add", "Relu", "MatMul"]),
        (
            lambda path: fed_forward(path, reshaped=True),
            ["MatMul", "Add", "Relu", "Reshape", "Mul", "Gemm", "Reshape"],
        ),
    ],
    ids=["into the norm", "beside a residual", "through a relu", "behind a reshape"],
)
def test_smoothing_changes_no_answer_and_makes_int8_nearer_to_it(
    make: Callable[[Path], ModelProto], operators: list[str], tmp_path: Path
) -> None:
    plain, smoothed = make(tmp_path / "plain.onnx"), make(tmp_path / "smoothed.onnx")
    exact = answers(plain)
    assert smooth(smoothed, calls(), weight_bits=8) >= 1
    behind = [node for node in smoothed.graph.node if node.name != "x.mul"]
    assert [node.op_type for node in behind] == operators
    onnx.checker.check_model(smoothed)
    np.testing.assert_allclose(answers(smoothed)[0], exact[0], rtol=1e-4, atol=1e-4)
    assert noise(answers(static(smoothed)), exact) < noise(answers(static(plain)), exact) / 4


def test_what_is_added_up_beside_the_products_stays_float(tmp_path: Path) -> None:
    """The quantizer by itself gives a tensor's rounded form to all that read it."""
    made = static(normalised(tmp_path / "given.onnx", residual=True))
    producer = {name: node for node in made.graph.node for name in node.output}
    last = next(node for node in made.graph.node if "y" in node.output)
    assert "n" in last.input
    assert producer["n"].op_type == "LayerNormalization"
    for name in ("query", "key"):
        node = next(node for node in made.graph.node if node.name == name)
        assert {producer[each].op_type for each in node.input} == {"DequantizeLinear"}


# Layers in float


def picky(path: Path) -> Path:
    """Three layers. One column of `x` is a thousand times the others, and the first layer takes a thousandth of it."""
    first = weights(4, 8, seed=1)
    first[0] /= 1000
    nodes = [
        helper.make_node("Gemm", ["x", "W1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "W2"], ["s"], name="second"),
        helper.make_node("Relu", ["s"], ["t"]),
        helper.make_node("Gemm", ["t", "W3"], ["y"], name="third"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("x", 4), ("y", 3)))
    return save(
        path, nodes, [x], [y], constants={"W1": first, "W2": weights(8, 8, seed=2), "W3": weights(8, 3, seed=3)}
    )


def picky_rows(number: int = 400) -> dict[str, Array]:
    rows = some_rows(number)
    rows["x"][:, 0] *= 1000
    return rows


def test_the_layer_that_int8_harms_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path / "rows.npz", picky_rows(64))
    quantization = quantize.Job(
        model=str(picky(tmp_path / "picky.onnx")), mode="static", weight_bits=8, smallest={}, calibration="rows.npz"
    )
    worst, *others = sensitivity.measure(sensitivity.Job(quantization=quantization)).layers
    assert (worst.name, worst.operator) == ("first", "Gemm")
    assert worst.noise is not None
    assert worst.noise > 0.1
    assert {other.name for other in others} == {"second", "third"}
    assert all(other.noise is not None and other.noise < 0.001 for other in others)


def test_layers_that_were_asked_before_the_time_was_over_are_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path / "rows.npz", picky_rows(64))
    quantization = quantize.Job(
        model=str(picky(tmp_path / "picky.onnx")), mode="static", weight_bits=8, smallest={}, calibration="rows.npz"
    )
    late = sensitivity.Job(quantization=quantization, for_s=0)
    nothing = sensitivity.measure(late)
    assert ([layer.noise for layer in nothing.layers], nothing.whole) == ([None, None, None], False)
    known = sensitivity.Layer(name="second", operator="Gemm", noise=0.25)
    Path(sensitivity.NOTES).write_bytes(msgspec.json.encode(known) + b'\n{"name": "third", "oper')
    assert [layer.noise for layer in sensitivity.measure(late).layers] == [0.25, None, None], "nor what is half a line"
    whole = sensitivity.measure(msgspec.structs.replace(late, for_s=None))
    assert whole.whole
    assert known in whole.layers
    assert sensitivity.measure(late) == whole


def test_layers_left_in_float_read_and_answer_floats(tmp_path: Path) -> None:
    calls = [{"x": picky_rows(64)["x"]}]
    given = onnx.shape_inference.infer_shapes(onnx.load(picky(tmp_path / "picky.onnx")))
    made = calibrated(given, calls, method=Calibration.MIN_MAX, weight_bits=8).quantized(["second", "third"])
    inputs = {node.name: list(node.input) for node in made.graph.node if node.op_type == "Gemm"}
    assert inputs["first"] == ["x", "W1"]
    assert all("DequantizeLinear" in name for layer in ("second", "third") for name in inputs[layer])


@pytest.mark.slow
def test_a_mixed_variant_is_built_where_static_int8_misses_the_accuracy(home: Path) -> None:
    settings = Settings(home=home, export={"measure_s": 0.1, "threads": 1})
    register(str(picky(home / "picky.onnx")), name="picky", settings=settings)
    write_arrays(home / "rows.npz", picky_rows())
    request = Request(
        ref=ModelRef(name="picky", version="1"), samples=home / "rows.npz", candidates=(FLOAT, STATIC, MIXED),
        budget=Budget(accuracy_drop=0.05),
    )  # fmt: skip
    _, plain, mixed = attempt(request, settings).report.rows
    assert plain.verdict in (Verdict.OVER_BUDGET, Verdict.UNFAITHFUL)
    assert mixed.verdict in (Verdict.CHOSEN, Verdict.ADMITTED)
    assert [(layer.name, layer.kept) for layer in mixed.layers[:1]] == [("first", True)]
    assert [layer.kept for layer in mixed.layers[1:]] == [False, False]


@given(st.integers(1, 200), st.integers(1, 220))
def test_the_fewest_are_found_that_are_enough(most: int, enough: int) -> None:
    asked = []

    def attempt(number: int) -> str | None:
        asked.append(number)
        return f"{number}" if number >= enough else None

    assert find_fewest(most, attempt) == (f"{enough}" if enough <= most else None)
    assert len(asked) == len(set(asked)) <= 2 * np.log2(most + 1) + 1
    assert max(asked) <= most
