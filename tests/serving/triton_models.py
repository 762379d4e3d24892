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
from tests.serving.models import WEIGHTS, linear_onnx, save

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

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [each["name"] for each in self.config["input"]]
        given = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        given = {name: self.text(array) if array.dtype == object else array for name, array in given.items()}
        names = [each["name"] for each in self.config["output"]]
        answers = self.session.run(names, given)
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
