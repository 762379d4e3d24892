"""The versions of what converts, compresses and runs."""

from importlib.metadata import version as installed
from importlib.util import find_spec

from seatrial import engines
from seatrial_export.candidate import TENSORRT

TOOLS = ("onnx", "onnxruntime", "onnxscript", "torch", "torch-pruning")
OPTIONAL_TOOLS = ("ai_edge_litert", "coremltools", "executorch", "litert_torch", "nncf", "openvino", "optuna", "tvm")
DISTRIBUTIONS = {"tvm": "apache-tvm"}
OF_MANY_NAMES = ("tensorflow", TENSORRT)
"""Engines that are distributed under one name or another."""


def tools() -> dict[str, str]:
    found = {name: installed(DISTRIBUTIONS.get(name, name)) for name in (*TOOLS, *filter(find_spec, OPTIONAL_TOOLS))}
    return found | {name: engines.installed(name) for name in OF_MANY_NAMES if find_spec(name)}
