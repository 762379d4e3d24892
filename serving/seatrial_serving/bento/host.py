"""A bundle inside a BentoML worker: our data plane and REST door over an engine in this process.

BentoML brings the processes and their supervision; validation, batching, metrics and answers are those of `seatrial serve`.
"""

import asyncio
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, make_asgi_app

from seatrial.bundle import Bundle, open_bundle
from seatrial.errors import MalformedRequest, SeatrialError
from seatrial.machine import cores
from seatrial.protocol import InferRequest, decode_request
from seatrial.settings import Serving
from seatrial.tensors import DataType, Signature
from seatrial_monitoring.metrics import ServerFacts, ServingMetrics
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.http import Application
from seatrial_serving.generation import Generation
from seatrial_serving.local import LocalEngine
from seatrial_serving.sources import identify
from seatrial_serving.workers import Load


class Host:
    """Made when the service module is imported; `open` and `close` on the worker's event loop."""

    def __init__(self, place: Path, serving: Serving | None = None) -> None:
        self.bundle: Bundle = open_bundle(place)
        self._serving = serving or Serving(request_log=False)
        registry = CollectorRegistry()
        self._metrics = ServingMetrics(registry, self._serving.latency_budget_ms / 1000)
        self._plane = DataPlane(self._serving, self._metrics)
        self._metrics.facts = lambda: ServerFacts(
            ready=self._plane.ready, generations=[each.facts() for each in self._plane.generations()]
        )
        self._v2 = Application(self._plane)
        self.metrics: Any = make_asgi_app(registry)
        self._plane.expect(self.bundle.manifest.model.name)

    async def open(self) -> None:
        """Verify, warm up, replay: whatever is wrong raises, and the worker does not start."""
        identity = identify(self.bundle.path, alias="")
        load = Load(
            path=self.bundle.path,
            digest=self.bundle.digest,
            threads=cores(),
            warm_up=(1,),
            start_s=self._serving.engines.start_s,
        )
        generation = await Generation.start(
            identity,
            lambda *, wide, gently: LocalEngine.start(load),  # noqa: ARG005 - its one engine has all cores already
            count=1,
            metrics=self._metrics.model(identity.name, identity.version, identity.variant),
            settings=self._serving,
        )
        self._plane.install(generation, default=True)
        await self._v2.open_rest()

    async def close(self) -> None:
        for generation in list(self._plane.generations()):
            self._plane.remove(generation)
            await generation.drain()

    async def v2(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The ASGI application to mount at `/v2`; it knows its paths by their full names."""
        if scope["type"] == "http":
            await self._v2({**scope, "root_path": ""}, receive, send)

    async def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """BentoML's own way of asking: inputs by name as nested lists, outputs likewise. Raises as the data plane does."""
        exchange = self._plane.begin(Protocol.REST, self.bundle.manifest.model.name)
        try:
            generation = self._plane.locate(exchange)
            outputs = await self._plane.submit(exchange, _as_request(inputs, generation.signature))
        except (SeatrialError, asyncio.CancelledError) as error:
            self._plane.fail(exchange, error)
            raise
        finally:
            self._plane.end(exchange)
        return {tensor.name: tensor.array.tolist() for tensor in outputs}


def _as_request(inputs: dict[str, Any], signature: Signature) -> InferRequest:
    """Nested lists by name as a v2 request, so that they are judged like any other. Raises `BadRequest`."""
    datatypes = {spec.name: spec.datatype for spec in signature.inputs}
    tensors = [
        {"name": name, "datatype": datatypes.get(name, DataType.FP32), "shape": _shape(values), "data": values}
        for name, values in inputs.items()
    ]
    try:
        return decode_request(orjson.dumps({"inputs": tensors}))
    except TypeError as error:
        raise MalformedRequest(f"the inputs are not nested lists of numbers or texts: {error}") from error


def _shape(values: Any) -> list[int]:
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        values = values[0] if values else None
    return shape
