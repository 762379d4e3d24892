"""An engine in a thread of this process, for hosts that bring their own isolation: BentoML, functions, tests.

The same contract as an engine process, without its protection: a crash takes the host with it.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from seatrial.bundle import open_bundle
from seatrial.errors import SeatrialError
from seatrial.protocol import Tensor
from seatrial_serving.engines import Engine, open_engine
from seatrial_serving.engines.proof import replay, warm_up
from seatrial_serving.engines.stateful import compute, state_bytes
from seatrial_serving.padding import pads, together
from seatrial_serving.workers import Batch, Load, Outputs, Owner, slice_outputs


class LocalEngine:
    wide = False

    def __init__(self, engine: Engine, *, load_s: float, golden: int) -> None:
        self.graphs, self.load_s, self.golden = engine.graphs, load_s, golden
        self.state_bytes = state_bytes(engine)
        self._engine = engine
        self._owner: Owner | None = None
        self._held: list[Batch] = []
        self._thread = ThreadPoolExecutor(1, "seatrial-engine")

    @classmethod
    async def start(cls, load: Load) -> "LocalEngine":
        return await asyncio.get_running_loop().run_in_executor(None, cls._open, load)

    @classmethod
    def _open(cls, load: Load) -> "LocalEngine":
        began = time.monotonic()
        bundle = open_bundle(load.path, expected=load.digest or None)
        bundle.verify()
        engine = open_engine(bundle, threads=load.threads)
        warm_up(engine, batch_sizes=load.warm_up)
        golden = replay(engine, bundle)
        return cls(engine, load_s=time.monotonic() - began, golden=golden)

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def held(self) -> Sequence[Batch]:
        return self._held

    def attach(self, owner: Owner) -> None:
        self._owner = owner

    def run(self, batch: Batch) -> bool:
        self._held.append(batch)
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        done.add_done_callback(lambda answered: self._report(batch, answered))
        return True

    def kill(self) -> None:
        """Nothing: a thread cannot be killed, and what it holds is reported when it is done."""

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._engine.close()

    def _compute(self, batch: Batch) -> tuple[list[Outputs], float]:
        signature = self.graphs[batch.graph]
        inputs = {
            spec.name: together([request.item[index] for request in batch.requests], pad)
            for index, (spec, pad) in enumerate(zip(signature.inputs, pads(signature), strict=True))
        }
        began = time.perf_counter()
        outputs = compute(self._engine, inputs, graph=batch.graph, turns=batch.turns)
        compute_s = time.perf_counter() - began
        tensors = [Tensor(spec.name, spec.datatype, outputs[spec.name]) for spec in signature.outputs]
        return slice_outputs(tensors, batch.requests, signature.sequence), compute_s

    def _report(self, batch: Batch, answered: asyncio.Future[tuple[list[Outputs], float]]) -> None:
        self._held.remove(batch)
        if answered.cancelled() or self._owner is None:
            return
        match answered.exception():
            case None:
                self._owner.answered(self, batch, *answered.result())
            case SeatrialError() as error:
                self._owner.failed(self, batch, error)
            case unexpected:
                raise unexpected
