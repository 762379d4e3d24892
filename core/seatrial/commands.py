"""The subcommands that need no component: `doctor`, `bundle` and `gc`."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from seatrial.cli import EXIT_FAILED, json_option, show

if TYPE_CHECKING:
    from seatrial.bundle.leftover import Stored


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Say what this machine can do: cores by cgroup quota, CPU features, GPU, extras, engines, ports.

    \b
    Example:
      seatrial doctor
      seatrial doctor --json | jq .machine.cores
    """
    from seatrial.doctor import as_dict, diagnose
    from seatrial.settings import load_settings

    diagnosis = diagnose(load_settings())

    def text() -> str:
        machine = diagnosis.machine
        lines = [
            f"{machine.cpu}: {machine.cores} cores for us, {machine.memory_bytes / 2**30:.1f} GiB",
            f"features: {', '.join(machine.features) or 'none that matter here'}",
            f"GPU: {'; '.join(machine.gpus) or 'none'}",
            "",
        ]
        marks = {"ok": "ok     ", "absent": "absent ", "problem": "PROBLEM"}
        width = max(len(finding.subject) for finding in diagnosis.findings)
        lines += [f"{marks[f.verdict]}  {f.subject:<{width}}  {f.detail}" for f in diagnosis.findings]
        return "\n".join(lines)

    show(as_dict(diagnosis), as_json=as_json, text=text)
    if not diagnosis.healthy:
        raise SystemExit(EXIT_FAILED)


@click.group()
def bundle() -> None:
    """Inspect, verify or pull bundles: the directories that servers load."""


@bundle.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
def inspect(directory: Path, *, as_json: bool) -> None:
    """Show what a bundle holds: model, variant, signature, engine, files, evidence.

    \b
    Example:
      seatrial bundle inspect .seatrial/bundles/sha256-1f0c…
    """
    import msgspec

    from seatrial.bundle import open_bundle

    opened = open_bundle(directory)
    evidence = opened.evidence()
    result = {
        "digest": opened.digest,
        "path": str(opened.path),
        "manifest": msgspec.to_builtins(opened.manifest),
        "evidence": msgspec.to_builtins(evidence),
    }

    def text() -> str:
        manifest = opened.manifest
        tensors = [f"  in   {t.name} {t.datatype}{list(t.shape)}" for t in manifest.signature.inputs]
        tensors += [f"  out  {t.name} {t.datatype}{list(t.shape)}" for t in manifest.signature.outputs]
        lines = [
            f"{manifest.model.name} version {manifest.model.version}, variant {manifest.variant.name}",
            f"  {opened.digest}",
            f"  engine {manifest.engine.name}, {sum(f.size for f in manifest.files.values()):,} bytes in "
            f"{len(manifest.files)} files, {len(manifest.golden)} golden requests",
            *tensors,
        ]
        if evidence and evidence.quality:
            quality = evidence.quality
            lines.append(
                f"  {quality.metric} {quality.value:.4f} (source {quality.source_value:.4f}) "
                f"by {quality.basis} on {quality.rows} rows"
            )
        return "\n".join(lines)

    show(result, as_json=as_json, text=text)


@bundle.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--digest", help="The content digest that it must have.")
@json_option
def verify(directory: Path, *, digest: str | None, as_json: bool) -> None:
    """Check the digest of every file of a bundle. Golden requests are replayed by the server that loads it.

    \b
    Example:
      seatrial bundle verify .seatrial/bundles/sha256-1f0c…
    """
    from seatrial.bundle import open_bundle

    opened = open_bundle(directory, expected=digest)
    opened.verify()
    show(
        {"digest": opened.digest, "verified": True},
        as_json=as_json,
        text=lambda: f"{opened.digest} holds: {len(opened.manifest.files)} files verified",
    )


