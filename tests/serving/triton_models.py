"""A Triton model repository for tests, and a backend that runs its ONNX models in the real Triton.

NVIDIA's wheel has Triton with its Python backend alone. A backend written in Python, under the name `onnxruntime`, lets it
serve the same repository, file for file: what Triton does with the configuration is Triton's own.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from seatrial_serving.triton.environment import TritonEnvironment
from tests.serving.models import WEIGHTS, linear_onnx, purse_onnx, save

LINEAR = """
    input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [3] %s }]
"""

BACKEND = '''
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton

STARTS = 1  # the flag of a request that starts a sequence
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(string)": "TYPE_STRING"}


def session(place, config):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(Path(place) / (config["default_model_filename"] or "model.onnx")), options)


class TritonPythonModel:
    """As Triton's own backend for ONNX Runtime does it, the filling in of a configuration included."""

    @staticmethod
    def auto_complete_config(model_config):
        config = model_config.as_dict()
        if not config["input"] and not config["output"]:
            [place] = sorted(Path(PLACES[config["name"]]).glob("[0-9]*"))
            graph = session(place, config)
            model_config.set_max_batch_size(4)
            model_config.set_dynamic_batching()
            for add, values in ((model_config.add_input, graph.get_inputs()), (model_config.add_output, graph.get_outputs())):
                for value in values:
                    add({"name": value.name, "data_type": TYPES[value.type], "dims": value.shape[1:]})
        return model_config

    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.session = session(Path(args["model_repository"]) / args["model_version"], self.config)
        self.sequence = self.config.get("sequence_batching", {})
        self.held = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [each["name"] for each in self.config["input"]]
        given = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        given = {name: self.text(array) if array.dtype == object else array for name, array in given.items()}
        for control in self.sequence.get("control_input", []):
            given[control["name"]] = triton.get_input_tensor_by_name(request, control["name"]).as_numpy()
        states = self.sequence.get("state", [])
        for state in states:  # its implicit states are for backends in C++
            zeros = np.zeros((1, *map(int, state["dims"])), np.float32)
            key = (request.correlation_id(), state["input_name"])
            given[state["input_name"]] = zeros if request.flags() & STARTS else self.held[key]
        names = [each["name"] for each in self.config["output"]]
        *answers, = self.session.run([*names, *(state["output_name"] for state in states)], given)
        for state, array in zip(states, answers[len(names):]):
            self.held[request.correlation_id(), state["input_name"]] = array
        answers = answers[:len(names)]
        answers = [self.bytes(array) if array.dtype == object else array for array in answers]
        return triton.InferenceResponse([triton.Tensor(name, array) for name, array in zip(names, answers)])

    @staticmethod
    def text(array):
        return np.array([each.decode() for each in array.ravel()], dtype=object).reshape(array.shape)

    @staticmethod
    def bytes(array):
        return np.array([each.encode() for each in array.ravel()], dtype=object).reshape(array.shape)
