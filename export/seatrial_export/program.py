"""A program on disk, a `.pt2` or ONNX file: opened without running anybody's code, described, and run as reference.

The reference is what every candidate is compared with: PyTorch itself in float32, or for a model that came as ONNX,
ONNX Runtime with every optimization off.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from seatrial.errors import InvalidSource, Untrusted
from seatrial.tensors import BATCH, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export.samples import Inputs, Outputs, Predict

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TORCH_PROGRAM, ONNX = ".pt2", ".onnx"


def open_program(path: Path) -> "ExportedProgram":
    """Read a `.pt2`. Raises `Untrusted` where reading would run code that came with it."""
    import torch
    from mlflow.exceptions import MlflowException
    from mlflow.pytorch import _validate_pt2_archive_is_pickle_free as check_code_free

    try:
        check_code_free(str(path))
    except MlflowException as error:
        raise Untrusted(
            f"{path.name} is not a code-free program: it holds records that only Python can read, by running what they "
            f"say ({_record(str(error))}). If you trust whoever made it, say so with --trust"
        ) from error
    return torch.export.load(path)


def _record(message: str) -> str:
    """Which record of the archive MLflow's check stopped at."""
    return message.partition("record ")[2].partition(" in the")[0] or "it is no archive"


def reference(path: Path, signature: Signature) -> Predict:
    """Ask the program in `path`. What it cannot answer, it answers with `InvalidSource`."""
    ask, refusals = (_torch_reference if path.suffix == TORCH_PROGRAM else _onnx_reference)(path, signature)

    def predict(inputs: Inputs) -> Outputs:
        try:
            return ask(inputs)
        except refusals as error:
            shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in inputs.items())
            raise InvalidSource(
                f"the source model itself does not answer {shapes}, which its signature allows: {_first_line(error)}"
            ) from error

    return predict


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


Refusals: TypeAlias = tuple[type[Exception], ...]


def _torch_reference(path: Path, signature: Signature) -> tuple[Predict, Refusals]:
    import torch
    from torch.utils import _pytree as pytree

    program = open_program(path)
    module, structure = program.module(), program.call_spec.in_spec
    names = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]

    def predict(inputs: Inputs) -> Outputs:
        args, kwargs = pytree.tree_unflatten([torch.from_numpy(inputs[name]) for name in names], structure)
        with torch.inference_mode():
            answer = pytree.tree_leaves(module(*args, **kwargs))
        return {name: tensor.numpy() for name, tensor in zip(outputs, answer, strict=True)}

    return predict, (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def _onnx_reference(path: Path, signature: Signature) -> tuple[Predict, Refusals]:
    import onnxruntime as ort

    from seatrial_serving.engines.onnxruntime import REFUSALS

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [spec.name for spec in signature.outputs]

    def predict(inputs: Inputs) -> Outputs:
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    return predict, REFUSALS


def program_signature(
    program: "ExportedProgram", *, inputs: Sequence[str], outputs: Sequence[str], max_batch: int
) -> Signature:
    """What `program` takes and gives. `inputs` and `outputs` name its tensors; where empty, its own names are used.

    The axis that comes first everywhere is the batch. How far another dynamic axis may go is what the program says, or
    four times the size that it was made with.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    given = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    answered = [nodes[name].meta["val"] for name in program.graph_signature.user_outputs if isinstance(name, str)]
    input_names = tuple(inputs) or tuple(map(str, program.graph_signature.user_inputs))
    output_names = tuple(outputs) or _numbered("output", len(answered))
    if len(given) != len(input_names) or len(answered) != len(output_names):
        raise InvalidSource(
            f"the program takes {len(given)} tensors and gives {len(answered)}, its signature names "
            f"{list(input_names)} and {list(output_names)}; every input and output must be a named tensor"
        )
    tensors = dict(zip((*input_names, *output_names), (*given, *answered), strict=True))
    return Signature(
        inputs=tuple(_spec(name, tensors[name]) for name in input_names),
        outputs=tuple(_spec(name, tensors[name]) for name in output_names),
        dynamic_axes=_axes(tensors, program, inputs=input_names, max_batch=max_batch),
    )


def _numbered(word: str, number: int) -> tuple[str, ...]:
    return (word,) if number == 1 else tuple(f"{word}_{i}" for i in range(number))


def _spec(name: str, tensor: Any) -> TensorSpec:
    import torch

    datatypes = {
        torch.bool: DataType.BOOL, torch.uint8: DataType.UINT8, torch.int8: DataType.INT8, torch.int16: DataType.INT16,
        torch.int32: DataType.INT32, torch.int64: DataType.INT64, torch.float16: DataType.FP16,
        torch.float32: DataType.FP32, torch.float64: DataType.FP64,
    }  # fmt: skip
    if tensor.dtype not in datatypes:
        raise InvalidSource(f"tensor '{name}' is {tensor.dtype}, which is not exported; convert it inside the model")
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(name=name, datatype=datatypes[tensor.dtype], shape=shape)


def _axes(
    tensors: dict[str, Any], program: "ExportedProgram", *, inputs: Sequence[str], max_batch: int
) -> tuple[DynamicAxis, ...]:
    """One axis for each symbol among the inputs' sizes, with every tensor whose size is just that symbol."""
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    axes = []
    for symbol, (owner, index) in _symbols({name: tensors[name] for name in inputs}).items():
        at = {
            name: list(map(str, tensor.shape)).index(symbol)
            for name, tensor in tensors.items()
            if symbol in map(str, tensor.shape)
        }
        is_batch = all(tensor.shape and str(tensor.shape[0]) == symbol for tensor in tensors.values())
        limit = max_batch if is_batch else 4 * tensors[owner].shape[index].node.hint
        low, high = (int(ranges[symbol].lower), ranges[symbol].upper) if symbol in ranges else (1, limit)
        axes.append(
            DynamicAxis(
                name=BATCH if is_batch else f"{owner}_{index}",
                at=at,
                min=1 if low <= 2 else low,  # torch says 2 where it only did not look at 1
                max=min(limit, int(high)) if str(high).isdigit() else limit,
            )
        )
    return tuple(axes)


def _symbols(tensors: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Each symbol with the first place where it is a size."""
    found: dict[str, tuple[str, int]] = {}
    for name, tensor in tensors.items():
        for index, size in enumerate(tensor.shape):
            if not isinstance(size, int):
                found.setdefault(str(size), (name, index))
    return found
