"""A registry with something in it: a version and its bundle as an export leaves them, and a real tracking server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from seatrial.bundle import Bundle
from seatrial.registry import BUNDLE_TAG, EXPORT_RUN_TAG
from seatrial.registry.embedded import EmbeddedRegistry
from tests.conditions import until


def publish(registry: EmbeddedRegistry, bundle: Bundle, *, alias: str = "champion") -> str:
    """Register a version of the bundle's model, with the bundle, as an export would; returns the version."""
    client, name = registry.client, bundle.manifest.model.name
    run = client.create_run(registry.experiment("seatrial/export"))
    client.log_artifacts(run.info.run_id, str(bundle.path), f"bundles/{bundle.path.name}")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    client.set_model_version_tag(name, version.version, EXPORT_RUN_TAG, run.info.run_id)
    client.set_model_version_tag(name, version.version, f"{BUNDLE_TAG}onnx-cpu", bundle.digest)
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


@contextmanager
def tracking_server(store: Path, place: Path) -> Iterator[str]:
    shutil.copyfile(store, place / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{place}/mlflow.db",
        "--artifacts-destination",
        str(place / "artifacts"),
    ]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            await_answer(f"http://127.0.0.1:{port}/health", process, log=place / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_answer(address: str, process: subprocess.Popen[bytes], *, log: Path) -> None:
    def answered() -> bool:
        assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
        try:
            return httpx.get(address).is_success
        except httpx.TransportError:
            return False

    until(answered, within_s=90)
