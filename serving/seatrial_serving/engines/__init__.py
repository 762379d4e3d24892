"""What executes a variant, behind one contract; the only part of serving that export uses.

What is measured here is what serves: export times and scores variants through the same engines, opened the same way.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol

from seatrial import engines
from seatrial.bundle import Bundle, Driver
from seatrial.errors import EngineUnavailable
from seatrial.tensors import Array, Signature

TEXT, TOKENS = "text", "tokens"
"""Graphs of a bundle that embeds: what each takes, texts or token ids."""
EMBEDDING, TOKEN_COUNT = "embedding", "token_count"
"""What both answer."""


class Engine(Protocol):
    """Runs whole batches. One instance is used by one thread at a time."""

    @property
    def signature(self) -> Signature:
        """That of the graph `main`."""

    @property
    def graphs(self) -> Mapping[str, Signature]:
        """Every graph that may be asked, `main` among them."""

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on this process's cores, so that more threads may be worth another of its kind."""

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        """Outputs by name, in the order of the graph's signature; the arrays are the caller's to keep.

        `inputs` were checked against that signature. Raises `WrongInput` for content that the graph cannot take (text
        that is not UTF-8, an index beyond its table), `EngineFailed` for everything that the engine itself refuses.
        """

    def close(self) -> None: ...


def open_engine(bundle: Bundle, *, threads: int, spinning: bool = False) -> Engine:
    """Load the graphs of `bundle`, which is trusted to be what its digest says. Nothing is run yet.

    `spinning` threads wait for each other without sleeping: sooner on idle cores, ruinous beside a busy neighbour.
    Raises `EngineUnavailable` where this machine or installation has not got what the bundle needs.
    """
    manifest = bundle.manifest
    if manifest.driver not in (Driver.ONCE, Driver.STATEFUL):
        raise EngineUnavailable(
            f"{bundle.path} wants the driver '{manifest.driver}'; this version runs 'once' and 'stateful'"
        )
    try:
        engine = _open(bundle, threads, spinning)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{bundle.path} {error}. {_way_out(bundle)}") from error
    if manifest.driver is Driver.STATEFUL:
        from seatrial_serving.engines.stateful import Stateful

        return Stateful(engine)
    if not manifest.preprocessing and not manifest.postprocessing:
        return engine
    from seatrial_serving.engines.processing import Embedding

    return Embedding(engine, bundle)


def _open(bundle: Bundle, threads: int, spinning: bool) -> Engine:
    """Raises `EngineUnavailable` with what the bundle wants and what keeps it from that."""
    wanted = bundle.manifest.engine
    if why := engines.obstacle(wanted, bundle.manifest.hardware):
        raise EngineUnavailable(f"wants the engine {engines.title(wanted)}: {why}")
    return OPENERS[wanted.name](bundle, threads, spinning)


def _way_out(bundle: Bundle) -> str:
    """What to do instead: the first sibling in the evidence that would run here."""
    version = f"{bundle.manifest.model.name}/{bundle.manifest.model.version}"
    evidence = bundle.evidence()
    for sibling in evidence.siblings if evidence else ():
        if engines.obstacle(sibling.engine, sibling.hardware) is None:
            return (
                f"The same version has the variant '{sibling.variant}' for {sibling.target}, which runs here: "
                f"seatrial serve {version} --target {sibling.target}"
            )
    return f"No variant that runs here is known; build one with: seatrial export {version} --target onnx-cpu"


def _opener(module: str, function: str = "open_bundle") -> Callable[[Bundle, int, bool], Engine]:
    """`module` is loaded by name: what serves must reach torch in no other way."""

    def load(bundle: Bundle, threads: int, spinning: bool) -> Engine:
        try:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        except ImportError as error:
            raise EngineUnavailable(f"wants an engine whose library is not whole: {error}") from error
        engine: Engine = found(bundle, threads, spinning)
        return engine

    return load


OPENERS: Mapping[str, Callable[[Bundle, int, bool], Engine]] = {
    "onnxruntime": _opener("onnxruntime"),
    "openvino": _opener("openvino"),
    "torch-export": _opener("torch", "open_program"),
    "aotinductor": _opener("torch", "open_package"),
    "torchscript": _opener("torch", "open_script"),
    "executorch": _opener("executorch"),
    "tensorrt": _opener("tensorrt"),
    "onnxruntime-web": _opener("web"),
    "coreml": _opener("coreml"),
    "tvm": _opener("tvm"),
    "litert": _opener("litert"),
    "tensorflow": _opener("tensorflow"),
}
"""Engines by the name that a manifest gives them. Adding one here enrols it in the shared contract tests."""
