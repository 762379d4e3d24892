"""What this machine can do, and what stands in the way: the facts behind `seatrial doctor`."""

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from seatrial import __version__, engines
from seatrial.bundle import EngineSpec
from seatrial.machine import Machine, this_machine
from seatrial.settings import Settings

Verdict = Literal["ok", "absent", "problem"]

GPU_PROVIDERS = ("cuda", "tensorrt")
EXTRAS = {
    "serving": ("onnxruntime", "fastapi", "uvicorn", "grpc", "prometheus_client"),
    "training": ("torch", "lightning", "mlflow", "sklearn"),
    "export": ("torch", "onnx", "onnxscript", "onnxruntime", "torch_pruning"),
    "bentoml": ("bentoml",),
    "executorch": ("executorch",),
    "litert": ("ai_edge_litert",),
    "tensorflow": ("tensorflow",),
    "openvino": ("openvino",),
    "s3": ("boto3",),
}
TOOLS = {"prometheus": "tests", "promtool": "tests", "wrk": "benchmarks", "kubectl": "manifests"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`problem` means that a command will fail; `absent` that something optional is not here."""

    subject: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    machine: Machine
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return all(finding.verdict != "problem" for finding in self.findings)


def diagnose(settings: Settings) -> Diagnosis:
    """Look, change nothing: no file is written and no server is asked."""
    return Diagnosis(machine=this_machine(), findings=tuple(_findings(settings)))


def _findings(settings: Settings) -> Iterator[Finding]:
    yield Finding(subject="seatrial", verdict="ok", detail=f"{__version__} on Python {sys.version.split()[0]}")
    yield _home(settings)
    yield Finding(subject="registry", verdict="ok", detail=settings.tracking_uri)
    for extra, modules in EXTRAS.items():
        yield _extra(extra, modules)
    for name in engines.ENGINES:
        yield _engine(EngineSpec(name=name))
    for provider in GPU_PROVIDERS:
        yield _engine(EngineSpec(name="onnxruntime", options={engines.PROVIDER: provider}))
    for port in ("http_port", "grpc_port", "metrics_port"):
        yield _port(port, settings.serving.host, getattr(settings.serving, port))
    yield _triton(settings)
    for tool, purpose in TOOLS.items():
        place = shutil.which(tool)
        yield Finding(subject=tool, verdict="ok" if place else "absent", detail=place or f"only {purpose} use it")


def _home(settings: Settings) -> Finding:
    nearest = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        return Finding(subject="home", verdict="problem", detail=f"{nearest} is not writable; set SEATRIAL_HOME")
    free = shutil.disk_usage(nearest).free / 2**30
    return Finding(
        subject="home", verdict="ok" if free > 1 else "problem", detail=f"{settings.home}, {free:.1f} GiB free"
    )


def _extra(extra: str, modules: tuple[str, ...]) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        advice = f"without {', '.join(missing)}; pip install 'seatrial[{extra}]'"
        return Finding(subject=f"extra {extra}", verdict="absent", detail=advice)
    return Finding(subject=f"extra {extra}", verdict="ok", detail="installed")


def _engine(engine: EngineSpec) -> Finding:
    subject = f"engine {engine.name}"
    if provider := engine.options.get(engines.PROVIDER):
        subject += f" on {provider}"
    if why := engines.obstacle(engine):
        return Finding(subject=subject, verdict="absent", detail=why)
    return Finding(subject=subject, verdict="ok", detail=engines.installed(engine.name))


def _port(name: str, host: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = f"{host}:{port}: {error.strerror}; set SEATRIAL_SERVING__{name.upper()}"
            return Finding(subject=name, verdict="problem", detail=advice)
    return Finding(subject=name, verdict="ok", detail=f"{host}:{port} is free")


def _triton(settings: Settings) -> Finding:
    environment = settings.triton_environment
    if not (environment / "bin" / "python").exists():
        return Finding(
            subject="triton", verdict="absent", detail=f"not in {environment}; `seatrial triton install` puts it there"
        )
    return Finding(subject="triton", verdict="ok", detail=str(environment))


def as_dict(diagnosis: Diagnosis) -> dict[str, object]:
    machine = {name: getattr(diagnosis.machine, name) for name in diagnosis.machine.__struct_fields__}
    return {
        "healthy": diagnosis.healthy,
        "machine": machine,
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }
