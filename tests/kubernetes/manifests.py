"""The manifests as a cluster would get them: rendered by the real Kustomize, never read from the source files."""

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from tests.tools import absent

ROOT = Path(__file__).parents[2]
BASE, EXAMPLE, TRITON = "k8s/base", "k8s/overlays/example", "k8s/overlays/triton-gpu"
KUSTOMIZATIONS = (BASE, EXAMPLE, TRITON)
COMPONENTS = ("k8s/components/monitoring", "k8s/components/queue-time")

Manifest: TypeAlias = dict[str, Any]


def rendered(folder: str) -> Sequence[Manifest]:
    return _render(ROOT / folder)


def with_component(component: str, place: Path) -> Sequence[Manifest]:
    """The base with one component and nothing else, put together in the empty folder `place`."""
    kustomization = {
        "resources": [os.path.relpath(ROOT / BASE, place)],
        "components": [os.path.relpath(ROOT / component, place)],
    }
    (place / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return _render(place)


@functools.cache
def _render(folder: Path) -> tuple[Manifest, ...]:
    done = subprocess.run([*_renderer(), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@functools.cache
def _renderer() -> tuple[str, ...]:
    """`kustomize`, or the one inside kubectl, which knows components from 1.21 on."""
    if kustomize := shutil.which("kustomize"):
        return kustomize, "build"
    if (kubectl := shutil.which("kubectl")) is None:
        absent("neither kustomize nor kubectl is installed")
    assert kubectl is not None
    asked = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    minor = re.match(r"\d+", json.loads(asked.stdout)["clientVersion"]["minor"])
    assert minor, asked.stdout
    if int(minor[0]) < 21:
        absent(f"kubectl 1.{minor[0]} renders no Kustomize components")
    return kubectl, "kustomize"


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pod(manifests: Sequence[Manifest]) -> Manifest:
    """The template of the one Deployment's pods."""
    [deployment] = of_kind(manifests, "Deployment")
    template: Manifest = deployment["spec"]["template"]
    return template


def serving_container(manifests: Sequence[Manifest]) -> Manifest:
    [container] = [each for each in pod(manifests)["spec"]["containers"] if each["name"] == "serving"]
    found: Manifest = container
    return found


def containers(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    spec = pod(manifests)["spec"]
    yield from (*spec.get("initContainers", []), *spec["containers"])


def environment(manifests: Sequence[Manifest]) -> dict[str, str]:
    """What the ConfigMap that the containers name puts into their environment."""
    names = {
        source["configMapRef"]["name"]
        for container in containers(manifests)
        for source in container.get("envFrom", [])
        if "configMapRef" in source
    }
    [config] = [each for each in of_kind(manifests, "ConfigMap") if each["metadata"]["name"] in names]
    data: dict[str, str] = config["data"]
    return data


def expanded(arguments: Sequence[str], variables: dict[str, str]) -> list[str]:
    """`arguments` with each `$(NAME)` replaced, as a kubelet does it."""
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], argument) for argument in arguments]
