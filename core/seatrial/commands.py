"""The subcommands that need no component: `doctor` and `bundle`."""

from contextlib import closing
from pathlib import Path

import click

from seatrial.cli import EXIT_FAILED, json_option, show


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
