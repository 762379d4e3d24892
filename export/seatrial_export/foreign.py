"""Somebody else's code, run once, in a child: to unpickle their model, call their factory or run their TorchScript, and
trace the result.

The only module of ours that may unpickle. The child (`python -P -m seatrial_export.foreign job.json`) has its own
working directory, an environment without credentials and, where the kernel allows it, no network; time and memory are
limited. That limits accidents, not attackers. All it gives back is a `.pt2` program, which everything after treats like
any other.
"""

import ctypes
import importlib
import inspect
import os
import re
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from seatrial.errors import ConversionFailed, InvalidSource, Untrusted
from seatrial_export import child
from seatrial_export.child import Limits
from seatrial_export.samples import Inputs, count, repeat, write_arrays

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.jit import ScriptModule

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""`module:factory`, a function without arguments that gives a module, or a module and its example inputs."""

TORCHSCRIPT = (".pt", ".torchscript")
PROGRAM = "program.pt2"
CLOSE = 1e-4
"""How far the program may lie from the module it was traced from: float rounding, no more."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is an MLflow model's directory, a `.pt2` or TorchScript file, or `module:factory` to be found in the folder
    `path`.

    `examples` are .npz files with the inputs in their order; none where the source brings its own. The first is traced,
    the others are asked of what came of it. `dynamic` gives for each input the axes of any size.
    """

    source: str
    path: str = ""
    examples: tuple[str, ...] = ()
    dynamic: tuple[tuple[int, ...], ...] = ()


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """The program is `PROGRAM` in the child's folder. `network` says whether the child had one."""

    network: bool
    type_name: str


# The parent's half


def refuse(what: str, *, command: str) -> Untrusted:
    kind = "is Python code" if FACTORY.fullmatch(what) else "is TorchScript" if is_torchscript(what) else "is a pickle"
    return Untrusted(
        f"{what} {kind}: opening it runs the code of whoever made it, with your rights. If you trust them, run: "
        f"{command} --trust (a child process without credentials opens it: that limits accidents, not attackers)"
    )


def is_torchscript(source: str) -> bool:
    return Path(source).suffix in TORCHSCRIPT


def to_program(
    job: Job,
    *,
    folder: Path,
    limits: Limits,
    examples: Sequence[Inputs] = (),
    given_up: threading.Event | None = None,
) -> tuple[Path, Traced]:
    """Have a child turn `job.source` into a program. Raises `ConversionFailed` with the command to run it again."""
    files = tuple(f"example-{i}.npz" for i in range(len(examples)))
    for file, example in zip(files, examples, strict=True):
        write_arrays(folder / file, repeat(example, max(2, count(example))))
    job = msgspec.structs.replace(job, examples=files)
    traced = child.run(__name__, job, folder=folder, answer=Traced, limits=limits, given_up=given_up)
    return folder / PROGRAM, traced


# The child's half


def trace(job: Job) -> Traced:
    network = not leave_network()
    opened, examples = _open(job)
    import torch

    if isinstance(opened, torch.export.ExportedProgram):
        program = opened
    elif isinstance(opened, torch.nn.Module):
        program = _export(opened, examples, job.dynamic)
    else:
        raise InvalidSource(f"{job.source} gave {type(opened).__name__}, expected a torch.nn.Module")
    torch.export.save(program, PROGRAM)
    return Traced(network=network, type_name=type(opened).__name__)


def leave_network() -> bool:
    """Move this process into a network of its own with nothing in it; whether the kernel let us."""
    new_net, new_user = 0x40000000, 0x10000000
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(new_net) == 0:
        return True
    if libc.unshare(new_net | new_user) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


Example: TypeAlias = "list[Any] | dict[str, Any]"
"""What to call a module with: by position or by name; empty where nothing is known."""


def _open(job: Job) -> tuple[Any, list[Example]]:
    """What the source holds or makes, of whatever type, and examples of its inputs."""
    source = Path(job.source)
    examples: list[Example] = [_read_example(Path(file)) for file in job.examples]
    if source.suffix == ".pt2":
        import torch

        return torch.export.load(source), examples
    if source.suffix in TORCHSCRIPT:
        return _open_torchscript(source), examples
    if source.is_dir():
        return _open_mlflow(source), examples
    made = _call_factory(job.source, Path(job.path))
    module, *rest = made if isinstance(made, tuple) else (made,)
    return module, examples or [_as_example(own) for own in rest[:1]]


