"""The commands of `seatrial triton`."""

from pathlib import Path

import click

from seatrial.cli import json_option, show


@click.group()
def triton() -> None:
    """Run the same bundles behind NVIDIA Triton."""


@triton.command()
@json_option
def install(*, as_json: bool) -> None:
    """Put the real tritonserver into a virtual environment of its own (from PyPI; half a gigabyte, a minute).

    \b
    Example:
      seatrial triton install
    """
    from seatrial.settings import load_settings
    from seatrial_serving.triton.environment import TritonEnvironment

    environment = TritonEnvironment.of(load_settings())
    if not environment.installed:
        environment.install(tell=lambda words: click.echo(words, err=True))
    show({"environment": str(environment.path)}, as_json=as_json, text=lambda: f"Triton is in {environment.path}")


@triton.command()
@click.argument("what", nargs=-1, required=True)
@click.option("--to", "to", type=click.Path(path_type=Path), required=True, help="The model repository to write into.")
@click.option("--digest", help="The content digest that the bundle must have; with one WHAT.")
@click.option(
    "--backend", type=click.Choice(["onnxruntime", "python"]), default="onnxruntime", show_default=True,
    help="onnxruntime: the graph alone, for NVIDIA's container. python: the bundle, run by our engine.",
)  # fmt: skip
@click.option("--gpu", is_flag=True, help="Instances on the GPU instead of the CPU.")
@click.option("--instances", type=click.IntRange(1), default=2, show_default=True, help="Instances of each model.")
@json_option
def repository(
    what: tuple[str, ...], *, to: Path, digest: str | None, backend: str, gpu: bool, instances: int, as_json: bool
) -> None:
    """Write a Triton model repository from bundles.

    WHAT is NAME@ALIAS, NAME/VERSION, or a bundle's directory.

    \b
    Example:
      seatrial triton repository digits-cnn@champion --to ./models
      tritonserver --model-repository=./models
    """
    from seatrial.errors import BundleCorrupt
    from seatrial.settings import load_settings
    from seatrial_serving.sources import fetch, parse
    from seatrial_serving.triton.repository import Backend, Hardware, write_repository

    if digest and len(what) > 1:
        raise click.UsageError("--digest goes with one WHAT")
    settings = load_settings()
    bundles = [fetch(parse(each), settings) for each in what]
    if digest and bundles[0].digest != digest:
        raise BundleCorrupt(f"{what[0]} is {bundles[0].digest}, {digest} was asked for; nothing was written")
    hardware = Hardware.GPU if gpu else Hardware.CPU
    written = write_repository(bundles, to, backend=Backend(backend), hardware=hardware, instances=instances)
    result = [{"path": str(path), "digest": each.digest} for path, each in zip(written, bundles, strict=True)]
    show(result, as_json=as_json, text=lambda: "\n".join(f"{each['path']}  {each['digest']}" for each in result))


@triton.command()
@click.argument("what", nargs=-1, required=True)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, help="REST; 0 takes a free port.  [default: 8000]")
@click.option("--grpc-port", type=int, help="gRPC; 0 takes a free port.  [default: 8001]")
@click.option("--metrics-port", type=int, help="Prometheus; 0 takes a free port.  [default: 8002]")
@click.option("--instances", type=click.IntRange(1), default=2, show_default=True, help="Instances of each model.")
@json_option
def serve(
    what: tuple[str, ...],
    *,
    host: str | None,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    instances: int,
    as_json: bool,
) -> None:
    """Serve bundles with the real tritonserver: the Python backend, running our own engine.

    WHAT is NAME@ALIAS, NAME/VERSION, or a bundle's directory. An alias is read once and not followed.

    \b
    Example:
      seatrial triton serve digits-cnn@champion
    """
    import asyncio
    import json
    import tempfile

    from seatrial.machine import cores
    from seatrial.settings import load_settings
    from seatrial_serving.engines.proof import prove
    from seatrial_serving.runtime import run
    from seatrial_serving.sources import fetch, parse
    from seatrial_serving.triton.environment import TritonEnvironment
    from seatrial_serving.triton.repository import Backend, write_repository
    from seatrial_serving.triton.server import prepare

    settings = load_settings(
        serving={"host": host, "http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    )
    bundles = [fetch(parse(each), settings) for each in what]
    for each in bundles:
        prove(each)  # else the reason would be somewhere in Triton's log
    models = [f"{each.manifest.model.name}/{each.manifest.model.version}" for each in bundles]

    with tempfile.TemporaryDirectory(prefix="seatrial-triton-") as place:
        models_folder = Path(place) / "models"
        threads = max(1, cores() // instances)
        write_repository(bundles, models_folder, backend=Backend.PYTHON, instances=instances, threads=threads)
        server = prepare(TritonEnvironment.of(settings), models_folder, settings.serving)

        def ready() -> None:
            if as_json:
                addresses = {"http": server.http, "grpc": server.grpc, "metrics": server.metrics}
                click.echo(json.dumps({"event": "ready", **addresses, "models": models}))
                return
            click.echo(f"Triton serves {', '.join(models)}")
            click.echo(f"  REST     http://{server.http}")
            click.echo(f"  gRPC     {server.grpc}")
            click.echo(f"  metrics  http://{server.metrics}/metrics")

        asyncio.run(run(server.runtime, ready=ready))
