"""Is this engine, here and now, the one that was verified? Warm-up and the replay of golden requests."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np

from seatrial.bundle import MAIN, Bundle, Golden, describe_violation
from seatrial.errors import EngineFailed, GoldenMismatch, SeatrialError, WrongInput
from seatrial.machine import this_machine
from seatrial.protocol import Tensor
from seatrial.tensors import Array, DataType, Signature, TensorSpec
from seatrial_serving.engines import Engine, open_engine
from seatrial_serving.engines.stateful import Stateful, Turn, compute


def prove(bundle: Bundle) -> int:
    """Verify every file of `bundle`, and replay its golden requests on an engine opened for that; how many there were.

    Raises `BundleCorrupt`, `EngineUnavailable`, `GoldenMismatch`.
    """
    bundle.verify()
    with closing(open_engine(bundle, threads=1)) as engine:
        return replay(engine, bundle)


def warm_up(engine: Engine, *, batch_sizes: Sequence[int]) -> None:
    """Run zeros of each batch size, so that no caller pays for first-time allocations."""
    for size in batch_sizes:
        run(engine, zeros(engine.signature, batch=size))


def run(
    engine: Engine, inputs: Mapping[str, Array], *, graph: str = MAIN, turns: Sequence[Turn] = ()
) -> dict[str, Array]:
    """Outputs for inputs that no caller sent. Raises `EngineFailed` whatever they are refused for."""
    try:
        return compute(engine, inputs, graph=graph, turns=turns)
    except WrongInput as error:
        raise EngineFailed(f"the model refused the batch, which is its own: {error}") from error


def fastest_s(engine: Engine, *, tries: int = 3) -> float:
    """How long one row of zeros takes, at best; no time where the engine refuses them."""
    inputs = zeros(engine.signature, batch=1)
    best = math.inf
    for _ in range(tries):
        began = time.perf_counter()
        try:
            engine.predict(inputs)
        except SeatrialError:
            return 0.0
        best = min(best, time.perf_counter() - began)
    return best


def zeros(signature: Signature, *, batch: int) -> dict[str, Array]:
    """Inputs of all zeros (of empty text): `batch` rows, every other dynamic axis at its smallest."""
    smallest = {(name, index): axis.min for axis in signature.dynamic_axes for name, index in axis.at.items()}
    if signature.batch:
        smallest |= {(name, 0): batch for name in signature.batch.at}
    return {spec.name: _zeros(spec, smallest) for spec in signature.inputs}


def _zeros(spec: TensorSpec, smallest: dict[tuple[str, int], int]) -> Array:
    shape = [smallest.get((spec.name, i), 1) if size < 0 else size for i, size in enumerate(spec.shape)]
    return np.full(shape, b"", object) if spec.datatype is DataType.BYTES else np.zeros(shape, spec.datatype.numpy)


def replay(engine: Engine, bundle: Bundle) -> int:
    """Replay every golden request of `bundle`; the number of requests. Raises `GoldenMismatch` at the first violation.

    The message names the bound, the distance, and the CPU features where the bundle was built and here.
    """
    tolerance = bundle.manifest.tolerance
    golden = bundle.golden()
    for number, each in enumerate(golden):
        outputs = _answer(engine, each)
        for recorded, bounds, whose in (
            (each.rerun, tolerance.rerun, "this variant where it was built"),
            (each.source, tolerance.source, "the source model"),
        ):
            if violation := describe_violation(outputs, recorded, bounds):
                raise GoldenMismatch(
                    f"golden request {number} of {bundle.path} is answered differently here than by {whose}: "
                    f"{violation}. {_where(bundle)}"
                )
    return len(golden)


def _answer(engine: Engine, golden: Golden) -> list[Tensor]:
    """Of an engine with a memory: the rows of a golden request are the steps of one sequence."""
    inputs = {tensor.name: tensor.array for tensor in golden.request.inputs}
    turns = [engine.whole(inputs)] if isinstance(engine, Stateful) else []
    outputs = run(engine, inputs, graph=golden.graph, turns=turns)
    signature = engine.graphs[golden.graph]
    return [Tensor(spec.name, spec.datatype, outputs[spec.name]) for spec in signature.outputs]


def _where(bundle: Bundle) -> str:
    here = ", ".join(this_machine().features) or "none"
    evidence = bundle.evidence()
    there = ", ".join(evidence.machine.features) or "none" if evidence else "unknown"
    return f"CPU features there: {there}; here: {here}. Export the model on a machine like this one."