def _open_torchscript(path: Path) -> "nn.Module":
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there is TorchScript is why we are here
            module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InvalidSource(
            f"{path.name} is no TorchScript: {str(error).strip().partition(chr(10))[0]}. A pickled module or weights can "
            "come as module:factory, a function that builds the module and loads them"
        ) from error
    return module


def _as_example(given: Any) -> Example:
    """What a factory gave beside its module: several inputs, inputs by name, or a single one."""
    if isinstance(given, tuple | list):
        return list(given)
    return given if isinstance(given, dict) else [given]


def _open_mlflow(folder: Path) -> "nn.Module":
    """As MLflow loads it, with the code that was logged beside it on the path."""
    import mlflow.pytorch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = mlflow.pytorch.load_model(str(folder), weights_only=False, map_location="cpu")
    return module


def _call_factory(source: str, path: Path) -> Any:
    module_name, _, factory_name = source.partition(":")
    sys.path.insert(0, str(path))
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise InvalidSource(f"there is no {source} below {path}: {error}") from error
    return factory()


def _read_example(path: Path) -> dict[str, Any]:
    import torch

    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _export(
    module: "nn.Module", examples: Sequence[Example], dynamic: tuple[tuple[int, ...], ...]
) -> "ExportedProgram":
    import torch

    if not examples:
        raise InvalidSource("there is no example to trace it with; give one with --samples (or --example) FILE.npz")
    module = module.cpu().float().eval()
    calls = [_arguments(module, example) for example in examples]
    args, kwargs = calls[0]
    leaves = [*args, *kwargs.values()]
    shapes = [
        {axis: torch.export.Dim.AUTO for axis in (dynamic[i] if i < len(dynamic) else (0,)) if axis < leaf.ndim}
        for i, leaf in enumerate(leaves)
    ]
    given = tuple(shapes) if args else dict(zip(kwargs, shapes, strict=True))
    traced = _operators(module, args) if isinstance(module, torch.jit.ScriptModule) else module
    program = torch.export.export(traced, tuple(args), kwargs, dynamic_shapes=given)
    for call in calls:
        check_same(module, program, *call)
    return program


def _operators(module: "ScriptModule", args: list[Any]) -> "nn.Module":
    """TorchScript as a module of operators, which `torch.export` takes; by the converter that it names when it refuses."""
    from torch._export.converter import TS2EPConverter

    return TS2EPConverter(module, tuple(args)).convert().module()


def _arguments(module: "nn.Module", example: Example) -> tuple[list[Any], dict[str, Any]]:
    """By position, unless the example names what `forward` takes. TorchScript's converter knows positions only."""
    import torch

    if not isinstance(example, Mapping):
        return example, {}
    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward
        names = [argument.name for argument in forward.schema.arguments if argument.name in example]
        return [example[name] for name in (names if len(names) == len(example) else example)], {}
    if set(example) <= set(inspect.signature(module.forward).parameters):
        return [], dict(example)
    return list(example.values()), {}


def check_same(module: "nn.Module", program: "ExportedProgram", args: list[Any], kwargs: dict[str, Any]) -> None:
    """The program answers as the module does, at the example's size and at batches of one and three.

    Raises `ConversionFailed`.
    """
    import torch
    from torch.utils import _pytree as pytree

    traced = program.module()
    for rows in (None, 1, 3):
        few = [_rows(leaf, rows) for leaf in args]
        few_named = {name: _rows(leaf, rows) for name, leaf in kwargs.items()}
        with torch.inference_mode():
            expected = pytree.tree_leaves(module(*few, **few_named))
            try:
                found = pytree.tree_leaves(traced(*few, **few_named))
            except (AssertionError, RuntimeError) as error:
                if rows is None:
                    shapes = ", ".join(str(list(leaf.shape)) for leaf in (*few, *few_named.values()))
                    raise ConversionFailed(
                        f"the module takes inputs of {shapes}, the program traced from it does not: an axis became fixed "
                        f"({str(error).strip().partition(chr(10))[0]})"
                    ) from error
                continue  # its batch is fixed, which the signature will say
        for one, other in zip(found, expected, strict=True):
            if not torch.allclose(one, other, atol=CLOSE, rtol=CLOSE):
                apart = float((one - other).abs().max())
                raise ConversionFailed(
                    f"the traced program answers {apart:.3g} away from the module that it was traced from"
                )


def _rows(leaf: Any, rows: int | None) -> Any:
    return leaf if rows is None else leaf[[i % len(leaf) for i in range(rows)]]


if __name__ == "__main__":
    child.work(Job, trace)
