"""From a model version to its bundle on this disk.

The version carries two tags: which run exported it, and the content digest of the bundle for each target. The bytes lie
among the artifacts of that run. What arrives is checked against the digest before anything sees it.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from seatrial.bundle import EVIDENCE, MANIFEST, Bundle, Manifest, open_bundle
from seatrial.bundle.manifest import is_digest, sha256
from seatrial.bundle.store import directory_name, is_whole
from seatrial.engines import obstacle
from seatrial.errors import BundleCorrupt, NotInRegistry
from seatrial.files import directory_aside, put_in_place
from seatrial.registry import BUNDLE_TAG, EXPORT_RUN_TAG, ModelVersion, Registry

ARTIFACT_FOLDER = "bundles"


def bundle_digest(version: ModelVersion, *, target: str) -> str:
    """The content digest of the version's bundle for `target`. Raises `NotInRegistry` where it was never exported."""
    digest = version.tags.get(BUNDLE_TAG + target)
    if digest is None:
        others = sorted(tag.removeprefix(BUNDLE_TAG) for tag in version.tags if tag.startswith(BUNDLE_TAG))
        raise NotInRegistry(
            f"{version} has no bundle for target '{target}'"
            + (f" (there is one for {', '.join(others)})" if others else "")
            + f"; build one with: seatrial export {version} --target {target}"
        )
    if not is_digest(digest):
        raise NotInRegistry(f"{version} has the tag {BUNDLE_TAG + target}={digest!r}, which is not a digest")
    return digest


def fetch_bundle(registry: Registry, version: ModelVersion, *, target: str, store: Path) -> Bundle:
    """The version's bundle, from `store` if it is there whole, else downloaded into it. Either way it is new in the eyes of
    `seatrial gc`."""
    digest = bundle_digest(version, target=target)
    place = store / directory_name(digest)
    if not is_whole(place):
        _download(registry, version, digest=digest, store=store)
    with suppress(OSError):  # a store that is only read
        os.utime(place)
    return open_bundle(place, expected=digest)


def fetch_fitting(registry: Registry, version: ModelVersion, *, targets: Sequence[str], store: Path) -> Bundle:
    """The version's bundle for the first of `targets` that this machine can run, as far as can be told without loading it.

    Where it can run none it is that of the first, so that whoever opens it says why. Raises `NotInRegistry` where there is no
    bundle for any.
    """
    exported = [target for target in targets if BUNDLE_TAG + target in version.tags] or [targets[0]]
    found = []
    for target in exported:
        found.append(bundle := fetch_bundle(registry, version, target=target, store=store))
        if obstacle(bundle.manifest.engine, bundle.manifest.hardware) is None:
            return bundle
    return found[0]


def _download(registry: Registry, version: ModelVersion, *, digest: str, store: Path) -> None:
    run = version.tags.get(EXPORT_RUN_TAG)
    if run is None:
        raise NotInRegistry(f"{version} names the bundle {digest} but not the run that holds it ({EXPORT_RUN_TAG})")
    folder = f"{ARTIFACT_FOLDER}/{directory_name(digest)}"
    with directory_aside(store) as aside:
        registry.fetch(run, f"{folder}/{MANIFEST}", aside / MANIFEST)
        text = (aside / MANIFEST).read_bytes()
        if sha256(text) != digest:
            raise BundleCorrupt(f"run {run} holds a manifest with digest {sha256(text)} where {digest} was expected")
        for name in Manifest.decode(text, where=f"{folder}/{MANIFEST}").files:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            registry.fetch(run, f"{folder}/{name}", aside / name)
        with suppress(NotInRegistry):  # evidence is replaceable, hence may be absent
            registry.fetch(run, f"{folder}/{EVIDENCE}", aside / EVIDENCE)
        open_bundle(aside, expected=digest).verify()
        put_in_place(aside, store / directory_name(digest), whole=is_whole)
