"""The serving image: its Dockerfile here, and the built image itself where an engine and an image are at hand."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from seatrial.settings import Settings, load_settings
from tests.conditions import until
from tests.kubernetes.manifests import BASE, ROOT, environment, pod, rendered, serving_container
from tests.servers import serving
from tests.serving.models import LinearBundle, linear
from tests.tools import tool

DOCKERFILE = ROOT / "serving" / "Dockerfile"


def instructions(name: str) -> list[str]:
    """The arguments of every instruction `name`, with continued lines joined, in order."""
    text = re.sub(r"\\\n", "", DOCKERFILE.read_text())
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))


def test_hadolint_finds_nothing() -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.exists() else tool("hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def let_through(path: str) -> bool:
    """Whether .dockerignore, whose last matching line decides, leaves `path` in the context."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and (fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/")):
            kept = line.startswith("!")
    return kept


def test_what_is_copied_and_what_the_wheel_is_made_of_is_in_the_context() -> None:
    sources = [source for line in instructions("COPY") if "--from=" not in line for source in line.split()[:-1]]
    assert sources == ["serving/requirements.lock", "."]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = ["pyproject.toml", build["project"]["readme"], *sources[:1]]
    wanted += build["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for path in wanted:
        assert (ROOT / path).exists(), path
        assert let_through(path), f"{path} is not in the context: see .dockerignore"
    for path in (
        ".git/config",
        ".venv/bin/python",
        ".seatrial/mlflow.db",
        "tests/tools.py",
        "core/seatrial/__pycache__/x.pyc",
    ):
        assert not let_through(path), path


def test_it_runs_as_the_user_and_writes_where_the_manifests_say() -> None:
    security = pod(rendered(BASE))["spec"]["securityContext"]
    assert instructions("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert instructions("VOLUME") == [variables()["SEATRIAL_HOME"]]
    assert environment(rendered(BASE))["SEATRIAL_HOME"] == variables()["SEATRIAL_HOME"]
    made = {line.split()[-1] for line in instructions("COPY")}
    assert {*instructions("VOLUME"), *instructions("WORKDIR")} <= made, "a read-only root cannot get them later"
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["seatrial"]
    assert "command" not in serving_container(rendered(BASE)), "the image's own entry point is used"


def test_its_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables().items():
        if name.startswith("SEATRIAL_"):
            monkeypatch.setenv(name, value)
    assert load_settings().serving.host == "0.0.0.0"
    ports = Settings().serving
    assert instructions("EXPOSE") == [f"{ports.http_port} {ports.grpc_port} {ports.metrics_port}"]


def health_check(port: int) -> int:
    """The exit code of the image's own health check, asking this machine's `port`."""
    [line] = instructions("HEALTHCHECK")
    python, *arguments = json.loads(line.partition("CMD ")[2])
    assert python == "python"
    asked = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"SEATRIAL_SERVING__HTTP_PORT": str(port)}, capture_output=True, check=False,
    )  # fmt: skip
    return asked.returncode


def test_the_health_check_is_healthy_exactly_while_the_server_is_ready(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path / "store")
    patient = {"SEATRIAL_SERVING__DRAIN_S": "30"}
    with serving(bundle.path, place=tmp_path / "server", environment=patient) as server:
        port = int(server.http.rpartition(":")[2])
        assert health_check(port) == 0
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(server.url("/readyz")).status_code == 503)
        assert health_check(port) == 1, "draining"
        server.process.kill()
        server.process.wait()
        assert health_check(port) == 1, "gone"


# The built image


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The engine and the name of a container that serves a bundle as the base would, on ports of this machine."""
    if not (image := os.environ.get("SERVING_IMAGE")):
        pytest.skip("SERVING_IMAGE names no image (the head of serving/Dockerfile says how to build one)")
    engine = shutil.which("podman") or tool("docker")
    bundle = LinearBundle(version="3").write(tmp_path / "store")
    for path in (bundle.path, *bundle.path.parents):
        if path.is_relative_to(tmp_path.parent):
            path.chmod(0o755)
    name = f"seatrial-test-{os.getpid()}"
    command = [engine, "run", "--detach", "--name", name, "--read-only", "--cap-drop", "all"]
    command += ["--security-opt", "no-new-privileges", "--memory", "1g", "--publish", "127.0.0.1::8000"]
    command += ["--volume", f"{bundle.path}:/models/linear:ro", image, "serve", "/models/linear"]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield engine, name
    finally:
        subprocess.run([engine, "rm", "--force", name], check=True, capture_output=True)


@pytest.mark.slow
def test_the_image_serves_with_a_read_only_root_as_nobody_and_drains(container: tuple[str, str]) -> None:
    def ask(*command: str) -> str:
        return subprocess.run([container[0], *command], check=True, capture_output=True, text=True).stdout.strip()

    name = container[1]
    address = f"http://{ask('port', name, '8000')}"

    def ready() -> bool:
        try:
            return httpx.get(f"{address}/v2/health/ready").status_code == 200
        except httpx.TransportError:
            assert ask("inspect", "--format", "{{.State.Running}}", name) == "true", ask("logs", name)
            return False

    until(ready)
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    answer = httpx.post(f"{address}/v2/models/linear/infer", json=body).json()
    assert answer["outputs"][0]["data"] == linear([1, 2, 3, 4]).tolist()
    assert ask("exec", name, "python", "-c", "import os; print(os.getuid(), os.getgid())") == "65532 65532"
    installed = ask(
        "exec", name, "python", "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('mlflow'))"
    )
    assert installed == "None None"
    ask("stop", "--time", "60", name)
    assert ask("inspect", "--format", "{{.State.ExitCode}}", name) == "0"
