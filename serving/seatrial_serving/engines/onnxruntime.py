"""ONNX Runtime, with the execution provider that the bundle names: `cpu`, `cuda` or `tensorrt`.

Threads are always explicit: left to itself, it takes the cores of the host, whatever the cgroup allows. So is where the
graph runs: a session that fell back to the CPU by itself is refused. Strings are handed over as `str`: from `bytes` it
would silently make their repr.

An option of the manifest with a dot in its name is an entry of the session's configuration; one without is the provider's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from seatrial.bundle import MAIN, Bundle
from seatrial.bundle.leftover import built_for
from seatrial.cuda import first_device
from seatrial.engines import PROVIDER, PROVIDERS
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable, SeatrialError, WrongInput
from seatrial.tensors import BATCH, Array, DataType, DynamicAxis, Signature, TensorSpec

REFUSALS = (
    *(state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
    *(state.NoSuchFile, state.NotImplemented, state.RuntimeException),
)
AT_A_NODE = "Non-zero status code returned while running "
"""How it begins to tell that an operator refused."""
DATATYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.BYTES,
}
UNVERIFIED_MAX = 256
"""How large a dynamic axis of a bare ONNX file may become: nobody verified any size."""

LARGE_BYTES = 16 * 2**20
"""After a batch with inputs of more than this, and after the one that follows it, when its outputs are gone too, the arena
gives back what it grew by: a rare one must not stay in memory."""
GPU_SHARE = 0.4
"""The part of a GPU's memory that one session's arena may take, unless `gpu_mem_limit` says so: two engines share it."""
CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "0",  # what was verified as FP32 is computed in FP32
}

Options = Mapping[str, str | int | float | bool]


class OnnxRuntime:
    def __init__(
        self,
        graphs: Mapping[str, Path],
        *,
        signature: Signature,
        options: Options,
        threads: int,
        spinning: bool = False,
        cache: Path | None = None,
    ) -> None:
        """`cache` is a folder for what the provider `tensorrt` builds at the first start. Raises `EngineUnavailable`."""
        self.signature = signature
        self.graphs = {MAIN: signature}
        self.on_cpu = options.get(PROVIDER, "cpu") == "cpu"
        providers = [] if self.on_cpu else _gpu_providers(options, signature, cache)
        self._sessions = {
            name: _open(path, options=options, threads=threads, spinning=spinning, providers=providers)
            for name, path in graphs.items()
        }
        self._outputs = [spec.name for spec in signature.outputs]
        self._text = frozenset(
            spec.name for spec in (*signature.inputs, *signature.outputs) if spec.datatype is DataType.BYTES
        )
        self._grown = False
        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry(
            "memory.enable_memory_arena_shrinkage", "cpu:0" if self.on_cpu else "gpu:0"
        )

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        given = {name: _as_text(array, name) for name, array in inputs.items()} if self._text else inputs
        large = sum([array.nbytes for array in given.values()]) > LARGE_BYTES
        options = self._shrinking if large or self._grown else None
        self._grown = large
        run = self._run_on_cpu if self.on_cpu else self._run_on_gpu
        try:
            outputs = run(self._sessions[graph], given, options)
        except REFUSALS as error:
            raise _refusal(error) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        self._sessions.clear()

    def _run_on_cpu(self, session: Any, given: Mapping[str, Array], options: Any) -> Iterable[Array]:
        outputs: Iterable[Array] = session.run(self._outputs, given, options)
        return outputs

    def _run_on_gpu(self, session: Any, given: Mapping[str, Array], options: Any) -> Iterable[Array]:
        """Inputs go to device memory before the run, outputs stay in it until the run is over: one copy each way."""
        binding = session.io_binding()
        for name, array in given.items():
            if name in self._text:
                binding.bind_cpu_input(name, array)
            else:
                on_device = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
                binding.bind_ortvalue_input(name, on_device)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name in self._text else "cuda", 0)
        session.run_with_iobinding(binding, options)
        outputs: Iterable[Array] = binding.copy_outputs_to_cpu()
        return outputs


def _refusal(error: Exception) -> SeatrialError:
    """Whose fault it is: an argument that a node finds invalid is a value that was sent, such as an index beyond its table.
    Names, datatypes and ranks were checked against the signature, so there the bundle is wrong."""
    _, at_a_node, reason = str(error).partition(AT_A_NODE)
    if isinstance(error, state.InvalidArgument) and at_a_node:
        return WrongInput(
            f"the model refuses a value of the request: {reason.partition(' Status Message: ')[2] or reason}"
        )
    return EngineFailed(f"ONNX Runtime refused the batch: {error}")


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> OnnxRuntime:
    manifest = bundle.manifest
    return OnnxRuntime(
        {name: bundle.file(file) for name, file in manifest.graphs.items()},
        signature=manifest.signature,
        options=manifest.engine.options,
        threads=threads,
        spinning=spinning,
        cache=built_for(bundle.path),
    )


def read_signature(path: Path) -> Signature:
    """The signature that a bare ONNX file declares. Its open first axes are taken for the batch, unnamed others for
    axes of their own."""
    session = _open(path, options={}, threads=1)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    axes: dict[str, dict[str, int]] = {}
    for value in (*inputs, *outputs):
        for index, size in enumerate(value.shape):
            if not isinstance(size, int):
                name = BATCH if index == 0 else size or f"{value.name}.{index}"
                axes.setdefault(name, {})[value.name] = index
    return Signature(
        inputs=tuple(map(_spec, inputs)),
        outputs=tuple(map(_spec, outputs)),
        dynamic_axes=tuple(DynamicAxis(name=name, at=at, max=UNVERIFIED_MAX) for name, at in axes.items()),
    )


def read_tensors(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What goes into the graph of `path` and comes out, with every open axis on its own."""
    session = _open(path, options={}, threads=1)
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def _spec(value: ort.NodeArg) -> TensorSpec:
    if value.type not in DATATYPES:
        raise EngineUnavailable(f"tensor '{value.name}' is {value.type}, which has no place in the protocol")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=value.name, datatype=DATATYPES[value.type], shape=shape)


