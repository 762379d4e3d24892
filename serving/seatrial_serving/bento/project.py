"""A BentoML project from a bundle: a directory that `bentoml serve` runs and `bentoml build` packs, complete in itself.

It holds the bundle, the service module, and the packages of ours that it needs, so that a Bento depends on nothing that is
not published.
"""

import shutil
from importlib import resources
from importlib.metadata import requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from seatrial.bundle import Bundle, Driver
from seatrial.engines import ENGINES
from seatrial.errors import EngineUnavailable
from seatrial.files import directory_aside, put_in_place

SERVICE = "service.py"
OUR_PACKAGES = ("seatrial", "seatrial_monitoring", "seatrial_serving")


def write_project(bundle: Bundle, to: Path) -> Path:
    """Write the project to the new directory `to`. Raises `BundleCorrupt`, `EngineUnavailable` for a bundle that BentoML cannot
    run, or `DiskFull` with nothing left behind."""
    if bundle.manifest.driver is not Driver.ONCE:
        raise EngineUnavailable(f"{bundle.path} keeps the states of sequences, which BentoML's workers do not share")
    bundle.verify()
    with directory_aside(to.parent) as aside:
        service = resources.files("seatrial_serving.bento").joinpath(SERVICE).read_text()
        (aside / SERVICE).write_text(service)
        shutil.copytree(bundle.path, aside / "bundle")
        for package in OUR_PACKAGES:
            with resources.as_file(resources.files(package)) as origin:
                shutil.copytree(origin, aside / package, ignore=shutil.ignore_patterns("__pycache__"))
        (aside / "bentofile.yaml").write_text(yaml.safe_dump(_bentofile(bundle), sort_keys=False))
        put_in_place(aside, to)
    return to


def name(bundle: Bundle) -> str:
    """BentoML takes lower-case letters, digits and dashes."""
    return "".join(c if c.isalnum() else "-" for c in bundle.manifest.model.name.lower()).strip("-")


def _bentofile(bundle: Bundle) -> dict[str, object]:
    return {
        "service": "service:Model",
        "name": name(bundle),
        "labels": {
            "seatrial.model": f"{bundle.manifest.model.name}/{bundle.manifest.model.version}",
            "seatrial.variant": bundle.manifest.variant.name,
            "seatrial.digest": bundle.digest.replace(":", "-"),
        },
        "include": [SERVICE, "bundle/", *(f"{package}/" for package in OUR_PACKAGES)],
        "python": {"packages": _packages(bundle), "lock_packages": False},
    }


def _packages(bundle: Bundle) -> list[str]:
    """What our serving code and the bundle's engine need, from our own metadata."""
    needed = set()
    extras = {"serving", "monitoring", ENGINES[bundle.manifest.engine.name].extra}
    for line in requires("seatrial") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and requirement.name != "seatrial":
            requirement.marker = None
            needed.add(str(requirement))
    return sorted(needed)
