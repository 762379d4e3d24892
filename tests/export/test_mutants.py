"""Faults planted into small graphs, one of each family, and what verification says of them. All of them, in six architectures:
`python -m benchmarks mutants`."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from benchmarks.faults import KINDS
from seatrial.tensors import Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export.candidate import CANDIDATES, Candidate
from seatrial_export.exam import Exam, set_exam
from seatrial_export.program import reference
from seatrial_export.verify import Proof, Unfaithful, verify
from seatrial_serving.engines.onnxruntime import OnnxRuntime
from tests.serving.models import save

FLOAT, STATIC = CANDIDATES[0], CANDIDATES[2]
IMAGE = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 2, 6, 6)),),
    outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=64),),
)
GENERATOR = np.random.default_rng(3)
CONSTANTS: dict[str, Array] = {
    "filters": GENERATOR.normal(size=(3, 2, 3, 3)).astype(np.float32),
    "offsets": np.array([1, -1, 0.5], np.float32),
    "image": np.array([2, 3]),
    "W": GENERATOR.normal(size=(3, 3)).astype(np.float32),
    "b": np.array([0.5, 0, -0.5], np.float32),
    "step": np.array(0.04, np.float32),
    "middle": np.array(128, np.uint8),
}


def grey_images(number: int) -> dict[str, Array]:
    """Both channels are alike."""
    grey = np.random.default_rng(5).normal(size=(number, 1, 6, 6)).clip(-4, 4)
    return {"x": np.repeat(grey, 2, axis=1).astype(np.float32)}


def network(path: Path, *, quantized: bool = False) -> Path:
    """A convolution and a linear layer; its input in steps of 0.04, if it is `quantized`."""
    pixels = [helper.make_node("Identity", ["x"], ["pixels"])]
    if quantized:
        pixels = [
            helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["steps"]),
            helper.make_node("DequantizeLinear", ["steps", "step", "middle"], ["pixels"]),
        ]
    nodes = [
        *pixels,
        helper.make_node("Conv", ["pixels", "filters", "offsets"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "image"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "W", "b"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    return save(path, nodes, [x], [y], constants=CONSTANTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    folder: Path
    exam: Exam

    def sit(self, candidate: Candidate, graph: ModelProto) -> Proof:
        path = self.folder / "candidate.onnx"
        onnx.save(graph, path)
        engine = OnnxRuntime({"main": path}, signature=IMAGE, options={}, threads=1)
        try:
            return verify(candidate, engine.predict, self.exam)
        finally:
            engine.close()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("mutants")
    source = reference(network(folder / "source.onnx"), IMAGE)
    return Subject(folder=folder, exam=set_exam(IMAGE, grey_images(256), source))


AWAY = r"batch 1: 'y' is .* from the source's"
REFUSALS = {
    "weight transposed": AWAY,
    "filters turned": AWAY,
    "a filter gone or negative": AWAY,
    "bias dropped": AWAY,
    "padding off by one": AWAY,
    "activation missing": AWAY,
    "wrong pooling": AWAY,
    "layer missing": AWAY,
    "statistics of the batch": AWAY,
    "outputs swapped": AWAY,
    "wrong end": AWAY,
    "channels reversed": "noise: 'y' is .* from the source's",
    "fixed batch": r"the axis 'batch' became fixed at (1: 2|2: 1), 3, 7, 64 are not answered \(batch [12]: |batch 2: 'y' is",
    "hears its neighbours": r"batch \d+: 'y' is .* from the source's",
    "hears loud neighbours": "10 times the range: 'y' is .* from the source's",
    "rows reversed": "batch 2: 'y' is .* from the source's",
    "wrong at a size": "batch (1|64): 'y' is 0.02 from the source's",
    "wrong for some inputs": "'y' is 0.02 from the source's",
    "NaN for some inputs": "'y' holds NaN or infinity where the source has numbers",
    "NaN for zeros": "zeros: 'y' holds NaN or infinity where the source has numbers",
}
"""What is said of every mutant of a kind."""


def test_the_graph_itself_passes(subject: Subject) -> None:
    graph = onnx.load(network(subject.folder / "right.onnx"))
    assert subject.sit(FLOAT, graph).agreement.max_absolute < 1e-5


@pytest.mark.parametrize(("kind", "words"), REFUSALS.items(), ids=REFUSALS)
def test_a_planted_fault_is_refused_with_a_sentence_that_names_it(kind: str, words: str, subject: Subject) -> None:
    planted = list(KINDS[kind](onnx.load(network(subject.folder / "right.onnx"))))
    assert planted
    for place, graph in planted:
        with pytest.raises(Unfaithful) as why:
            subject.sit(FLOAT, graph)
        assert re.search(words, str(why.value)), f"{place}: {why.value}"


def test_faults_in_a_quantized_graph_show_in_its_agreement(subject: Subject) -> None:
    right = onnx.load(network(subject.folder / "int8.onnx", quantized=True))
    honest = subject.sit(STATIC, right).agreement
    assert honest.top1 >= 0.99
    assert honest.cosine >= 0.999
    for kind in ("wrong scale", "wrong zero point", "bias dropped", "weight transposed"):
        for place, graph in KINDS[kind](right):
            if place == "step x 8":
                continue  # a coarser input is still a good one, as the mean over an image is taken
            found = subject.sit(STATIC, graph).agreement
            assert found.top1 < 0.99 or found.cosine < 0.999, (kind, place, found)
