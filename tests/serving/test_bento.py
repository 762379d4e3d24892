"""Bundles in BentoML: the project, the real server, the Bento."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import yaml

from seatrial.bundle import open_bundle
from seatrial.errors import GoldenMismatch
from seatrial_serving.bento.host import Host
from seatrial_serving.bento.project import write_project
from tests.commands import type_seatrial
from tests.serving.models import LinearBundle, linear
from tests.serving.runtimes import Foreign, serving_with

X = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    place = tmp_path_factory.mktemp("bento")
    bundle = LinearBundle(version="3").write(place / "store")
    with serving_with("bento", bundle.path, place=place / "server") as running:
        yield running


def test_the_v2_protocol_is_answered_as_our_own_server_answers_it(server: Foreign) -> None:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array(X, np.float32))
    with triton.InferenceServerClient(server.http) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("linear", "3")
        assert client.get_model_metadata("linear")["versions"] == ["3"]
        assert client.infer("linear", [tensor]).as_numpy("y").tolist() == linear(X).tolist()
    wrong = httpx.post(f"http://{server.http}/v2/models/linear/infer", json={"inputs": []})
    assert wrong.status_code == 400
    assert "missing input ['x']" in wrong.json()["error"]


def test_bentoml_s_own_api_takes_nested_lists_and_names_mistakes(server: Foreign) -> None:
    answer = httpx.post(f"http://{server.http}/predict", json={"inputs": {"x": X}})
    assert answer.json() == {"y": linear(X).tolist()}
    for inputs, words in (({"z": X}, "there is no input 'z'"), ({"x": [[1, 2]]}, "shape"), ({"x": "1"}, "holds str")):
        wrong = httpx.post(f"http://{server.http}/predict", json={"inputs": inputs})
        assert wrong.status_code == 400
        assert words in wrong.text


def test_metrics_have_the_names_that_they_have_everywhere(server: Foreign) -> None:
    httpx.post(f"http://{server.http}/predict", json={"inputs": {"x": X}})
    text = httpx.get(f"http://{server.http}/seatrial/metrics").text
    counters = [line for line in text.splitlines() if line.startswith("seatrial_requests_total")]
    [counted] = [line for line in counters if 'outcome="ok",protocol="rest"' in line]
    assert float(counted.rpartition(" ")[2]) >= 1


def test_a_project_is_complete_in_itself(tmp_path: Path) -> None:
    bundle = LinearBundle(name="My_Linear.v2").write(tmp_path / "store")
    project = write_project(bundle, tmp_path / "project")
    assert open_bundle(project / "bundle").digest == bundle.digest
    bentofile = yaml.safe_load((project / "bentofile.yaml").read_text())
    assert bentofile["name"] == "my-linear-v2"
    names = [package.partition(">")[0] for package in bentofile["python"]["packages"]]
    assert {"onnxruntime", "fastapi", "msgspec", "prometheus-client"} <= set(names)
    assert len(names) == len(set(names))
    assert not {"torch", "mlflow", "seatrial"} & set(names)
    ours = subprocess.run(
        [sys.executable, "-c", "import seatrial_serving; print(seatrial_serving.__file__)"],
        cwd=project, env=os.environ | {"PYTHONPATH": str(project)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ours.stdout.startswith(str(project))


def test_a_bento_is_built_with_the_bundle_inside(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path / "store")
    built = subprocess.run(
        [sys.executable, "-m", "seatrial", "bento", "build", str(bundle.path), "--json"],
        env=os.environ | {"BENTOML_HOME": str(tmp_path / "bentoml")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tag = json.loads(built.stdout)["tag"]
    place = tmp_path / "bentoml" / "bentos" / tag.replace(":", "/")
    assert open_bundle(place / "src" / "bundle").digest == bundle.digest
    labels = yaml.safe_load((place / "bento.yaml").read_text())["labels"]
    assert labels["seatrial.digest"] == bundle.digest.replace(":", "-")


def test_a_bundle_that_answers_differently_is_refused_before_bentoml_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = LinearBundle(golden_scale=2).write(tmp_path / "store")
    refused = type_seatrial("bento", "serve", wrong.path, monkeypatch=monkeypatch, capsys=capsys)
    assert refused.code == 1
    assert "GoldenMismatch" in refused.err


@pytest.mark.anyio
async def test_inside_bentoml_it_is_refused_too(tmp_path: Path) -> None:
    wrong = LinearBundle(golden_scale=2).write(tmp_path / "store")
    with pytest.raises(GoldenMismatch):
        await Host(wrong.path).open()
