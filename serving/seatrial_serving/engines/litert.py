"""LiteRT, which was TensorFlow Lite, on the CPU.

A file has the program at a few fixed sizes, each as a signature of its own, and a batch is asked in pieces of those. Any other
size is refused here: the runtime itself would resize, and keep what the converter computed from the old sizes.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, WrongInput
from seatrial.tensors import Array, Signature
from seatrial_serving.engines.fixed_sizes import FixedSizes, Shape
from seatrial_serving.engines.signature import check_datatypes, check_told

REFUSALS = (RuntimeError, TypeError, ValueError)
BEYOND = "index out of bounds"
"""What the runtime says of an index beyond its table."""
MOST_SAID = 2**16
"""Characters of old errors that a file may drag along before it is opened anew."""


class LiteRt:
    on_cpu = True

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Raises `BundleCorrupt`, and `EngineUnavailable` for a signature with tensors that LiteRT does not take."""
        self.signature = bundle.manifest.signature
        self.graphs = {MAIN: self.signature}
        check_datatypes(self.signature, "LiteRT")
        self._open = partial(_open_file, bundle.file(bundle.manifest.graphs[MAIN]), self.signature, threads)
        self._file, self._said = self._open(), ""

    def predict(self, inputs: Mapping[str, Array], *, graph: str = "main") -> dict[str, Array]:  # noqa: ARG002 - it has one
        try:
            return self._file.answer(inputs)
        except (TypeError, ValueError) as error:
            raise EngineFailed(f"LiteRT refused the batch: {error}") from error
        except RuntimeError as error:
            why = self._news(str(error))
            raise (WrongInput if BEYOND in why else EngineFailed)(f"LiteRT refused the batch: {why}") from None

    def close(self) -> None:
        self._file.close()

    def _news(self, said: str) -> str:
        """What was said last: an error of the runtime says everything that it ever said before, of others' batches (2.3.0)."""
        news, self._said = said.removeprefix(self._said), said
        if len(said) > MOST_SAID:
            self._file, self._said = self._open(), ""
        return news


def open_bundle(bundle: Bundle, threads: int, spinning: bool) -> LiteRt:  # noqa: ARG001 - XNNPACK decides how to wait
    return LiteRt(bundle, threads)


def _open_file(path: Path, signature: Signature, threads: int) -> FixedSizes:
    programs = FixedSizes(signature)
    try:
        interpreter = Interpreter(str(path), num_threads=threads)
        for key in interpreter.get_signature_list():
            ask = interpreter.get_signature_runner(key)
            told = _told(ask.get_input_details())
            check_told(path, "LiteRT", told, signature.inputs)
            check_told(path, "LiteRT", _told(ask.get_output_details()), signature.outputs)
            programs.add({name: shape for name, (_, shape) in told.items()}, ask)
    except REFUSALS as error:
        raise BundleCorrupt(f"LiteRT cannot load {path}: {error}") from error
    if not programs:
        raise BundleCorrupt(f"LiteRT found no program with a name in {path}")
    return programs


def _told(details: Mapping[str, Any]) -> dict[str, tuple[str, Shape]]:
    return {name: (np.dtype(each["dtype"]).name, tuple(each["shape"].tolist())) for name, each in details.items()}
