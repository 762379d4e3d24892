"""An MLflow model's directory: which program lies in it, what it takes, and an example of that.

PyTorch and ONNX models are read, whoever logged them. Data and labels are `source`'s business.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mlflow.models import Model

from seatrial.errors import BundleCorrupt, InvalidSource, Untrusted
from seatrial.tensors import DataType, Signature
from seatrial_export import foreign
from seatrial_export.child import Limits
from seatrial_export.program import ONNX, open_program, program_signature
from seatrial_export.samples import Inputs
from seatrial_export.text import Text
from seatrial_training.retrainable import FOLDER, SIGNATURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """`program` is code-free. `notes` are sentences for the report, `text` is what it does with text if it takes any."""

    program: Path
    signature: Signature
    example: Inputs | None
    notes: tuple[str, ...] = ()
    text: Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whether somebody's code may be run to open a model, within which limits; `command` is how to allow it."""

    given: bool
    folder: Path
    limits: Limits
    command: str


def open_logged(files: Path, *, what: str, trust: Trust, max_batch: int, rows: Inputs | None = None) -> Logged:
    """Read the model in `files`, which messages call `what`. `rows` stand in where it brings no example to trace with.

    Raises `Untrusted` where that takes running somebody's code and it is not allowed, `InvalidSource` for a model that
    is neither PyTorch nor ONNX.
    """
    model = Model.load(str(files))
    example = read_example(model, files)
    if "onnx" in model.flavors:
        return _open_onnx(files / model.flavors["onnx"]["data"], example, max_batch=max_batch)
    if "pytorch" not in model.flavors:
        found = ", ".join(sorted(set(model.flavors) - {"python_function"})) or "no known flavor"
        raise InvalidSource(f"{what} is an MLflow model of {found}; PyTorch and ONNX models can be exported")
    program = files / model.flavors["pytorch"]["model_data"] / "model.pt2"
    notes: tuple[str, ...] = ()
    if not (program.exists() and is_code_free(program)):
        if not trust.given:
            raise foreign.refuse(what, command=trust.command)
        program, notes = _trace(files, model, example or rows, trust)
    inputs, outputs = _names(model, "inputs"), _names(model, "outputs")
    opened = open_torch(
        program, example, max_batch=max_batch, signature=_our_signature(files), inputs=inputs, outputs=outputs
    )
    return replace(opened, notes=notes + opened.notes, text=Text.read(files))


def _open_onnx(data: Path, example: Inputs | None, *, max_batch: int) -> Logged:
    program = next(data.glob(f"*{ONNX}")) if data.is_dir() else data
    signature = onnx_signature(program, max_batch=max_batch)
    return Logged(program=program, signature=signature, example=named(example, signature) if example else None)


def onnx_signature(program: Path, *, max_batch: int) -> Signature:
    from seatrial_serving.engines.onnxruntime import read_signature

    try:
        signature = read_signature(program)
    except BundleCorrupt as error:
        raise InvalidSource(f"{program.name} is no ONNX model that can be run: {error}") from error
    if texts := [spec.name for spec in signature.inputs if spec.datatype is DataType.BYTES]:
        raise InvalidSource(f"the inputs {texts} are text; a model that takes token ids can be exported")
    axes = tuple(msgspec.structs.replace(axis, max=max_batch) for axis in signature.dynamic_axes)
    return msgspec.structs.replace(signature, dynamic_axes=axes)


def open_torch(
    program: Path,
    example: Inputs | None,
    *,
    max_batch: int,
    signature: Signature | None = None,
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
) -> Logged:
    """Read a code-free `.pt2`. Where nobody knows its `signature`, it is read from the program, named as told."""
    exported = open_program(program)
    signature = signature or program_signature(exported, inputs=inputs, outputs=outputs, max_batch=max_batch)
    names = [spec.name for spec in signature.inputs]
    if example is None and exported.example_inputs:
        args, kwargs = exported.example_inputs
        example = dict(zip(names, (tensor.numpy() for tensor in (*args, *kwargs.values())), strict=True))
    fixed = "the program takes calls of one fixed size, so requests cannot be put together in batches"
    return Logged(
        program=program,
        signature=signature,
        example=named(example, signature) if example else None,
        notes=() if signature.batch is not None else (fixed,),
    )


def named(example: Inputs, signature: Signature) -> Inputs:
    """`example` by the names of `signature`: MLflow does not name a single tensor."""
    names = [spec.name for spec in signature.inputs]
    if len(example) != len(names) or set(example) == set(names):
        return example
    return dict(zip(names, example.values(), strict=True))


def _our_signature(files: Path) -> Signature | None:
    """What our own training and `register` put beside a program: it names the axes, which MLflow cannot."""
    path = files / FOLDER / SIGNATURE
    return msgspec.json.decode(path.read_bytes(), type=Signature) if path.is_file() else None


def is_code_free(program: Path) -> bool:
    try:
        open_program(program)
    except Untrusted:
        return False
    return True


def _trace(files: Path, model: Model, example: Inputs | None, trust: Trust) -> tuple[Path, tuple[str, ...]]:
    dynamic: tuple[tuple[int, ...], ...] = ()
    if model.signature is not None and model.signature.inputs.is_tensor_spec():
        dynamic = tuple(
            tuple(axis for axis, size in enumerate(spec.shape) if size == -1) for spec in model.signature.inputs.inputs
        )
    job = foreign.Job(source=str(files), dynamic=dynamic)
    examples = () if example is None else (example,)
    program, traced = foreign.to_program(job, folder=trust.folder, limits=trust.limits, examples=examples)
    return program, (
        f"it was a Python object of type {traced.type_name}, traced in a child process "
        + ("that had the network, which this kernel could not take away" if traced.network else "without network"),
    )


def _names(model: Model, side: str) -> tuple[str, ...]:
    schema = getattr(model.signature, side) if model.signature is not None else None
    if schema is None or not schema.is_tensor_spec():
        return ()
    names = [spec.name for spec in schema.inputs]
    return tuple(names) if all(names) else ()


def read_example(model: Model, files: Path) -> Inputs | None:
    """The input example that was logged, as arrays; those without a name are called by their position."""
    if model.saved_input_example_info is None:
        return None
    example: Any = model.load_input_example(str(files))
    if isinstance(example, dict):
        return {str(name): np.asarray(array) for name, array in example.items()}
    if hasattr(example, "to_numpy"):  # a data frame, which MLflow's PyTorch flavor feeds as one float matrix
        return {"0": example.to_numpy(dtype=np.float32)}
    return {"0": np.asarray(example)}
