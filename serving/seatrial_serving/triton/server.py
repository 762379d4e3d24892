"""How to run the real `tritonserver` on a model repository."""

from dataclasses import dataclass
from pathlib import Path

from seatrial.settings import Serving
from seatrial_serving.runtime import Runtime, free_port
from seatrial_serving.triton.environment import TritonEnvironment

EXIT_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Triton:
    http: str
    grpc: str
    metrics: str
    runtime: Runtime


def prepare(environment: TritonEnvironment, repository: Path, serving: Serving) -> Triton:
    """Raises `EngineUnavailable` where Triton is not installed, `PortInUse` where a port is taken."""
    environment.require()
    host = serving.host
    http, grpc, metrics = (
        free_port(host, port) for port in (serving.http_port, serving.grpc_port, serving.metrics_port)
    )
    command = [
        str(environment.server),
        f"--model-repository={repository}",
        f"--backend-directory={environment.backends}",
        *(f"--http-address={host}", f"--http-port={http}"),
        *(f"--grpc-address={host}", f"--grpc-port={grpc}"),
        *(f"--metrics-address={host}", f"--metrics-port={metrics}"),
        f"--exit-timeout-secs={EXIT_S}",
    ]
    return Triton(
        http=f"{host}:{http}",
        grpc=f"{host}:{grpc}",
        metrics=f"{host}:{metrics}",
        runtime=Runtime(
            name="tritonserver",
            command=command,
            environment=environment.variables(),
            health=f"http://{host}:{http}/v2/health/ready",
            log=repository.parent / "tritonserver.log",
        ),
    )
