"""The engines that there are, and what keeps this machine from running one. Loads none of them.

What an engine is named in a manifest, what brings it, and which hardware its files are bound to: `doctor` shows it, the
server asks it before it opens a bundle, export before it builds one.
"""

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from seatrial.bundle.manifest import EngineSpec, Hardware
from seatrial.cuda import NoDevice, first_device
from seatrial.machine import this_machine

PROVIDER = "provider"
"""The option of the engine `onnxruntime` that says which execution provider runs the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`package` is the Python package that it runs in, `extra` the extra that brings it; or it runs in one of `programs`.
    `imports` is what takes long to import of it, where that is another package.

    Files for an engine that is `elsewhere`, on somebody's telephone or in their browser, can be built where it cannot run;
    one that needs a `system` runs on no other.
    """

    package: str = ""
    extra: str = ""
    gpu: bool = False
    imports: str = ""
    programs: tuple[str, ...] = ()
    system: str = ""
    elsewhere: bool = False

    @property
    def library(self) -> str:
        return self.imports or self.package


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ENGINES: Mapping[str, Kind] = {
    "onnxruntime": Kind(package="onnxruntime", extra="serving"),
    "openvino": Kind(package="openvino", extra="openvino"),
    "torch-export": Kind(package="torch", extra="torch"),
    "aotinductor": Kind(package="torch", extra="torch"),
    "torchscript": Kind(package="torch", extra="torch"),
    "executorch": Kind(package="executorch", extra="executorch", imports="torch"),
    "tensorrt": Kind(package="tensorrt", extra="tensorrt", gpu=True),
    "onnxruntime-web": Kind(programs=BROWSERS, elsewhere=True),
    "tvm": Kind(package="tvm", extra="tvm"),
    "litert": Kind(package="ai_edge_litert", extra="litert"),
    "tensorflow": Kind(package="tensorflow", extra="tensorflow"),
    "coreml": Kind(package="coremltools", extra="coreml", system="Darwin", elsewhere=True),
}

SYSTEMS: Mapping[str, str] = {"Darwin": "macOS"}
"""What a person calls each that Python calls otherwise."""

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's names for its execution providers."""


def title(engine: EngineSpec) -> str:
    provider = engine.options.get(PROVIDER, "cpu")
    return engine.name if provider == "cpu" else f"{engine.name} with the provider '{provider}'"


def obstacle(engine: EngineSpec, hardware: Hardware | None = None) -> str | None:
    """Why this machine or installation cannot run `engine` on files bound to `hardware`, in one clause; None if it can."""
    kind = ENGINES.get(engine.name)
    if kind is None:
        return f"there is no engine of that name; there are {', '.join(ENGINES)}"
    provider = str(engine.options.get(PROVIDER, "cpu"))
    if provider not in PROVIDERS:
        return f"there is no such provider; there are {', '.join(PROVIDERS)}"
    if kind.gpu or provider != "cpu":
        try:
            first_device()
        except NoDevice as why:
            return str(why)
    return _not_installed(kind) or _elsewhere(kind) or _missing_provider(provider) or _misfit(engine, hardware)


def obstacle_to_building(engine: EngineSpec) -> str | None:
    """Why no files for `engine` can be built here, in one clause. Where that is possible, it may still be unable to run them."""
    kind = ENGINES.get(engine.name)
    return _not_installed(kind) if kind and kind.elsewhere else obstacle(engine)


def program(engine: str) -> str | None:
    """The path of the first program here that `engine` runs in."""
    return next((found for name in ENGINES[engine].programs if (found := shutil.which(name))), None)


def fingerprint(engine: str) -> Hardware:
    """What machine code that `engine` builds here would be bound to. Raises `NoDevice` for a GPU's where there is none."""
    kind = ENGINES[engine]
    if kind.gpu:
        return Hardware(device=first_device().fingerprint, library=f"{kind.package} {installed(engine)}")
    features = this_machine().features
    release = ".".join(installed(engine).split(".")[:2])
    return Hardware(device=" ".join((platform.machine(), *features)), library=f"{kind.package} {release}")


def installed(engine: str) -> str:
    """The version of what runs it, under whichever name it was distributed, or where the program is."""
    from importlib.metadata import PackageNotFoundError, version

    if found := program(engine):
        return found
    package = ENGINES[engine].package
    for name in (package, *(f"{package}-{kind}" for kind in ("cpu", "gpu", "cu13", "cu12")), f"apache-{package}"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def _not_installed(kind: Kind) -> str | None:
    if kind.package and find_spec(kind.package) is None:
        return f"the Python package '{kind.package}' is not installed; pip install 'seatrial[{kind.extra}]' brings it"
    return None


def _elsewhere(kind: Kind) -> str | None:
    if kind.system and platform.system() != kind.system:
        return f"it runs on {SYSTEMS[kind.system]} alone, and this is {platform.system()}"
    if kind.programs and not any(map(shutil.which, kind.programs)):
        return f"it runs in a browser, and there is none of {', '.join(kind.programs)} on the PATH"
    return None


def _missing_provider(provider: str) -> str | None:
    """Asked of the files: importing ONNX Runtime to be told the same takes a second."""
    spec = find_spec("onnxruntime")
    if provider == "cpu" or spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if library.exists():
        return None
    return f"the installed onnxruntime has no {PROVIDERS[provider]}; pip install 'onnxruntime-gpu' in its place has it"


def _misfit(engine: EngineSpec, hardware: Hardware | None) -> str | None:
    """Of a CPU every feature that the files were built with must be here; it may have more."""
    if hardware is None:
        return None
    here = fingerprint(engine.name)
    lacking = [word for word in hardware.device.split() if word not in here.device.split()]
    if lacking:
        return f"its files were built for '{hardware.device}', and this machine is '{here.device}'"
    if hardware.library != here.library:
        return f"its files were built by {hardware.library}, and {here.library} is installed here"
    return None