'''


def write_backends(environment: TritonEnvironment, to: Path, repository: Path) -> Path:
    """The backends of `environment`, and that for ONNX models, in the folder `to`."""
    shutil.copytree(environment.backends, to)
    (to / "onnxruntime").mkdir()
    places = {each.name: str(each) for each in repository.iterdir()}
    (to / "onnxruntime" / "model.py").write_text(f"PLACES = {places!r}\n{BACKEND}")
    return to


def model(repository: Path, name: str, config: str | None, **versions: Path) -> Path:
    """A model's directory; `versions` are `v1=FILE`."""
    place = repository / name
    place.mkdir(parents=True)
    if config is not None:
        (place / "config.pbtxt").write_text(config)
    for version, file in versions.items():
        (place / version.removeprefix("v")).mkdir()
        shutil.copyfile(file, place / version.removeprefix("v") / "model.onnx")
    return place


def write_repository(to: Path) -> Path:
    """Models of many kinds; what each is for, its name says. The linear ones multiply by their version."""
    files = to.parent / "onnx"
    files.mkdir(parents=True)
    one, two, ten = (linear_onnx(files / f"{scale}.onnx", scale=scale) for scale in (1, 2, 10))
    linear = 'backend: "onnxruntime" max_batch_size: 8' + LINEAR % ""
    onnx = 'backend: "onnxruntime"'
    batching = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 100 }"
    labels = LINEAR % 'label_filename: "names.txt"'

    model(to, "plain", None, v1=two)
    model(to, "latest", linear, v1=one, v2=two, v10=ten)
    model(to, "all", f"{linear} version_policy {{ all {{}} }}", v1=one, v2=two, v10=ten)
    model(to, "specific", f"{linear} version_policy {{ specific {{ versions: [1, 2] }} }}", v1=one, v2=two, v10=ten)
    labelled = model(to, "labelled", f'platform: "onnxruntime_onnx" {batching} {labels}', v1=one)
    (labelled / "names.txt").write_text("cat\ndog\nship\n")
    model(to, "text", f"{onnx} max_batch_size: 4 {TEXT}", v1=shout_onnx(files / "text.onnx"))
    model(to, "reshaped", f"{onnx} max_batch_size: 4 {RESHAPED}", v1=row_onnx(files / "row.onnx"))
    model(to, "unbatched", f"{onnx} {UNBATCHED}", v1=one)
    model(to, "cnn", f"{onnx} {batching} {CNN}", v1=cnn_onnx(files / "cnn.onnx"))
    model(to, "purse", f"{onnx} max_batch_size: 8 {COIN} {PURSE}", v1=purse_onnx(files / "purse.onnx"))
    model(to, "told", f"{onnx} max_batch_size: 8 {TOLD}", v1=told_onnx(files / "told.onnx"))
    model(to, "summing", f"{onnx} max_batch_size: 8 {SUMMING}", v1=summing_onnx(files / "summing.onnx"))
    (model(to, "grand", f'platform: "ensemble" max_batch_size: 8 {GRAND}') / "1").mkdir()
    (model(to, "apart", f'platform: "ensemble" max_batch_size: 8 {APART}') / "1").mkdir()
    return to


TEXT = """
    input [{ name: "said" data_type: TYPE_STRING dims: [2] }]
    output [{ name: "loud" data_type: TYPE_STRING dims: [2] }]
"""
RESHAPED = """
    input [{ name: "row" data_type: TYPE_FP32 dims: [-1, 2, 1] reshape { shape: [-1, 2] } }]
    output [{ name: "sum" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }]
"""
UNBATCHED = """
    input [{ name: "x" data_type: TYPE_FP32 dims: [2, 4] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [2, 3] }]
"""
CNN = """
    input [{ name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [1, -1, -1] }]
    output [{ name: "score" data_type: TYPE_FP32 dims: [2] }]
"""


COIN = """
    input [{ name: "coin" data_type: TYPE_INT64 dims: [1] }]
    output [{ name: "total" data_type: TYPE_FP32 dims: [1] }]
"""
PURSE = """
    sequence_batching {
      max_sequence_idle_microseconds: 20000000
      oldest { max_candidate_sequences: 16 }
      state [{ input_name: "purse" output_name: "purse_after" data_type: TYPE_FP32 dims: [1] }]
    }
"""
TOLD = """
    input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
    output [{ name: "told" data_type: TYPE_FP32 dims: [5] }]
    sequence_batching {
      max_sequence_idle_microseconds: 20000000
      direct { }
      control_input [
        { name: "START" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [-1, 1] }] },
        { name: "END" control [{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 9] }] },
        { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] }] },
        { name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
      ]
    }
"""
SUMMING = """
    input [{ name: "values" data_type: TYPE_FP32 dims: [3] }]
    output [{ name: "sum" data_type: TYPE_FP32 dims: [1] }]
"""
GRAND = """
    input [{ name: "given" data_type: TYPE_FP32 dims: [4] }]
    output [{ name: "grand_total" data_type: TYPE_FP32 dims: [1] }, { name: "between" data_type: TYPE_FP32 dims: [3] }]
    ensemble_scheduling {
      step [
        {
          model_name: "summing" model_version: -1
          input_map { key: "values" value: "between" } output_map { key: "sum" value: "grand_total" }
        },
        {
          model_name: "specific" model_version: 1
          input_map { key: "x" value: "given" } output_map { key: "y" value: "between" }
        }
      ]
    }
"""
"""The second step is computed before the first."""
APART = """
    input [{ name: "given" data_type: TYPE_FP32 dims: [4] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [1] }, { name: "again" data_type: TYPE_FP32 dims: [1] }]
    ensemble_scheduling {
      step [
        {
          model_name: "grand" model_version: 1
          input_map { key: "given" value: "given" }
          output_map { key: "between" value: "hidden" } output_map { key: "grand_total" value: "again" }
        },
        {
          model_name: "summing" model_version: 1
          input_map { key: "values" value: "hidden" } output_map { key: "sum" value: "y" }
        }
      ]
    }
"""
"""An ensemble of an ensemble, which comes before its parts in the alphabet."""


def told_onnx(path: Path) -> Path:
    """What the graph is told by the server, as numbers, after the x of the caller."""
    told = {
        "x": TensorProto.FLOAT, "START": TensorProto.FLOAT, "END": TensorProto.INT32, "READY": TensorProto.BOOL,
        "CORRID": TensorProto.UINT64,
    }  # fmt: skip
    return save(
        path,
        [
            *(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT) for name in told),
            helper.make_node("Concat", [f"{name}_float" for name in told], ["told"], axis=1),
        ],
        [helper.make_tensor_value_info(name, kind, ["batch", 1]) for name, kind in told.items()],
        [helper.make_tensor_value_info("told", TensorProto.FLOAT, ["batch", 5])],
    )


def summing_onnx(path: Path) -> Path:
    return save(
        path,
        [helper.make_node("ReduceSum", ["values", "axes"], ["sum"], keepdims=1)],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 1])],
        constants={"axes": np.array([1], np.int64)},
    )


def shout_onnx(path: Path) -> Path:
    """Text in capitals."""
    return save(
        path,
        [
            helper.make_node("Reshape", ["said", "flat"], ["words"]),
            helper.make_node("StringNormalizer", ["words"], ["upper"], case_change_action="UPPER", locale="C"),
            helper.make_node("Reshape", ["upper", "pairs"], ["loud"]),
        ],
        [helper.make_tensor_value_info("said", TensorProto.STRING, ["batch", 2])],
        [helper.make_tensor_value_info("loud", TensorProto.STRING, ["batch", 2])],
        constants={"flat": np.array([-1]), "pairs": np.array([-1, 2])},
    )


def row_onnx(path: Path) -> Path:
    """The sum of the first of every two numbers, without an axis of its own."""
    return save(
        path,
        [
            helper.make_node("Gather", ["row", "first"], ["firsts"], axis=2),
            helper.make_node("ReduceSum", ["firsts", "axes"], ["sum"], keepdims=0),
        ],
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", "pairs", 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch"])],
        constants={"first": np.array(0), "axes": np.array([1])},
    )


def cnn_onnx(path: Path) -> Path:
    """A convolution that needs at least 3 by 3 pixels, its mean over the image, and a bias."""
    kernels = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    return save(
        path,
        [
            helper.make_node("Conv", ["image", "kernels"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
            helper.make_node("Flatten", ["means"], ["score"]),
        ],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 2])],
        constants={"kernels": kernels},
    )


def leaky_onnx(path: Path, location: str) -> Path:
    """The linear model with its weights in another file."""
    save(
        path,
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        constants={"W": WEIGHTS},
    )
    saved = onnx.load(path, load_external_data=False)
    [weights] = saved.graph.initializer
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    path.write_bytes(saved.SerializeToString())
    return path
