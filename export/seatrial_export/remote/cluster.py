"""An agent on a node of a Kubernetes cluster, for as long as an export takes: by kubectl, with whatever rights it has.

A Job, so that the cluster ends it at `most_s` even if nobody comes back; a Secret with a token of its own, which the Job owns;
and a tunnel by `kubectl port-forward`, so that the agent listens in its pod alone and needs neither Service nor certificate.
"""

import json
import logging
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx

from seatrial.errors import AgentLost, AgentRefused, InvalidSettings
from seatrial.settings import Kubernetes
from seatrial_export.remote.wire import CODE, code

PORT = 9500
HOME = "/var/lib/seatrial"
KEPT_AFTER_S = 600
"""How long the cluster keeps a Job that has ended, to be looked at."""
ASK_S = 60.0
LOOK_EVERY_S = 0.5
LAST_WORDS = 2000

Manifest: TypeAlias = dict[str, Any]
log = logging.getLogger(__name__)

_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    url: str
    token: str


def check_selector(text: str) -> Mapping[str, str]:
    """The labels that a node must have. Raises `InvalidSettings`."""
    found = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise InvalidSettings(
                f"--on {text}: write an agent's address, https://HOST:PORT, or the labels of a Kubernetes node, KEY=VALUE,..."
            )
        found[key] = value
    return found


def job(name: str, selector: Mapping[str, str], settings: Kubernetes) -> Manifest:
    """The agent as a Job: not root, nothing gained, a root that is read only, no token of the cluster's."""
    size: dict[str, str] = {"cpu": str(settings.cpu), "memory": settings.memory, "ephemeral-storage": settings.disk}
    if settings.gpus:
        size["nvidia.com/gpu"] = str(settings.gpus)
    labels = {"app.kubernetes.io/name": "seatrial", "app.kubernetes.io/component": "agent"}
    container = {
        "name": "agent",
        "image": settings.image,
        "args": ["agent", "--host", "127.0.0.1", "--port", str(PORT)],
        "env": [
            {"name": "SEATRIAL_HOME", "value": HOME},
            {
                "name": "SEATRIAL_EXPORT__AGENT__TOKEN",
                "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}},
            },
        ],
        "resources": {"requests": size, "limits": size},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": settings.most_s,
            "ttlSecondsAfterFinished": KEPT_AFTER_S,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "nodeSelector": dict(selector),
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "fsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": [
                        {"name": "home", "emptyDir": {"sizeLimit": settings.disk}},
                        {"name": "tmp", "emptyDir": {"sizeLimit": settings.disk}},
                    ],
                },
            },
        },
    }


def secret(name: str, token: str, *, owner: str) -> Manifest:
    """What the agent asks for. It goes when the Job goes whose uid is `owner`."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner}],
        },
        "stringData": {"token": token},
    }


@contextmanager
def agent_on(selector: str, settings: Kubernetes) -> Iterator[Address]:
    """Start an agent on a node with these labels, and take it away when the block ends, however it ends.

    Raises `InvalidSettings` for what is missing here, `AgentRefused` where the cluster does not start it, with what it says.
    """
    kubectl = _kubectl(settings)
    name, token = f"seatrial-agent-{secrets.token_hex(4)}", secrets.token_urlsafe(32)
    try:
        made = kubectl.ask("create", "-o", "json", "-f", "-", given=job(name, check_selector(selector), settings))
        kubectl.ask("create", "-f", "-", given=secret(name, token, owner=json.loads(made)["metadata"]["uid"]))
        kubectl.ask(
            "wait", "--for=condition=Ready", "pod", "-l", f"job-name={name}", f"--timeout={settings.start_s:.0f}s",
            within_s=settings.start_s + ASK_S,
        )  # fmt: skip
        with kubectl.tunnel(f"job/{name}") as url:
            _await_answer(url, token, within_s=settings.start_s)
            yield Address(url=url, token=token)
    finally:
        _take_away(kubectl, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kubectl:
    command: tuple[str, ...]

    def ask(self, *arguments: str, given: Manifest | None = None, within_s: float = ASK_S) -> str:
        """What it says. Raises `AgentRefused`."""
        try:
            done = subprocess.run(
                [*self.command, *arguments], input=None if given is None else json.dumps(given), text=True,
                stdin=subprocess.DEVNULL if given is None else None, capture_output=True, timeout=within_s, check=False,
                start_new_session=True,  # Ctrl-C is for us, who then take everything away
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AgentRefused(f"kubectl {arguments[0]} did not come to an end within {within_s:g} s") from error
        if done.returncode:
            raise AgentRefused(f"kubectl {arguments[0]} failed: {done.stderr.strip()[-LAST_WORDS:]}")
        return done.stdout

    @contextmanager
    def tunnel(self, to: str) -> Iterator[str]:
        """The address, on this machine, from which a tunnel leads to the agent until the block ends."""
        process = subprocess.Popen(
            [*self.command, "port-forward", "--address", "127.0.0.1", to, f":{PORT}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None, "a pipe that was asked for: this is a bug"
        said: list[str] = []
        forwarded = threading.Event()

        def listen() -> None:
            for line in process.stdout or ():
                said.append(line)
                forwarded.set()
            forwarded.set()

        listening = threading.Thread(target=listen, name="seatrial-tunnel", daemon=True)
        listening.start()
        try:
            forwarded.wait(ASK_S)
            found = re.search(r"127\.0\.0\.1:(\d+) ->", "".join(said))
            if found is None:
                raise AgentRefused(f"kubectl port-forward opened no tunnel: {''.join(said).strip()[-LAST_WORDS:]}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait()
            listening.join()
            process.stdout.close()


def _kubectl(settings: Kubernetes) -> _Kubectl:
    """Raises `InvalidSettings`."""
    found = shutil.which("kubectl")
    if found is None:
        raise InvalidSettings("--on with the labels of a node takes kubectl, which is not installed")
    if settings.image is None:
        raise InvalidSettings(
            "export.kubernetes.image does not say which image the agent is; export/Dockerfile builds one"
        )
    namespace = ("--namespace", settings.namespace) if settings.namespace else ()
    return _Kubectl(command=(found, *namespace))


def _await_answer(url: str, token: str, *, within_s: float) -> None:
    """A pod that runs may not listen yet, and its tunnel refuses until it does."""
    until = time.monotonic() + within_s
    headers: Mapping[str, str] = {"authorization": f"Bearer {token}", CODE: code()}
    while True:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/v1/about", headers=headers, timeout=ASK_S, trust_env=False, verify=False)
            return
        if time.monotonic() > until:
            raise AgentLost(f"the agent in the cluster did not answer within {within_s:g} s")
        time.sleep(LOOK_EVERY_S)


def _take_away(kubectl: _Kubectl, name: str) -> None:
    """What was never made is no fault. Whatever cannot be taken away now, the cluster ends by itself."""
    try:
        kubectl.ask("delete", "job", name, "--ignore-not-found", "--wait=false", "--cascade=background")
    except AgentRefused as error:
        log.warning("the agent %s is still in the cluster: %s", name, error)
