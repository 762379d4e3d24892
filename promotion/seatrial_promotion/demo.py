"""The whole life of a model on real data, in one process and a minute: `seatrial demo`.

Train, register, export and prove, promote, serve, ask over REST and gRPC with a client that others wrote, measure. Every
stage is the real one, the same that its own command runs. The server is a process of its own, and ended before this ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import uvloop
from rich.console import Console

from seatrial.bundle import Bundle
from seatrial.errors import EngineFailed
from seatrial.registry import ModelRef
from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_export.export import Exported, export
from seatrial_export.request import Request
from seatrial_export.summary import Progress, summary
from seatrial_promotion.entry import Entry
from seatrial_promotion.promote import Promotion, promote
from seatrial_serving.bench import Plan, Protocol, Result, bench
from seatrial_training.data import load_dataset
from seatrial_training.progress import ProgressBar
from seatrial_training.recipe import load_recipe
from seatrial_training.train import Registered, train

RECIPE = "digits-cnn"
ROWS = 16
LOAD_S = 1.0
CALLERS = 8
READY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the demo's server listens."""

    http: str
    grpc: str
    metrics: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What the demo made and measured; `seconds` by stage."""

    registered: Registered
    exported: Exported
    entry: Entry
    correct: int
    asked: int
    measured: dict[Protocol, Result]
    served: float
    seconds: dict[str, float]

    @property
    def bundle(self) -> Bundle:
        return next(iter(self.exported.bundles.values()))


@dataclass(slots=True)
class _Stages:
    """Announces each stage and keeps how long it took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        self.console.print(f"\n[bold]{len(self.seconds) + 1}. {name}[/]  [dim]{what}[/]")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)
        self.console.print(f"[dim]   {self.seconds[name]:.1f} s[/]")


def live(settings: Settings, console: Console) -> Lived:
    """Live it all in the home of `settings`. Raises what a stage raises; the server is ended in any case."""
    stages = _Stages(console)
    recipe = load_recipe(RECIPE)
    with stages.stage("train", f"{recipe.description}; register it in MLflow"):
        registered = train(recipe, settings, tell=console.print, callbacks=[ProgressBar(console)])
        version, score = registered.version, registered.trained.score
        console.print(f"   {version}: {score.metric} {score.value:.2%} on {score.rows} rows that it never saw")
    with stages.stage("export", "build variants, prove each against the source, measure, choose"):
        with Progress(console) as progress:
            request = Request(ref=ModelRef(name=version.name, version=version.version))
            exported = export(request, settings, tell=progress.tell)
        console.print(summary(exported), soft_wrap=True)
    with stages.stage("promote", "through the gates, into the ledger, then move the alias"):
        entry = promote(Promotion(name=version.name, version=version.version, by="seatrial demo"), settings)
        for gate in entry.gates:
            console.print(f"   {gate.gate}: {gate.reason}")
    with ExitStack() as running:
        what = f"{version.name}@{entry.alias}"
        with stages.stage("serve", f"{what} over REST and gRPC, verified and warmed up"):
            endpoint = running.enter_context(_server(what, settings))
            console.print(
                f"   REST http://{endpoint.http}   gRPC {endpoint.grpc}   metrics http://{endpoint.metrics}/metrics"
            )
        with stages.stage("ask", f"{ROWS} handwritten digits, through tritonclient, over both"):
            correct = _ask(endpoint, version.name, settings, console)
        with stages.stage(
            "measure", f"{CALLERS} callers for {LOAD_S:g} s each, over both, and what the server counted"
        ):
            measured = {protocol: _measure(endpoint, version.name, protocol, console) for protocol in _PROTOCOLS}
            served = _counted(endpoint)
            console.print(f"   seatrial_requests_total: {served:,.0f}")
    return Lived(
        registered=registered,
        exported=exported,
        entry=entry,
        correct=correct,
        asked=2 * ROWS,
        measured=measured,
        served=served,
        seconds=stages.seconds,
    )


