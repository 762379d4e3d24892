"""A folder that any static web server can offer: the ONNX file, ONNX Runtime Web, and a module that asks the one by the other.

The runtime comes out of the npm package `onnxruntime-web`, so that what was verified is what a page loads. Nothing is fetched
from anybody's network, and nothing is built.
"""

from collections.abc import Mapping
from pathlib import Path

from seatrial.settings import Settings

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""Of the package's forms that which needs no WebGPU, with its JavaScript in one file."""
OURS = ("index.html", "model.mjs", "proof.mjs")
KNOWN_VERSION = "1.30.0"


def obstacle_to_building(settings: Settings) -> str | None:
    """Why no such folder can be built here, in one clause."""
    place = settings.web_runtime
    missing = [name for name in RUNTIME if not (place / "dist" / name).is_file()]
    if missing:
        return (
            f"{place} has no {' and no '.join(missing)}; "
            f"npm install --prefix {settings.home} onnxruntime-web@{KNOWN_VERSION} brings it"
        )
    return None


def beside(settings: Settings) -> Mapping[str, Path]:
    """What lies beside the model, by its names there."""
    ours = {name: Path(__file__).parent / name for name in OURS}
    return ours | {name: settings.web_runtime / "dist" / name for name in RUNTIME}
