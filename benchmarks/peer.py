"""The servers that others use, each with a service of a few lines in `services/`.

A peer has an environment of its own in the home, installed when it is first wanted; its versions are pinned here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.clients import Post, v2
from benchmarks.models import DIGITS
from benchmarks.rounds import Lost
from benchmarks.started import Addresses, Ready, Running, launched
from seatrial.protocol import InferRequest
from seatrial.tensors import Array
from seatrial_serving.runtime import free_port

SERVICES = Path(__file__).with_name("services")
HOST = "127.0.0.1"
BARE = ("numpy==2.4.6", "onnxruntime==1.31.1")
"""What every service needs besides its server."""
INSTALLED = "installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`command` is a program of its environment and what it is told, its ports in braces. Without `requires` the environment
    is our own. `make` makes the JSON that is asked with, `None` where that is the v2 protocol's."""

    name: str
    speaks: str
    requires: tuple[str, ...]
    command: tuple[str, ...]
    health: str
    path: str = ""
    make: Callable[[Array], Any] | None = None
    raw: bool = False
    """It is asked with the bytes of the array, and answers so."""
    grpc: bool = False
    """It can be asked over gRPC too."""
    variables: Mapping[str, str] = field(default_factory=dict)

    def post(self, asked: InferRequest) -> Post:
        pixels = asked.inputs[0].array
        if self.raw:
            return Post(path=self.path, body=pixels.tobytes(), headers={"Content-Type": "application/octet-stream"})
        if self.make is not None:
            return Post(path=self.path, body=json.dumps(self.make(pixels)).encode())
        return v2(DIGITS, asked._replace(parameters={}), binary=False)

    def start(self, onnx: Path, place: Path) -> AbstractContextManager[Running]:
        """Serve `onnx`; installed in `place` first if need be. Raises `Lost`."""
        ports = {name: str(free_port(HOST, 0)) for name in ("http", "grpc", "metrics")}
        addresses = {name: f"{HOST}:{port}" for name, port in ports.items()}
        programs = self._programs(place)
        variables = {
            "MODEL": str(onnx),
            "HTTP_PORT": ports["http"],
            "PYTHONPATH": str(SERVICES),
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            **{name: value.format(**ports) for name, value in self.variables.items()},
        }
        program, *arguments = (each.format(**ports) for each in self.command)
        return launched(
            [str(programs / program), *arguments],
            ready=_answers(f"http://{addresses['http']}{self.health}", addresses),
            environment=variables,
            cwd=SERVICES,
        )

    def _programs(self, place: Path) -> Path:
        if not self.requires:
            return Path(sys.executable).parent
        return environment(self.name.lower(), self.requires, place)


def environment(name: str, requires: Sequence[str], place: Path) -> Path:
    """The programs of an environment of its own, made in `place` unless it is there. Raises `Lost`."""
    folder = place / "peers" / name
    if not (folder / INSTALLED).exists():
        _install(requires, folder)
    return folder / "bin"


def _answers(health: str, addresses: Addresses) -> Ready:
    def ready(_: bytes) -> Addresses | None:
        try:
            with urlopen(health, timeout=1):  # raises where the status is an error
                return addresses
        except (OSError, HTTPException):
            return None

    return ready


def _install(requires: Sequence[str], folder: Path) -> None:
    print(f"installing {' '.join(requires)} into {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *BARE, *requires]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Lost(f"pip could not install {' '.join(requires)}: {done.stderr[-1000:]}")
    (folder / INSTALLED).touch()


FASTAPI = Peer(
    name="FastAPI",
    speaks="v2 JSON",
    requires=(),
    command=(
        *("uvicorn", "fastapi_service:app", "--port", "{http}", "--workers", "2"),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
    ),
    health="/health",
)
PEERS = (
    FASTAPI,
    Peer(
        name="mosec",
        speaks="bytes",
        requires=("mosec==0.9.6",),
        command=("python", "mosec_service.py", "--address", HOST, "--port", "{http}", "--log-level", "warning"),
        health="/metrics",
        path="/inference",
        raw=True,
    ),
    Peer(
        name="LitServe",
        speaks="JSON of its own",
        requires=("litserve==0.2.17",),
        command=("python", "litserve_service.py"),
        health="/health",
        path="/predict",
        make=lambda pixels: {"input": pixels[0].tolist()},
    ),
    Peer(
        name="MLServer",
        speaks="v2 JSON, gRPC",
        requires=("mlserver==1.7.1", "uvloop<0.22"),
        command=("mlserver", "start", "."),
        health="/v2/health/ready",
        grpc=True,
        variables={
            "MLSERVER_DEBUG": "false",
            "MLSERVER_HOST": HOST,
            "MLSERVER_HTTP_PORT": "{http}",
            "MLSERVER_GRPC_PORT": "{grpc}",
            "MLSERVER_METRICS_PORT": "{metrics}",
            "MLSERVER_PARALLEL_WORKERS": "2",
            "MLSERVER_MODEL_NAME": DIGITS,
            "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_service.Digits",
            "MLSERVER_MODEL_MAX_BATCH_SIZE": "64",
            "MLSERVER_MODEL_MAX_BATCH_TIME": "0.001",
        },
    ),
    Peer(
        name="KServe",
        speaks="v2 JSON, gRPC",
        requires=("kserve==0.17.0",),
        command=(
            *("python", "kserve_service.py", "--http_port", "{http}", "--grpc_port", "{grpc}"),
            *("--workers", "2", "--enable_latency_logging", "false"),
        ),
        health=f"/v2/models/{DIGITS}/ready",
        grpc=True,
    ),
    Peer(
        name="MLflow",
        speaks="/invocations",
        requires=("mlflow==3.17.2", "onnx==1.23.2"),
        command=("python", "mlflow_service.py"),
        health="/ping",
        path="/invocations",
        make=lambda pixels: {"inputs": {"pixels": pixels.tolist()}},
    ),
    Peer(
        name="BentoML",
        speaks="JSON of its own",
        requires=("bentoml==1.4.39",),
        command=("bentoml", "serve", "bentoml_service:Digits", "--host", HOST, "--port", "{http}"),
        health="/readyz",
        path="/predict",
        make=lambda pixels: {"pixels": pixels.tolist()},
        variables={"BENTOML_DO_NOT_TRACK": "True"},
    ),
)
"""Versions as they were when this was written; the newest that install beside ONNX Runtime 1.31."""
