"""Two models, in the form that each engine reads: the linear one, and one with enough to multiply that threads show."""

from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from seatrial.bundle import Bundle, Draft, EngineSpec, Hardware, ModelName, VariantName, write_bundle
from seatrial.engines import fingerprint, obstacle
from seatrial.tensors import DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export import child, package
from seatrial_export.child import Limits
from tests.serving.models import BIAS, SIGNATURE, WEIGHTS, LinearBundle, linear_onnx, save
from tests.tools import absent

LIMITS = Limits(time_s=240, memory_bytes=4 * 2**30, threads=1)
OF_TORCH = ("torch-export", "aotinductor", "torchscript", "executorch", "tvm", "litert", "tensorflow")
NOT_IN_DEV = ("coreml", "executorch", "litert", "onnxruntime-web", "tensorflow", "tensorrt", "tvm")
SIZE, LAYERS = 512, 4
HEAVY = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, SIZE)),),
    outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, SIZE)),),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=SIZE),),
)


def linear_bundle(engine: str, folder: Path, *, beside: Mapping[str, Path] | None = None) -> Bundle:
    """Skips the test where `engine` cannot run and is not among what developing takes.

    `beside` are files that it wants too.
    """
    model: Path | None = None
    file = ""
    hardware: Hardware | None = None
    if why := obstacle(EngineSpec(name=engine)):
        (pytest.skip if engine in NOT_IN_DEV else absent)(why)
    if why := package.obstacle(engine):
        pytest.skip(why)
    if engine in OF_TORCH:
        model = packaged(linear_program(folder / "linear.pt2"), folder, engine=engine, signature=SIGNATURE)
        file, beside = belonging(model, folder / f"package-{engine}")
        hardware = fingerprint(engine) if engine in ("aotinductor", "tvm") else None
    elif engine == "tensorrt":
        model, hardware = plan(linear_onnx(folder / "linear.onnx"), folder), fingerprint(engine)
    bundle = LinearBundle(
        engine=EngineSpec(name=engine), model=model, file=file, hardware=hardware, beside=beside or {}
    )
    return bundle.write(folder / "bundles")


def linear_program(path: Path) -> Path:
    """As torch saves it: with its example inputs."""
    import torch

    from seatrial_models.program import to_program

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.from_numpy(WEIGHTS.copy()))
            self.bias = torch.nn.Parameter(torch.from_numpy(BIAS.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weights + self.bias

    torch.export.save(to_program(Linear().eval(), {"x": torch.ones(3, 4)}, SIGNATURE), path)
    return path


def heavy_program(path: Path) -> Path:
    """Its weights are parameters of their own: a slice of one is no constant to XNNPACK, which then computes nothing of it."""
    import torch

    from seatrial_models.program import to_program

    class Heavy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.eye(SIZE) * 2**layer for layer in range(LAYERS))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for weights in self.weights:
                x = x @ weights
            return x

    torch.export.save(to_program(Heavy().eval(), {"x": torch.ones(3, SIZE)}, HEAVY), path)
    return path


def heavy_bundle(engine: str, folder: Path) -> Bundle:
    if why := obstacle(EngineSpec(name=engine)):
        (pytest.skip if engine in NOT_IN_DEV else absent)(why)
    folder.mkdir(exist_ok=True)
    model = (
        packaged(heavy_program(folder / "heavy.pt2"), folder, engine=engine, signature=HEAVY)
        if engine in OF_TORCH
        else heavy_onnx(folder / "heavy.onnx")
    )
    return bare_bundle(model, folder / "bundles", engine=engine, signature=HEAVY)


def bare_bundle(model: Path, store: Path, *, engine: str, signature: Signature, beneath: Path | None = None) -> Bundle:
    """Without golden requests: it is not proved, only asked. What belongs to `model` lies `beneath`, or is `model` alone."""
    file, files = belonging(model, beneath or model.parent)
    draft = Draft(
        model=ModelName(name="bare", version="1"),
        variant=VariantName(name="fp32", target="any", precision="fp32"),
        signature=signature,
        engine=EngineSpec(name=engine),
        graphs={"main": file},
        files=files,
        golden=(),
        source_bounds={},
        rerun_bounds={},
    )
    return write_bundle(draft, store)


def packaged(program: Path, folder: Path, *, engine: str, signature: Signature) -> Path:
    place = folder / f"package-{engine}"
    job = package.Job(program=str(program), engine=engine, signature=signature)
    if engine in ("aotinductor", "executorch", "litert", "tensorflow", "tvm"):
        made = child.run("seatrial_export.package", job, folder=place, answer=package.Packaged, limits=LIMITS)
    else:  # takes no child of its own, and another import of torch is most of what one takes
        place.mkdir()
        with chdir(place):
            made = package.package(job)
    return place / made.model


def belonging(model: Path, place: Path) -> tuple[str, Mapping[str, Path]]:
    """What a bundle calls a model that was packaged in `place`, and all files that belong to it, by their names there."""
    top = place / model.relative_to(place).parts[0]
    files = [path for path in (top, *top.rglob("*")) if path.is_file()]
    return model.relative_to(place).as_posix(), {path.relative_to(place).as_posix(): path for path in files}


def heavy_onnx(path: Path) -> Path:
    names = ["x", *(f"h{i}" for i in range(1, LAYERS)), "y"]
    return save(
        path,
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIZE])],
        constants={f"w{i}": np.eye(SIZE, dtype=np.float32) for i in range(LAYERS)},
    )


def plan(onnx: Path, folder: Path) -> Path:
    """A TensorRT plan of `onnx`, for the batches of the linear model's signature."""
    import tensorrt as trt

    [axis] = SIGNATURE.dynamic_axes
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(onnx.read_bytes())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (axis.min, 4), (axis.max, 4), (axis.max, 4))
    config.add_optimization_profile(profile)
    path = folder / "model.plan"
    path.write_bytes(builder.build_serialized_network(network, config))
    return path