_PROTOCOLS: tuple[Protocol, ...] = ("rest", "grpc")


@contextmanager
def _server(what: str, settings: Settings) -> Iterator[Endpoint]:
    """A real `seatrial serve` on free ports, ended with the block."""
    log = settings.home / "serve.log"
    environment = os.environ | {"SEATRIAL_HOME": str(settings.home)}
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    command = [sys.executable, "-m", "seatrial", "serve", what, *ports, "--no-request-log", "--json"]
    with log.open("wb") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
    try:
        assert server.stdout is not None, "asked for a pipe and got none: this is a bug"
        said = server.stdout.readline()
        if not said:
            raise EngineFailed(f"the server did not start; what it said is in {log}:\n{log.read_text()[-2000:]}")
        ready: dict[str, Any] = json.loads(said)
        yield Endpoint(http=ready["http"], grpc=ready["grpc"], metrics=ready["metrics"])
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate()


def _ask(endpoint: Endpoint, model: str, settings: Settings, console: Console) -> int:
    """Send real digits with NVIDIA's own client and show what comes back; how many answers were right."""
    test = load_dataset("digits", settings).test.take(slice(ROWS))
    answers = {
        "REST": _with_tritonclient(triton_http, endpoint.http, model, test.inputs["pixels"]),
        "gRPC": _with_tritonclient(triton_grpc, endpoint.grpc, model, test.inputs["pixels"]),
    }
    console.print(f"   written {' '.join(map(str, test.labels))}")
    for protocol, answer in answers.items():
        console.print(f"   {protocol:<7} {' '.join(map(str, answer))}")
    return sum(int((answer == test.labels).sum()) for answer in answers.values())


def _with_tritonclient(triton: Any, address: str, model: str, pixels: Array) -> Array:
    with triton.InferenceServerClient(address) as client:
        tensor = triton.InferInput("pixels", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(pixels, np.float32))
        logits: Array = client.infer(model, [tensor]).as_numpy("logits")
        classes: Array = logits.argmax(axis=1)
        return classes


def _measure(endpoint: Endpoint, model: str, protocol: Protocol, console: Console) -> Result:
    address = endpoint.grpc if protocol == "grpc" else endpoint.http
    plan = Plan(url=address, model=model, protocol=protocol, callers=CALLERS, seconds=LOAD_S, warm_up_s=0.3)
    result = uvloop.run(bench(plan))
    console.print(
        f"   {protocol:<5} {result.per_second:>7,.0f} requests/s   p50 {result.p50_ms:.2f} ms   p99 {result.p99_ms:.2f} ms"
        f"   {result.failed} failed"
    )
    return result


def _counted(endpoint: Endpoint) -> float:
    """What the server says it answered well."""
    text = httpx.get(f"http://{endpoint.metrics}/metrics").text
    samples = [
        line for line in text.splitlines() if line.startswith("seatrial_requests_total{") and 'outcome="ok"' in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in samples)


def farewell(lived: Lived, settings: Settings) -> str:
    """What was made, where it is, and what to type next."""
    version = lived.registered.version
    home = Path(os.path.relpath(settings.home)) if settings.home.is_relative_to(Path.cwd()) else settings.home
    total = sum(lived.seconds.values())
    return f"""
{lived.correct} of {lived.asked} digits read right; the whole life took {total:.0f} s. Nothing is left running.

What was made, in {home}
  model version  {version}, run {version.run_id}
  bundle         {lived.bundle.path}
  report         {lived.exported.page}
  ledger         who promoted what, when and why: seatrial history {version.name}

What to type next
  export SEATRIAL_HOME={home}
  seatrial serve {version.name}@{lived.entry.alias}
  curl localhost:8000/v2/models/{version.name}
  seatrial status
  mlflow ui --backend-store-uri {settings.tracking_uri}"""
