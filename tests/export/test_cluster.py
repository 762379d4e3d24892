"""An agent on a cluster: what kubectl is given, as Kubernetes' own schemas judge it, and that all of it is taken away again.

There is no cluster here. A program in kubectl's place notes what it is told, and its tunnel leads to a real agent's port.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from seatrial.credentials import Credentials
from seatrial.errors import AgentRefused, InvalidSettings
from seatrial.settings import Kubernetes, Settings, load_settings
from seatrial_export.remote.client import Connection
from seatrial_export.remote.cluster import HOME, PORT, agent_on, check_selector, job, secret
from tests.export.agents import Near, near
from tests.tools import tool

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "export" / "Dockerfile"
VERSIONS = ("1.27", "1.32", "1.37")
SETTINGS = Kubernetes(image="registry.example.com/ml/seatrial-agent:0.1.0", gpus=1, start_s=5)

KUBECTL = """\
#!{python}
import json, os, sys
from pathlib import Path

place = Path(__file__).parent
words = sys.argv[1:]
said = {{"words": words, "given": json.load(sys.stdin) if "-f" in words else None}}
with place.joinpath("asked").open("a") as asked:
    asked.write(json.dumps(said) + "\\n")
if words[2] == place.joinpath("fails-at").read_text():
    sys.exit(f"error: {{words[2]}} does not work today")
if words[2] == "create" and said["given"]["kind"] == "Job":
    print(json.dumps({{"metadata": {{"uid": "1234-5678"}}}}))
if words[2] == "port-forward":
    print("Forwarding from 127.0.0.1:" + place.joinpath("port").read_text() + " -> {port}", flush=True)
    place.joinpath("tunnel").write_text(str(os.getpid()))
    sys.stdin.close()
    import signal
    signal.pause()
"""


class Cluster:
    """What was asked of it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.place / "asked").read_text().splitlines()]

    @property
    def verbs(self) -> list[str]:
        return [each["words"][2] for each in self.asked]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Near]:
    with near(tmp_path / "near") as found:
        yield found


@pytest.fixture
def cluster(agent: Near, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    place = tmp_path / "bin"
    place.mkdir()
    (place / "kubectl").write_text(KUBECTL.format(python=sys.executable, port=PORT))
    (place / "kubectl").chmod(0o755)
    (place / "port").write_text(agent.url.rpartition(":")[2])
    (place / "fails-at").write_text("")
    monkeypatch.setenv("PATH", str(place))
    return Cluster(place)


def in_namespace() -> Kubernetes:
    return SETTINGS.model_copy(update={"namespace": "models"})


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_accept_the_manifests(version: str) -> None:
    made = job("seatrial-agent-1a2b", check_selector("gpu=a100,topology.kubernetes.io/zone=x"), SETTINGS)
    kubernetes_validate.validate(made, version, strict=True)
    kubernetes_validate.validate(secret("seatrial-agent-1a2b", "hush", owner="1234-5678"), version, strict=True)


def test_the_pod_is_on_the_node_that_was_meant_and_can_do_little_there() -> None:
    made = job("a", check_selector("gpu=a100,topology.kubernetes.io/zone=x"), SETTINGS)
    pod = made["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["nodeSelector"] == {"gpu": "a100", "topology.kubernetes.io/zone": "x"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert made["spec"]["activeDeadlineSeconds"] == SETTINGS.most_s
    assert "hush" not in json.dumps(made), "the token is in the Secret alone"


def test_its_environment_and_command_line_are_those_of_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from seatrial_export.cli import agent

    [container] = job("a", {}, SETTINGS)["spec"]["template"]["spec"]["containers"]
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each.get("value", "of-a-secret-that-is-long-enough"))
    settings = load_settings()
    assert settings.home == Path(HOME)
    assert settings.export.agent.token is not None
    verb, *arguments = container["args"]
    assert verb == "agent"
    assert isinstance(agent, click.Command)
    parsed = copy(agent).make_context("agent", arguments).params  # a command remembers how help was asked of it
    assert (parsed["host"], parsed["port"]) == ("127.0.0.1", PORT), "the tunnel ends in the pod"


@pytest.mark.parametrize(
    "text", ["gpu", "gpu=a100,", "=a100", "gpu=a 100", "gpu=-a", "a/b/c=d", "gpu=a100;rm", "--x=y"]
)
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="the labels of a Kubernetes node"):
        check_selector(text)


def test_an_agent_is_started_reached_by_its_own_token_and_taken_away(
    cluster: Cluster, tmp_path: Path, agent: Near
) -> None:
    with agent_on("gpu=a100", in_namespace()) as address:
        made, hidden = (each["given"] for each in cluster.asked[:2])
        name = made["metadata"]["name"]
        assert (made["kind"], hidden["kind"]) == ("Job", "Secret")
        assert hidden["stringData"]["token"] == address.token
        assert hidden["metadata"]["ownerReferences"][0]["uid"] == "1234-5678"
        agent.door.token = address.token  # as the pod's agent would have it from the Secret
        connection = Connection(address.url, Credentials(key=address.token), holder="a test")
        (tmp_path / "file").write_bytes(b"x")
        connection.send(tmp_path / "file")
        connection.close()
    assert cluster.verbs == ["create", "create", "wait", "port-forward", "delete"]
    assert all(each["words"][:2] == ["--namespace", "models"] for each in cluster.asked)
    assert name in cluster.asked[-1]["words"]
    assert address.token not in json.dumps([each["words"] for each in cluster.asked]), "everybody sees command lines"
    assert not Path(f"/proc/{(cluster.place / 'tunnel').read_text()}").exists()


@pytest.mark.parametrize("interrupted", [KeyboardInterrupt, RuntimeError])
def test_it_is_taken_away_however_the_export_ends(interrupted: type[BaseException], cluster: Cluster) -> None:
    with pytest.raises(interrupted), agent_on("gpu=a100", in_namespace()):
        raise interrupted
    assert cluster.verbs[-1] == "delete"


@pytest.mark.parametrize("verb", ["create", "wait", "port-forward"])
def test_what_the_cluster_does_not_do_is_told_in_its_words_and_nothing_is_left(verb: str, cluster: Cluster) -> None:
    (cluster.place / "fails-at").write_text(verb)
    with (
        pytest.raises(AgentRefused, match=rf"(?s)kubectl {verb} .*{verb} does not work today"),
        agent_on("gpu=a100", in_namespace()),
    ):
        pytest.fail("nothing was started")
    assert cluster.verbs[-1] == "delete"


def test_without_kubectl_or_an_image_it_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, tmp_path: Path
) -> None:
    with (
        pytest.raises(InvalidSettings, match=r"export\.kubernetes\.image"),
        agent_on("gpu=a100", Settings().export.kubernetes),
    ):
        pytest.fail("nothing was started")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidSettings, match="takes kubectl, which is not installed"), agent_on("gpu=a100", SETTINGS):
        pytest.fail("nothing was started")
    assert not (cluster.place / "asked").exists()


# The image


def test_hadolint_finds_nothing() -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.exists() else tool("hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_what_an_agent_takes_and_the_user_of_the_manifest() -> None:
    text = DOCKERFILE.read_text()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [extras] = [line.partition("EXTRAS=")[2] for line in text.splitlines() if line.startswith("ARG EXTRAS=")]
    assert set(extras.split(",")) <= known.keys()
    user = job("a", {}, SETTINGS)["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in text
    assert f"SEATRIAL_HOME={HOME}\n" in text
    assert f"EXPOSE {PORT}\n" in text
    assert Settings().export.agent.port == PORT
