"""The versions of what converts, compresses and runs."""

from importlib.metadata import version as installed
from importlib.util import find_spec

TOOLS = ("onnx", "onnxruntime", "onnxscript", "torch", "torch-pruning")
OPTIONAL_TOOLS = ("executorch", "nncf", "openvino", "optuna")


def tools() -> dict[str, str]:
    return {name: installed(name) for name in (*TOOLS, *filter(find_spec, OPTIONAL_TOOLS))}
