"""The tutorial, typed as it stands: every `sh` block of docs/tutorial.md, in order, in a copy of its example."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import serving

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_tutorial_does_what_it_says(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "moons"
    shutil.copytree(ROOT / "examples" / "bring-your-own-model", place)
    shutil.copyfile(migrated_store, place / "mlflow.db")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    monkeypatch.setenv("SEATRIAL_HOME", str(place / ".seatrial"))
    train, export, inspect, budget, promote, serve, ask, curl = blocks()

    run(train, place)
    assert "onnx-cpu-fp32 was chosen" in run(export, place)
    refused = subprocess.run(
        ["bash", "-c", export.replace(" --trust", "")], cwd=place, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "--trust" in refused.stderr
    assert "moons version 1" in run(inspect, place)
    run(budget, place)
    assert "champion" in run(promote, place)
    assert serve == "seatrial serve moons@champion\n"
    with serving("moons@champion", place=tmp_path / "server") as server:
        answers = run(at(ask, server.http, server.grpc), place)
        assert answers == "REST 0 1 1\ngRPC 0 1 1\n"
        [output] = json.loads(run(at(curl, server.http, server.grpc), place))["outputs"]
        assert output["shape"] == [1, 2]
        assert output["data"][0] > output["data"][1]


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE)


def run(block: str, place: Path) -> str:
    done = bash(block, place)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def bash(block: str, place: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", block]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def at(block: str, http: str, grpc: str) -> str:
    """The block with the addresses that this test's server took."""
    return block.replace("localhost:8000", http).replace("localhost:8001", grpc)
