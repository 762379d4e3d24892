"""The child that has TensorRT build a plan of an ONNX file: `python -P -m seatrial_export.tensorrt job.json`.

Networks are strongly typed, as TensorRT 10 can have them and 11 has no others: each layer computes in the type that the file
gives it, so what is in FP16, INT8 or FP8 was decided before, in the file. A plan holds for the GPU and the version of the library
that built it alone, and for the sizes of one optimization profile, those of the signature.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from seatrial.bundle.manifest import Hardware
from seatrial.cuda import Device, first_device
from seatrial.engines import fingerprint
from seatrial.errors import ConversionFailed
from seatrial.files import write_whole
from seatrial.tensors import DataType, Signature
from seatrial_export import child
from seatrial_export.candidate import TENSORRT, Precision

PLAN, LAYERS, TIMINGS = "model.plan", "layers.json", "timings.cache"
FIRST_WITH_FP8 = (8, 9)
"""The compute capability of Ada; Hopper has 9.0."""

Shape: TypeAlias = tuple[int, ...]

TYPES: Mapping[str, str] = {
    "FP8": r"FP8|E4M3",
    "INT8": r"Int8",
    "BF16": r"BF16|BFloat16",
    "FP16": r"FP16|Half",
    "FP32": r"FP32|Float",
    "integers": r"Int|Bool",
}
"""What an inspected layer's format says for each type, in the order in which they are to be looked for."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`hardware` is what the plan must be bound to. `usual` is the size of each dynamic axis that kernels are chosen for.

    `timings` is a file with how long kernels took in earlier builds, empty at first, where those of this one are added.
    """

    model: str
    precision: Precision
    signature: Signature
    usual: dict[str, int]
    hardware: Hardware
    memory_bytes: int
    timings: str


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """`PLAN` and `LAYERS`, what TensorRT says of each layer, are in the child's folder.

    `layers` is how many compute in each type; a layer here is what TensorRT made of one or many nodes.
    """

    layers: dict[str, int]


def plan(job: Job) -> Planned:
    here = fingerprint(TENSORRT)
    if here != job.hardware:
        raise ConversionFailed(
            f"a plan for '{job.hardware.device}' by {job.hardware.library} was asked for, and here are '{here.device}' and "
            f"{here.library}"
        )
    return build(job, first_device())


def build(job: Job, device: Device) -> Planned:
    """Raises `ConversionFailed` with what the parser says first, or where the builder finds no way."""
    if job.precision is Precision.FP8 and device.capability < FIRST_WITH_FP8:
        has, takes = (".".join(map(str, each)) for each in (device.capability, FIRST_WITH_FP8))
        raise ConversionFailed(f"FP8 takes a GPU of compute capability {takes}, and {device.name} has {has}")
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.INFO)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(Path(job.model).absolute())):
        raise ConversionFailed(f"TensorRT's parser refuses the graph: {_first_error(parser)}")
    _check_tensors(trt, network, job.signature)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it has ten bits where FP32 was promised
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else a plan does not say what its layers compute in
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(job.memory_bytes, device.memory_bytes))
    _set_profile(builder, config, job)
    cache = _use_timings(config, Path(job.timings))
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise ConversionFailed("TensorRT's builder found no way to build it; its log says why")
    Path(PLAN).write_bytes(made)
    write_whole(Path(job.timings), bytes(cache.serialize()))
    layers = _inspect(trt, logger, made)
    Path(LAYERS).write_text(json.dumps(layers, indent=1))
    return Planned(layers=types(layers))


def profile(signature: Signature, usual: Mapping[str, int]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """For each input with a dynamic axis its smallest, its usual and its largest shape."""
    found = {}
    for spec in signature.inputs:
        axes = {axis.at[spec.name]: axis for axis in signature.dynamic_axes if spec.name in axis.at}
        if axes:
            shapes = (
                {index: axis.min for index, axis in axes.items()},
                {index: usual[axis.name] for index, axis in axes.items()},
                {index: axis.max for index, axis in axes.items()},
            )
            low, middle, high = (tuple(at.get(i, size) for i, size in enumerate(spec.shape)) for at in shapes)
            found[spec.name] = (low, middle, high)
    return found


def types(layers: list[Any]) -> dict[str, int]:
    """How many layers compute in each type: that of the first thing that each reads, or writes if it reads nothing."""
    counted = Counter(map(_type, layers))
    return {name: counted[name] for name in (*TYPES, "unknown") if counted[name]}


def _type(layer: Any) -> str:
    if isinstance(layer, dict):
        tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
        for tensor in tensors[:1]:  # 11 tells the type apart from the format, 10 does not
            said = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format", ""))
            return next((name for name, words in TYPES.items() if re.search(words, said, re.IGNORECASE)), "unknown")
    return "unknown"


def _first_error(parser: Any) -> str:
    if not parser.num_errors:
        return "it does not say why"
    error = parser.get_error(0)
    return f"{error.desc()} (node '{error.node_name()}')" if error.node_name() else str(error.desc())


def _check_tensors(trt: Any, network: Any, signature: Signature) -> None:
    """An engine copies bytes: a tensor of another type would be read as if it were ours."""
    built = [network.get_input(i) for i in range(network.num_inputs)]
    built += [network.get_output(i) for i in range(network.num_outputs)]
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    if lost := specs.keys() - {tensor.name for tensor in built}:
        raise ConversionFailed(f"TensorRT's network has no tensor {', '.join(sorted(lost))}")
    for tensor in built:
        wanted, found = specs[tensor.name].datatype, DataType.of(np.dtype(trt.nptype(tensor.dtype)))
        if found is not wanted:
            raise ConversionFailed(f"TensorRT has '{tensor.name}' as {found}, and the model as {wanted}")


def _set_profile(builder: Any, config: Any, job: Job) -> None:
    shapes = profile(job.signature, job.usual)
    if not shapes:
        return
    made = builder.create_optimization_profile()
    for name, (low, usual, high) in shapes.items():
        made.set_shape(name, low, usual, high)
    if config.add_optimization_profile(made) < 0:
        raise ConversionFailed(f"TensorRT refuses the sizes {shapes}; its log says why")


def _use_timings(config: Any, kept: Path) -> Any:
    """Those that were made by another library or for another GPU are not taken."""
    cache = config.create_timing_cache(kept.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        sys.stdout.write(f"{kept} is not for this GPU and library: all kernels are timed anew\n")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _inspect(trt: Any, logger: Any, made: Any) -> list[Any]:
    engine = trt.Runtime(logger).deserialize_cuda_engine(made)
    if engine is None:
        raise ConversionFailed("TensorRT cannot load the plan that it built; its log says why")
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers: list[Any] = json.loads(told)["Layers"]
    for layer in layers:
        name = layer.get("Name", "") if isinstance(layer, dict) else layer
        sys.stdout.write(f"{_type(layer)}: {name}\n")
    return layers


if __name__ == "__main__":
    child.work(Job, plan)