def _gpu_providers(options: Options, signature: Signature, cache: Path | None) -> list[tuple[str, dict[str, str]]]:
    """What is asked to run each node, in this order, with its options; the CPU takes what none of them can."""
    device = first_device()
    given = {name: str(value) for name, value in options.items() if "." not in name and name != PROVIDER}
    limit = {"gpu_mem_limit": str(int(GPU_SHARE * device.memory_bytes))}
    cuda = CUDA_OPTIONS | limit | {name: value for name, value in given.items() if not name.startswith("trt_")}
    if options[PROVIDER] == "cuda":
        return [(PROVIDERS["cuda"], cuda)]
    tensorrt = _profile(signature) | {name: value for name, value in given.items() if name.startswith("trt_")}
    if cache is not None:  # building takes minutes, and what is built is bound to the device and the library
        place = cache / f"{device.fingerprint.replace('/', '-')}-onnxruntime-{ort.__version__}"
        tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(place)}
    return [(PROVIDERS["tensorrt"], tensorrt), (PROVIDERS["cuda"], cuda)]


def _profile(signature: Signature) -> dict[str, str]:
    """The sizes that were verified, said beforehand: TensorRT would build anew for each one that it meets."""
    if not signature.dynamic_axes:
        return {}

    def shapes(end: str) -> str:
        sizes = {(name, i): getattr(axis, end) for axis in signature.dynamic_axes for name, i in axis.at.items()}
        return ",".join(
            f"{spec.name}:{'x'.join(str(sizes.get((spec.name, i), size)) for i, size in enumerate(spec.shape))}"
            for spec in signature.inputs
        )

    return {
        "trt_profile_min_shapes": shapes("min"),
        "trt_profile_opt_shapes": shapes("max"),
        "trt_profile_max_shapes": shapes("max"),
    }


def _open(
    path: Path,
    *,
    options: Options,
    threads: int,
    spinning: bool = False,
    providers: list[tuple[str, dict[str, str]]] | None = None,
) -> ort.InferenceSession:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = 3
    session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session_options.add_session_config_entry("session.force_spinning_stop", "1")  # at the end of each run
    for name, value in options.items():
        if "." in name:
            session_options.add_session_config_entry(name, str(value))
    asked = [*(providers or []), (PROVIDERS["cpu"], {})]
    try:
        session = ort.InferenceSession(path, session_options, providers=asked, enable_fallback=0)
    except REFUSALS as error:
        raise BundleCorrupt(f"ONNX Runtime {ort.__version__} cannot load {path}: {error}") from error
    if (wanted := asked[0][0]) not in (found := session.get_providers()):
        raise EngineUnavailable(
            f"wants the {wanted}, and ONNX Runtime {ort.__version__} could not load it and took {', '.join(found)}; "
            "what its libraries miss is in the log: most often CUDA or cuDNN of the versions that it was built with"
        )
    return session


def _as_text(array: Array, name: str) -> Array:
    if array.dtype != object:
        return array
    texts = np.empty(array.shape, dtype=object)
    try:
        texts.ravel()[:] = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise WrongInput(f"input '{name}' goes into a text tensor and must be UTF-8: {error}") from error
    return texts
