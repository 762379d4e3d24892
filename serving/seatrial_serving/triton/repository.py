"""A Triton model repository from bundles.

Two forms. For the `python` backend the whole bundle goes in, and our own engine code runs it, golden requests replayed
before the model is ready. For the `onnxruntime` backend, which NVIDIA's container has, the graph alone goes in, and Triton
runs it: nothing of ours is in the way, and nothing of ours checks it there.
Source: Triton's model repository and model configuration documentation.
"""

import shutil
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib import resources
from pathlib import Path

from seatrial.bundle import Bundle, Driver
from seatrial.errors import EngineUnavailable
from seatrial.files import directory_aside, put_in_place
from seatrial.tensors import DataType, TensorSpec

PROGRAM = "backend.py"
BUNDLE_FOLDER = "bundle"


class Backend(StrEnum):
    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"


class Hardware(StrEnum):
    CPU = "KIND_CPU"
    GPU = "KIND_GPU"


def write_repository(
    bundles: Sequence[Bundle],
    to: Path,
    *,
    backend: Backend,
    hardware: Hardware = Hardware.CPU,
    instances: int = 2,
    threads: int = 1,
) -> list[Path]:
    """Write or replace the models of `bundles` in the repository `to`; their directories. Others there are left alone.

    Each bundle is verified first. Raises `BundleCorrupt`, `EngineUnavailable` for a bundle that the backend cannot run,
    `DiskFull` with the repository as it was.
    """
    to.mkdir(parents=True, exist_ok=True)
    written = []
    for bundle in bundles:
        bundle.verify()
        config = configuration(bundle, backend=backend, hardware=hardware, instances=instances, threads=threads)
        place = to / bundle.manifest.model.name
        with directory_aside(to) as aside:
            (aside / "config.pbtxt").write_text(config)
            _fill(aside / _version(bundle), bundle, backend)
            if place.exists():
                shutil.rmtree(place)
            put_in_place(aside, place)
        written.append(place)
    return written


def _fill(version: Path, bundle: Bundle, backend: Backend) -> None:
    version.mkdir()
    if backend is Backend.PYTHON:
        program = resources.files("seatrial_serving.triton").joinpath(PROGRAM).read_text()
        (version / "model.py").write_text(program)
        shutil.copytree(bundle.path, version / BUNDLE_FOLDER)
    else:
        shutil.copyfile(bundle.file(bundle.manifest.graphs["main"]), version / "model.onnx")


def _version(bundle: Bundle) -> str:
    """Triton counts versions in whole numbers from 1 on."""
    version = bundle.manifest.model.version
    return version if version.isdigit() and int(version) > 0 else "1"


def configuration(bundle: Bundle, *, backend: Backend, hardware: Hardware, instances: int, threads: int) -> str:
    """The text of `config.pbtxt`."""
    manifest = bundle.manifest
    if backend is Backend.ONNXRUNTIME and manifest.engine.name != "onnxruntime":
        raise EngineUnavailable(
            f"{bundle.path} is for the engine '{manifest.engine.name}', which Triton's {backend} backend cannot run; "
            f"use the backend '{Backend.PYTHON}'"
        )
    if manifest.driver is not Driver.ONCE:
        raise EngineUnavailable(f"{bundle.path} keeps the states of sequences, which is not written for Triton")
    batch = manifest.signature.batch
    lines = [
        f'name: "{manifest.model.name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {batch.max if batch else 0}",
        *_tensors("input", manifest.signature.inputs, batched=batch is not None),
        *_tensors("output", manifest.signature.outputs, batched=batch is not None),
        f"instance_group [{{ count: {instances} kind: {hardware} }}]",
        *(["dynamic_batching { }"] if batch else []),
        f"version_policy {{ specific {{ versions: [{_version(bundle)}] }} }}",
        *_parameter("seatrial.digest", bundle.digest),
        *_parameter("seatrial.variant", manifest.variant.name),
        *_parameter("intra_op_thread_count", str(threads)),
        *_parameter("inter_op_thread_count", "1"),
    ]
    return "\n".join(lines) + "\n"


def _tensors(kind: str, specs: Sequence[TensorSpec], *, batched: bool) -> Iterator[str]:
    for spec in specs:
        shape = spec.shape[1:] if batched else spec.shape
        # Triton knows no tensor without dimensions: what is one number a row is stated as [1] and reshaped
        reshape = "" if shape else " reshape: { shape: [] }"
        dims = ", ".join(map(str, shape or (1,)))
        datatype = "TYPE_STRING" if spec.datatype is DataType.BYTES else f"TYPE_{spec.datatype}"
        yield f'{kind} [{{ name: "{spec.name}" data_type: {datatype} dims: [{dims}]{reshape} }}]'


def _parameter(key: str, value: str) -> Iterator[str]:
    yield f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