@bundle.command()
@click.argument("model")
@click.option(
    "--to", "destination", type=click.Path(path_type=Path), help="Where to put it; by default the home's store."
)
@json_option
def pull(model: str, *, destination: Path | None, as_json: bool) -> None:
    """Fetch the bundle of a model version from the registry, for init containers and sites without a network.

    \b
    Example:
      seatrial bundle pull digits-cnn@champion --to /models
    """
    from seatrial.registry import ModelRef, open_registry
    from seatrial.registry.bundles import fetch_bundle
    from seatrial.settings import load_settings

    settings = load_settings()
    with closing(open_registry(settings)) as registry:
        version = registry.resolve(ModelRef.parse(model))
        opened = fetch_bundle(registry, version, target=settings.registry.target, store=destination or settings.bundles)
    opened.verify()
    show({"digest": opened.digest, "path": str(opened.path)}, as_json=as_json, text=lambda: str(opened.path))


@click.command()
@click.option("--yes", is_flag=True, help="Remove them. Without it, nothing is changed.")
@click.option(
    "--unused-for", "hours", type=click.FloatRange(0), default=1.0, show_default=True,
    help="Keep what was written or asked for within so many hours.",
)  # fmt: skip
@json_option
def gc(*, yes: bool, hours: float, as_json: bool) -> None:
    """Find bundles in the local store that nobody needs: no alias, no reference that was served, no running server.

    What is removed can be fetched again, as long as the registry has it. With them go conversions that no export has wanted for
    so long: the next one that does makes them again.

    \b
    Example:
      seatrial gc
      seatrial gc --yes
    """
    import time

    from seatrial.bundle.leftover import survey
    from seatrial.files import kept_in, remove_tree, sweep, tree_bytes
    from seatrial.registry import BUNDLE_TAG, open_registry
    from seatrial.registry.watch import Memory
    from seatrial.settings import load_settings

    settings = load_settings()
    needed = {told.digest: f"{told.ref}, as it was served last" for told in Memory.of(settings).all()}
    with closing(open_registry(settings)) as registry:
        for version in registry.aliased():
            whose = f"{version}, @{', @'.join(version.aliases)}"
            needed |= {digest: whose for tag, digest in version.tags.items() if tag.startswith(BUNDLE_TAG)}
    stored = list(survey(settings.bundles, needed, unused_for_s=hours * 3600, now=time.time()))
    removed = [each for each in stored if yes and not each.needed and each.remove()]
    if yes:
        sweep(settings.bundles, older_than_s=24 * 3600, now=time.time())
    left = [each for each in stored if not each.needed and each not in removed]
    unused = [each for each in kept_in(settings.conversions) if time.time() - each.stat().st_mtime >= hours * 3600]
    conversions = {str(each): tree_bytes(each) for each in unused}
    if yes:
        for each in unused:
            remove_tree(each)
        sweep(settings.conversions, older_than_s=24 * 3600, now=time.time())

    def text() -> str:
        lines = [
            f"{each.path.name[:19]}…  {each.size_bytes / 1e6:9.1f} MB  {each.model:<24}  "
            f"{'removed' if each in removed else each.needed or 'needed by nobody'}"
            for each in stored
        ]
        if yes:
            lines.append(f"removed {len(removed)} of {len(stored)} bundles, {_megabytes(removed)}")
        else:
            lines.append(f"{len(left)} of {len(stored)} bundles are needed by nobody, {_megabytes(left)}")
        if unused:
            size = f"{sum(conversions.values()) / 1e6:.1f} MB"
            lines.append(f"{'removed' if yes else 'unused'}: {len(unused)} conversions of earlier exports, {size}")
        if not yes and (left or unused):
            lines.append("remove them with: seatrial gc --yes")
        return "\n".join(lines)

    def as_dicts(some: Sequence["Stored"]) -> list[dict[str, object]]:
        return [{**asdict(each), "path": str(each.path)} for each in some]

    needed_ones = [each for each in stored if each.needed]
    result = {
        "removed": as_dicts(removed),
        "unneeded": as_dicts(left),
        "needed": as_dicts(needed_ones),
        "conversions": [{"path": path, "size_bytes": size} for path, size in conversions.items()],
    }
    show(result, as_json=as_json, text=text)


def _megabytes(some: Sequence["Stored"]) -> str:
    return f"{sum(each.size_bytes for each in some) / 1e6:.1f} MB"
