"""TensorFlow on the CPU: a SavedModel, in it the program at a few fixed sizes, each compiled by XLA when the model is opened.

TensorFlow counts its threads once, for the whole process: the first engine decides how many there are, and whoever opens beside
it or after it has the same. A graph of TensorFlow may read files, write them, and call Python; one that export did not write
is refused before TensorFlow sees it.
"""

import gc
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Or it tells whoever starts a server of compilations, and of kernels of oneDNN, which what XLA compiles never asks.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import Array, Signature
from seatrial_serving.engines.fixed_sizes import Ask, FixedSizes, Shape
from seatrial_serving.engines.signature import check_datatypes, check_told

SERVING_DEFAULT = "serving_default"
REFUSALS = (tf.errors.OpError, TypeError, ValueError)
UNREADABLE = (*REFUSALS, AttributeError, IndexError, KeyError, OSError, RuntimeError)
"""What its loader raises over a SavedModel that is not whole."""
COMPUTING = frozenset(
    (
        "Const",
        "Identity",
        "NoOp",
        "Placeholder",
        "ReadVariableOp",
        "StatefulPartitionedCall",
        "VarHandleOp",
        "XlaCallModule",
    )
)
"""The operators of what export writes, but for the two functions that keep weights and bring them back."""


class TensorFlow:
    on_cpu = False
    """It does compute on these cores, but another engine in this process could have no more threads than this one."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that TensorFlow does not take."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, "TensorFlow")
        entry = bundle.file(bundle.manifest.graphs[MAIN])
        _check_files(entry.parent, bundle)
        _check_operators(entry)
        _count_threads(threads)
        self._programs = _load(entry.parent, self.signature)

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:  # noqa: ARG002 - it has one
        try:
            return self._programs.answer(inputs)
        except REFUSALS as error:
            raise EngineFailed(f"TensorFlow refused the batch: {error}") from error

    def close(self) -> None:
        """Waits for Python's collector: what TensorFlow loaded refers to itself, and stays until it is collected."""
        self._programs.close()
        gc.collect()


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> TensorFlow:  # noqa: ARG001 - XLA decides how to wait
    return TensorFlow(bundle, threads)


_counting = threading.Lock()
_counted: list[int] = []


def _count_threads(threads: int) -> None:
    with _counting:
        if not _counted:
            tf.config.set_visible_devices([], "GPU")
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
            _counted.append(threads)


def _check_files(folder: Path, bundle: Bundle) -> None:
    """TensorFlow looks for more files than there need be, and nobody compared a digest of theirs."""
    listed = {bundle.file(name) for name in bundle.manifest.files}
    if strange := sorted(str(path) for path in folder.rglob("*") if not path.is_dir() and path not in listed):
        raise BundleCorrupt(f"{strange[0]} lies in a SavedModel and is not in the bundle's manifest")


def _check_operators(entry: Path) -> None:
    try:
        [graph] = SavedModel.FromString(entry.read_bytes()).meta_graphs
    except (DecodeError, ValueError) as error:
        raise BundleCorrupt(f"TensorFlow cannot load {entry}: {str(error) or 'it is no SavedModel'}") from error
    keeping = _functions_that_keep(graph)
    found = {node.op for node in graph.graph_def.node}
    for function in graph.graph_def.library.function:
        if function.signature.name not in keeping:
            found |= {node.op for node in function.node_def}
    if strange := sorted(found - COMPUTING):
        raise BundleCorrupt(f"{entry} has the operators {', '.join(strange)}, which export writes into no SavedModel")


def _functions_that_keep(graph: MetaGraphDef) -> set[str]:
    """The names of those that write and read the files of weights, unless whoever loads the graph might call them too."""
    nodes = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    keeping = {node.attr["f"].func.name for node in graph.graph_def.node if node.name in nodes}
    others = (each for each in graph.graph_def.library.function if each.signature.name not in keeping)
    values = (value for function in others for node in function.node_def for value in node.attr.values())
    called = {function.name for value in values for function in (value.func, *value.list.func)}
    return keeping - called - set(graph.object_graph_def.concrete_functions)


def _load(folder: Path, signature: Signature) -> FixedSizes:
    """With every program compiled: a first call takes as long as a thousand others."""
    programs = FixedSizes(signature)
    try:
        loaded = tf.saved_model.load(str(folder))
        for name, function in loaded.signatures.items():
            if name == SERVING_DEFAULT:  # the largest again
                continue
            told = _told(function.structured_input_signature[1])
            check_told(folder, "TensorFlow", told, signature.inputs)
            check_told(folder, "TensorFlow", _told(function.structured_outputs), signature.outputs)
            ask = _asking(function, loaded)
            ask(**{name: np.zeros(shape, datatype) for name, (datatype, shape) in told.items()})
            programs.add({name: shape for name, (_, shape) in told.items()}, ask)
    except UNREADABLE as error:
        raise BundleCorrupt(f"TensorFlow cannot load {folder}: {error}") from error
    if not programs:
        raise BundleCorrupt(f"TensorFlow found no signature in {folder}")
    return programs


def _asking(function: Any, loaded: Any) -> Ask:
    """Holds on to `loaded`: a function of TensorFlow's does not keep the variables that it reads."""

    def ask(**given: Array) -> Mapping[str, Array]:
        assert loaded is not None
        tensors = {name: tf.constant(array) for name, array in given.items()}  # of arrays it would change the type
        return {name: answer.numpy() for name, answer in function(**tensors).items()}

    return ask


def _told(tensors: Mapping[str, Any]) -> dict[str, tuple[str, Shape]]:
    return {name: (each.dtype.name, tuple(each.shape.as_list())) for name, each in tensors.items()}
