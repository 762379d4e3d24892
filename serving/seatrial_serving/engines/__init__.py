"""What executes a variant, behind one contract; the only part of serving that export uses.

What is measured here is what serves: export times and scores variants through the same engines, opened the same way.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from seatrial.bundle import Bundle, Driver
from seatrial.errors import EngineUnavailable, MissingExtra
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

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:
        """Outputs by name, in the order of the graph's signature; the arrays are the caller's to keep.

        `inputs` were checked against that signature. Raises `WrongInput` for content that the graph cannot take (text
        that is not UTF-8), `EngineFailed` for everything that the engine itself refuses.
        """

    def close(self) -> None: ...


def open_engine(bundle: Bundle, *, threads: int, spinning: bool = False) -> Engine:
    """Load the graphs of `bundle`, which is trusted to be what its digest says. Nothing is run yet.

    `spinning` threads wait for each other without sleeping: sooner on idle cores, ruinous beside a busy neighbour.
    Raises `EngineUnavailable` where this machine or installation has not got what the bundle needs.
    """
    manifest = bundle.manifest
    if manifest.driver is not Driver.ONCE:
        raise EngineUnavailable(f"{bundle.path} wants the driver '{manifest.driver}'; this version runs 'once' only")
    try:
        opener = OPENERS[manifest.engine.name]
    except KeyError:
        raise EngineUnavailable(
            f"{bundle.path} wants the engine '{manifest.engine.name}'; there are {sorted(OPENERS)}"
        ) from None
    engine = opener(bundle, threads, spinning)
    if not manifest.preprocessing and not manifest.postprocessing:
        return engine
    from seatrial_serving.engines.processing import Embedding

    return Embedding(engine, bundle)


def _onnxruntime(bundle: Bundle, threads: int, spinning: bool) -> Engine:
    try:
        from seatrial_serving.engines.onnxruntime import OnnxRuntime
    except ModuleNotFoundError as missing:
        raise MissingExtra("onnxruntime", extra="serving") from missing
    return OnnxRuntime(
        {name: bundle.file(file) for name, file in bundle.manifest.graphs.items()},
        signature=bundle.manifest.signature,
        options=bundle.manifest.engine.options,
        threads=threads,
        spinning=spinning,
    )


OPENERS: Mapping[str, Callable[[Bundle, int, bool], Engine]] = {"onnxruntime": _onnxruntime}
"""Engines by the name that a manifest gives them. Adding one here enrols it in the shared contract tests."""
