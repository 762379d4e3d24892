"""Small ONNX models, and bundles of them, made in milliseconds without torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper

from seatrial.bundle import (
    Bound,
    Bundle,
    Draft,
    EngineSpec,
    Golden,
    Hardware,
    ModelName,
    Normalize,
    Pool,
    Tokenize,
    VariantName,
    write_bundle,
)
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import Array, DataType, DynamicAxis, Signature, State, TensorSpec
from seatrial_serving.engines.onnxruntime import read_signature

WEIGHTS = np.array([[1, 0, 2], [0, 1, -1], [1, 1, 0], [0, 0, 1]], np.float32)
BIAS = np.array([0.5, -0.5, 0], np.float32)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=64),),
)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    constants: dict[str, Array] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def linear_onnx(path: Path, *, scale: float = 1.0) -> Path:
    """y = scale * (x W + b), x of 4 and y of 3 columns."""
    return save(
        path,
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        constants={"W": scale * WEIGHTS, "b": scale * BIAS},
    )


def linear(x: ArrayLike, *, scale: float = 1.0) -> Array:
    """What `linear_onnx` computes, to the last bit: its numbers are small sums of small integers and halves."""
    answer: Array = np.float32(scale) * (np.asarray(x, np.float32) @ WEIGHTS + BIAS)
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearBundle:
    """How to make a bundle of the linear model: same name, other `version` and `scale`, other digest."""

    name: str = "linear"
    version: str = "1"
    scale: float = 1.0
    golden_scale: float | None = None
    """The scale that the golden answers were made with; another one makes a bundle that answers differently here."""
    labels: tuple[str, ...] = field(default=())
    engine: EngineSpec = field(default_factory=lambda: EngineSpec(name="onnxruntime"))
    model: Path | None = None
    """The file that the engine reads; by default an ONNX file."""
    file: str = ""
    """What it is called in the bundle, if not "model"."""
    hardware: Hardware | None = None
    beside: Mapping[str, Path] = field(default_factory=dict)

    def write(self, store: Path) -> Bundle:
        store.mkdir(parents=True, exist_ok=True)
        x = np.array([[1, 2, 3, 4], [-1, 0, 0.5, 2]], np.float32)
        answer = (Tensor("y", DataType.FP32, linear(x, scale=self.golden_scale or self.scale)),)
        model = self.model or linear_onnx(store / f".{self.name}-{self.version}.onnx", scale=self.scale)
        file = self.file or f"model{model.suffix}"
        draft = Draft(
            model=ModelName(name=self.name, version=self.version),
            variant=VariantName(name="fp32", target="onnx-cpu", precision="fp32"),
            signature=SIGNATURE,
            engine=self.engine,
            graphs={"main": file},
            files={file: model, **self.beside},
            golden=(Golden(request=InferRequest((Tensor("x", DataType.FP32, x),)), source=answer, rerun=answer),),
            source_bounds={"y": Bound(absolute=1e-5, relative=1e-5)},
            rerun_bounds={"y": Bound(absolute=1e-6, relative=1e-6, top1=True)},
            labels=self.labels,
            hardware=self.hardware,
        )
        return write_bundle(draft, store)


def everything_onnx(path: Path) -> Path:
    """One identity for each datatype that ONNX Runtime and the protocol share; inputs `in_…`, outputs `out_…`, 1-D."""
    types = {
        "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
        "uint64": TensorProto.UINT64, "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32,
        "int64": TensorProto.INT64, "fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT, "fp64": TensorProto.DOUBLE,
        "bytes": TensorProto.STRING,
    }  # fmt: skip
    return save(
        path,
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in types],
        [helper.make_tensor_value_info(f"in_{name}", kind, ["batch", 2]) for name, kind in types.items()],
        [helper.make_tensor_value_info(f"out_{name}", kind, ["batch", 2]) for name, kind in types.items()],
    )


def laborious_onnx(path: Path) -> Path:
    """y = x W^16, of 1,024 columns: a row takes a core a millisecond and more."""
    names = ["x", *(f"x{n}" for n in range(1, 16)), "y"]
    return save(
        path,
        [helper.make_node("MatMul", [given, "W"], [made]) for given, made in pairwise(names)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1024])],
        constants={"W": np.eye(1024, dtype=np.float32)},
    )


def laborious_linear_onnx(path: Path) -> Path:
    """What `linear_onnx` computes, to the last bit, by way of 64 identities: a batch takes ten milliseconds and more."""
    detour = ["there", *(f"x{n}" for n in range(64))]
    wide = np.eye(1024, dtype=np.float32)
    return save(
        path,
        [
            helper.make_node("Gemm", ["x", "W", "b"], ["linear"]),
            helper.make_node("MatMul", ["linear", "out"], ["there"]),
            *(helper.make_node("MatMul", [given, "same"], [made]) for given, made in pairwise(detour)),
            helper.make_node("MatMul", [detour[-1], "back"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        constants={"W": WEIGHTS, "b": BIAS, "out": wide[:3], "same": wide, "back": wide[:, :3]},
    )


def gather_onnx(path: Path) -> Path:
    """y = table[ids]: an id of 4 or more makes ONNX Runtime refuse the whole batch."""
    return save(
        path,
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 3])],
        constants={"table": WEIGHTS},
    )


def pair_onnx(path: Path) -> Path:
    """Two inputs, a of two columns and n of one; quotient = a / n, which is not finite where n is 0, and twice = 2 n."""
    return save(
        path,
        [
            helper.make_node("Cast", ["n"], ["n_float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["a", "n_float"], ["quotient"]),
            helper.make_node("Add", ["n", "n"], ["twice"]),
        ],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("quotient", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("twice", TensorProto.INT64, ["batch", 1]),
        ],
    )


def echo_onnx(path: Path) -> Path:
    """The text that came in, once under a name that says text and once under one that says bytes."""
    return save(
        path,
        [helper.make_node("Identity", ["said"], ["text"]), helper.make_node("Identity", ["said"], ["text_bytes"])],
        [helper.make_tensor_value_info("said", TensorProto.STRING, ["batch"])],
        [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]) for name in ("text", "text_bytes")],
    )


VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "ship", "at", "sea", "in", "harbour", "is", "safe")
STATES = np.random.default_rng(7).normal(size=(len(VOCABULARY), 4)).astype(np.float32)
"""What `encoder_onnx` makes of each token."""
MAX_TOKENS = 8
TOKENIZE = Tokenize(file="tokenizer.json", ids="input_ids", mask="attention_mask", max_tokens=MAX_TOKENS)
MEAN = Pool(output="last_hidden_state", method="mean")


def encoder_onnx(path: Path) -> Path:
    """A text encoder without attention: each token's state is its row of `STATES`, whatever the mask says."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return save(
        path,
        [
            helper.make_node("Gather", ["states", "input_ids"], ["of_ids"]),
            helper.make_node("Gather", ["none", "token_type_ids"], ["of_types"]),
            helper.make_node("Add", ["of_ids", "of_types"], ["last_hidden_state"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", 4])],
        constants={"states": STATES, "none": np.zeros((1, 4), np.float32)},
    )


def embedder_onnx(path: Path) -> Path:
    """The same with its own pooling: the mean of the real tokens' states, at length one."""
    return save(
        path,
        [
            helper.make_node("Gather", ["states", "input_ids"], ["of_ids"]),
            helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["real", "last"], ["weight"]),
            helper.make_node("Mul", ["of_ids", "weight"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "tokens"], ["sum"], keepdims=0),
            helper.make_node("LpNormalization", ["sum"], ["embedding"], axis=-1),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 4])],
        constants={"states": STATES, "last": np.array([2]), "tokens": np.array([1])},
    )


