"""What a user installs: the wheel, in environments of its own that hold exactly what its extras name."""

import json
import re
import statistics
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import once
from tests.serving.models import EncoderBundle, LinearBundle, embedding, linear

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.xdist_group("install"), pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    with once(shared, "wheel") as place:
        if not place.exists():
            subprocess.run(
                [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(ROOT)],
                check=True, capture_output=True,
            )  # fmt: skip
    [built] = place.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def serving_only(wheel: Path, shared: Path) -> Path:
    """An environment with the locked serving closure, every hash checked, and our wheel without its dependencies."""
    with once(shared, "serving-only") as place:
        if not place.exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
            pip(place, "install", "--quiet", "--require-hashes", "-r", str(ROOT / "serving" / "requirements.lock"))
            pip(place, "install", "--quiet", "--no-deps", str(wheel))
    return place


def pip(place: Path, *command: str) -> str:
    """As the image does it: an environment without a pip of its own, which takes seconds to get one."""
    outside = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(place / "bin" / "python")]
    return subprocess.run([*outside, *command], check=True, stdout=subprocess.PIPE, text=True).stdout


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(place / "bin" / command[0]), *command[1:]], capture_output=True, text=True, check=False, cwd=place
    )


def test_the_wheel_holds_the_packages_and_what_they_read(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.partition("/")[0] for name in names}
    packages = {
        "seatrial",
        *(f"seatrial_{name}" for name in ("models", "monitoring", "training", "serving", "export", "promotion")),
    }
    assert packages <= roots
    assert {root for root in roots if not root.endswith(".dist-info")} == packages
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    assert "seatrial_training/recipes/digits-cnn.yaml" in names
    assert any(name.endswith("report.html.j2") for name in names)


def test_a_serving_only_installation_has_neither_torch_nor_mlflow(serving_only: Path) -> None:
    listed = json.loads(pip(serving_only, "list", "--format=json"))
    installed = {package["name"].lower() for package in listed}
    assert {"seatrial", "onnxruntime", "fastapi"} <= installed
    assert not installed & {"torch", "mlflow", "lightning", "onnx", "pandas"}
    pip(serving_only, "check")


def test_it_serves_bundles_of_numbers_and_of_texts(serving_only: Path, tmp_path: Path) -> None:
    import httpx

    from tests.conditions import until

    bundles = LinearBundle().write(tmp_path), EncoderBundle().write(tmp_path)
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    out = tmp_path / "out"
    with out.open("wb") as said:
        server = subprocess.Popen(
            [str(serving_only / "bin" / "seatrial"), "serve", *(str(each.path) for each in bundles), *ports, "--json"],
            stdout=said,
        )
    try:
        until(lambda: b'"ready"' in out.read_bytes())
        address = json.loads(out.read_text().splitlines()[0])["http"]
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        answer = httpx.post(f"http://{address}/v2/models/linear/infer", json=body).json()
        assert answer["outputs"][0]["data"] == linear([1, 2, 3, 4]).tolist()
        asked = {"model": "encoder", "input": "a ship at sea"}
        answer = httpx.post(f"http://{address}/v1/embeddings", json=asked).json()
        assert np.allclose(answer["data"][0]["embedding"], embedding("a ship at sea"), atol=1e-6)
    finally:
        server.terminate()
        server.wait()


def test_a_command_whose_extra_is_not_installed_names_it(serving_only: Path) -> None:
    failed = run(serving_only, "seatrial", "train", "digits-cnn")
    assert failed.returncode == 1
    assert "pip install 'seatrial[training]'" in failed.stderr
    embedded = run(serving_only, "seatrial", "bundle", "pull", "digits-cnn@champion")
    assert embedded.returncode == 1
    assert "pip install 'seatrial[training]'" in embedded.stderr


def test_help_costs_little_more_than_starting_python_with_click(serving_only: Path) -> None:
    """Interleaved, so that a busy machine slows both: the median ratio counts."""

    def took(*command: str) -> float:
        began = time.perf_counter()
        assert run(serving_only, *command).returncode == 0
        return time.perf_counter() - began

    bare = ("python", "-c", "import click")
    ratios = [took("seatrial", "--help") / took(*bare) for _ in range(9)]
    assert statistics.median(ratios) < 3


def test_the_help_of_every_command_works_without_the_extras(serving_only: Path) -> None:
    listed = run(serving_only, "seatrial", "--help").stdout
    commands = [line.split()[0] for line in listed.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"train", "export", "promote", "serve"} <= set(commands)
    for command in commands:
        assert run(serving_only, "seatrial", command, "--help").returncode == 0, command


def test_the_lock_has_a_hash_for_everything_and_no_address() -> None:
    lines = (ROOT / "serving" / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or "index" in line]
    pinned = [line for line in lines if "==" in line]
    assert pinned
    assert all(line.endswith("\\") for line in pinned), "a hash follows each"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.split(r"[^\w.-]", each)[0] for extra in ("serving", "text", "oidc") for each in extras[extra]} - {
        "seatrial"
    }
    assert {_normal(each) for each in wanted} <= {_normal(line.partition("==")[0]) for line in pinned}
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {_normal(name): version for name, version in (line.split("==") for line in constraints)}
    for line in pinned:
        name, _, version = line.removesuffix(" \\").partition("==")
        assert versions[_normal(name)] == version.strip(), f"the lock and the constraints disagree on {name}: make lock"


def _normal(name: str) -> str:
    """As the name of a distribution is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
