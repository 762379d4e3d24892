"""The commands of `seatrial bento`."""

from pathlib import Path

import click

from seatrial.cli import json_option, show


@click.group()
def bento() -> None:
    """Run the same bundles in BentoML."""


@bento.command()
@click.argument("what")
@click.option(
    "--project", type=click.Path(path_type=Path), help="Keep the project here, a new directory, and do not build."
)
@json_option
def build(what: str, *, project: Path | None, as_json: bool) -> None:
    """Pack a bundle as a Bento, in BentoML's own store.

    WHAT is NAME@ALIAS, NAME/VERSION, or a bundle's directory.

    \b
    Example:
      seatrial bento build digits-cnn@champion
      bentoml containerize digits-cnn:latest
    """
    import tempfile

    from seatrial.settings import load_settings
    from seatrial_serving.bento.build import build as run
    from seatrial_serving.bento.project import write_project
    from seatrial_serving.sources import fetch, parse

    bundle = fetch(parse(what), load_settings())
    if project is not None:
        written = write_project(bundle, project.absolute())
        show({"project": str(written)}, as_json=as_json, text=lambda: f"cd {written} && bentoml serve")
        return
    with tempfile.TemporaryDirectory(prefix="seatrial-bento-") as place:
        tag = run(write_project(bundle, Path(place) / "project"))
    show(
        {"tag": tag, "digest": bundle.digest},
        as_json=as_json,
        text=lambda: f"built {tag}; serve it: bentoml serve {tag}",
    )


@bento.command()
@click.argument("what")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, help="0 takes a free port.  [default: 8000]")
@json_option
def serve(what: str, *, host: str | None, http_port: int | None, as_json: bool) -> None:
    """Serve a bundle with BentoML: v2 REST at /v2, BentoML's own API at /predict.

    WHAT is NAME@ALIAS, NAME/VERSION, or a bundle's directory. An alias is read once and not followed.

    \b
    Example:
      seatrial bento serve digits-cnn@champion
    """
    import asyncio
    import json
    import tempfile

    from seatrial.settings import load_settings
    from seatrial_serving.bento.build import prepare
    from seatrial_serving.bento.project import write_project
    from seatrial_serving.engines.proof import prove
    from seatrial_serving.runtime import run
    from seatrial_serving.sources import fetch, parse

    settings = load_settings(serving={"host": host, "http_port": http_port})
    bundle = fetch(parse(what), settings)
    prove(bundle)  # BentoML would restart a worker that refuses it, without end
    model = f"{bundle.manifest.model.name}/{bundle.manifest.model.version}"
    with tempfile.TemporaryDirectory(prefix="seatrial-bento-") as place:
        server = prepare(write_project(bundle, Path(place) / "project"), settings.serving)

        def ready() -> None:
            if as_json:
                click.echo(json.dumps({"event": "ready", "http": server.http, "models": [model]}))
                return
            click.echo(f"BentoML serves {model}")
            click.echo(f"  v2       http://{server.http}/v2/models/{bundle.manifest.model.name}")
            click.echo(f"  predict  http://{server.http}/predict")
            click.echo(f"  metrics  http://{server.http}/seatrial/metrics")

        asyncio.run(run(server.runtime, ready=ready))