def tokenizer_json(path: Path) -> Path:
    """A tokenizer of whole words, saved as model authors do: with a padding and a truncation of its own."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", VOCABULARY.index("[CLS]")), ("[SEP]", VOCABULARY.index("[SEP]"))],
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(max_length=4)
    tokenizer.save(str(path))
    return path


def token_ids(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in ("[CLS]", *text.split(), "[SEP]")]


def embedding(text: str) -> Array:
    """What the encoder's bundle makes of `text`: the mean of its tokens' states, at length one."""
    mean = STATES[token_ids(text)].mean(0)
    answer: Array = mean / np.linalg.norm(mean)
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderBundle:
    """How to make a bundle that embeds; each change makes one that is wrong."""

    tokenize: Tokenize = TOKENIZE
    postprocessing: tuple[Pool | Normalize, ...] = (MEAN, Normalize())
    graph: Callable[[Path], Path] = encoder_onnx
    golden_text: str = "a ship at sea"
    """The text that the golden answer belongs to; the request is always the same."""

    def write(self, store: Path) -> Bundle:
        store.mkdir(parents=True, exist_ok=True)
        encoder = self.graph(store / ".encoder.onnx")
        expected = (
            Tensor("embedding", DataType.FP32, embedding(self.golden_text)[None]),
            Tensor("token_count", DataType.INT64, np.array([6])),
        )
        request = InferRequest((Tensor("text", DataType.BYTES, np.array([b"a ship at sea"], object)),))
        bounds = {"embedding": Bound(absolute=1e-6), "token_count": Bound(absolute=0.0)}
        draft = Draft(
            model=ModelName(name="encoder", version="1"),
            variant=VariantName(name="fp32", target="onnx-cpu", precision="fp32"),
            signature=read_signature(encoder),
            engine=EngineSpec(name="onnxruntime"),
            graphs={"main": "model.onnx"},
            files={"model.onnx": encoder, "tokenizer.json": tokenizer_json(store / ".tokenizer.json")},
            golden=(Golden(request=request, source=expected, rerun=expected, graph="text"),),
            source_bounds=bounds,
            rerun_bounds=bounds,
            preprocessing=(self.tokenize,),
            postprocessing=self.postprocessing,
        )
        return write_bundle(draft, store)


COINS = np.array([1, 10, 100, 1000], np.float32)
PURSE = Signature(
    inputs=(
        TensorSpec(name="coin", datatype=DataType.INT64, shape=(-1, 1)),
        TensorSpec(name="purse", datatype=DataType.FP32, shape=(-1, 1)),
    ),
    outputs=(
        TensorSpec(name="total", datatype=DataType.FP32, shape=(-1, 1)),
        TensorSpec(name="purse_after", datatype=DataType.FP32, shape=(-1, 1)),
    ),
    dynamic_axes=(DynamicAxis(name="batch", at={"coin": 0, "purse": 0, "total": 0, "purse_after": 0}, max=16),),
    states=(State(input="purse", output="purse_after"),),
)


def purse_onnx(path: Path) -> Path:
    """Coins add up in a purse: total = purse + COINS[coin]. There are four; any other makes ONNX Runtime refuse the batch."""
    return save(
        path,
        [
            helper.make_node("Gather", ["coins", "coin"], ["worth"]),
            helper.make_node("Add", ["purse", "worth"], ["total"]),
            helper.make_node("Identity", ["total"], ["purse_after"]),
        ],
        [
            helper.make_tensor_value_info("coin", TensorProto.INT64, ["batch", 1]),
            helper.make_tensor_value_info("purse", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("total", "purse_after")],
        constants={"coins": COINS},
    )


GRU = Signature(
    inputs=(
        TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 3)),
        TensorSpec(name="h", datatype=DataType.FP32, shape=(-1, 4)),
    ),
    outputs=(
        TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 4)),
        TensorSpec(name="h_next", datatype=DataType.FP32, shape=(-1, 4)),
    ),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "h": 0, "y": 0, "h_next": 0}, max=16),),
    states=(State(input="h", output="h_next"),),
)


def gru_onnx(path: Path) -> Path:
    """One step of a gated recurrent unit, of four numbers, with weights as they fall; y = 2 h_next."""
    chance = np.random.default_rng(11)
    return save(
        path,
        [
            helper.make_node("Unsqueeze", ["x", "time"], ["x_of_time"]),
            helper.make_node("Unsqueeze", ["h", "time"], ["h_of_direction"]),
            helper.make_node("GRU", ["x_of_time", "W", "R", "", "", "h_of_direction"], ["", "h_after"], hidden_size=4),
            helper.make_node("Squeeze", ["h_after", "time"], ["h_next"]),
            helper.make_node("Add", ["h_next", "h_next"], ["y"]),
        ],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 4]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("y", "h_next")],
        constants={
            "time": np.array([0], np.int64),
            "W": chance.normal(size=(1, 12, 3)).astype(np.float32),
            "R": chance.normal(size=(1, 12, 4)).astype(np.float32),
        },
    )


def write_stateful(
    store: Path, signature: Signature, model: Path, *, name: str, golden: tuple[Tensor, Tensor] | None = None
) -> Bundle:
    """A bundle of `model`; `golden` is the input of one sequence's steps, and their answer."""
    answer = (golden[1],) if golden else ()
    recorded = (Golden(request=InferRequest((golden[0],)), source=answer, rerun=answer),) if golden else ()
    draft = Draft(
        model=ModelName(name=name, version="1"),
        variant=VariantName(name="fp32", target="onnx-cpu", precision="fp32"),
        signature=signature,
        engine=EngineSpec(name="onnxruntime"),
        graphs={"main": "model.onnx"},
        files={"model.onnx": model},
        golden=recorded,
        source_bounds={},
        rerun_bounds={},
    )
    return write_bundle(draft, store)


def write_purse(store: Path, *, totals: ArrayLike = (10, 1010, 1011)) -> Bundle:
    """`totals` are what its golden request records for the coins 1, 3 and 0."""
    store.mkdir(parents=True, exist_ok=True)
    coins = Tensor("coin", DataType.INT64, np.array([[1], [3], [0]]))
    answer = Tensor("total", DataType.FP32, np.array(totals, np.float32).reshape(3, 1))
    return write_stateful(store, PURSE, purse_onnx(store / ".purse.onnx"), name="purse", golden=(coins, answer))
