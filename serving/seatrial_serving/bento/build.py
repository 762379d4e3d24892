"""Run BentoML on a project: to build a Bento, or to serve. BentoML is a program of its own here, never imported."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from seatrial.errors import ConversionFailed, MissingExtra
from seatrial.settings import Serving
from seatrial_serving.runtime import Runtime, free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Bento:
    http: str
    runtime: Runtime


def build(project: Path) -> str:
    """The tag of the new Bento. Raises `ConversionFailed` with BentoML's words, `MissingExtra` where it is not installed."""
    command = [*_bentoml(), "build", "--output", "tag"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_variables(project), cwd=project)
    if done.returncode:
        raise ConversionFailed(f"bentoml build ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout.strip().rpartition("__tag__:")[2]


def prepare(project: Path, serving: Serving) -> Bento:
    """How to serve `project`. Raises `PortInUse`, `MissingExtra`."""
    port = free_port(serving.host, serving.http_port)
    command = [*_bentoml(), "serve", "service:Model", "--host", serving.host, "--port", str(port)]
    return Bento(
        http=f"{serving.host}:{port}",
        runtime=Runtime(
            name="bentoml",
            command=command,
            environment=_variables(project),
            health=f"http://{serving.host}:{port}/v2/health/ready",
            log=project.parent / "bentoml.log",
            cwd=project,
        ),
    )


def _bentoml() -> list[str]:
    if importlib.util.find_spec("bentoml") is None:
        raise MissingExtra("bentoml", extra="bentoml")
    return [sys.executable, "-m", "bentoml"]


def _variables(project: Path) -> dict[str, str]:
    """Our packages from the project, as they will be in the Bento; no word to BentoML's makers."""
    return os.environ | {"PYTHONPATH": str(project), "BENTOML_DO_NOT_TRACK": "True"}
