"""The commands of serving: `serve`, `bench`, `tune`, `conformance`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from seatrial.cli import EXIT_FAILED, EXIT_NOT_ADMITTED, json_option, show

if TYPE_CHECKING:
    from seatrial_serving.bench import Protocol
    from seatrial_serving.server import Addresses


@click.command()
@click.argument("what", nargs=-1, required=True)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, help="REST; 0 takes a free port.  [default: 8000]")
@click.option("--grpc-port", type=int, help="gRPC; 0 takes a free port.  [default: 8001]")
@click.option("--metrics-port", type=int, help="Prometheus; 0 takes a free port.  [default: 8002]")
@click.option("--management-port", type=int, help="Loading and unloading; 0 takes a free port.  [default: REST's]")
@click.option("--target", help="Which target's bundle of a model version to serve.  [default: onnx-cpu]")
@click.option(
    "--fallback", "fallbacks", multiple=True, metavar="TARGET",
    help="Serve this target's bundle where that of --target cannot run here. Repeat for several, in order.",
)  # fmt: skip
@click.option("--engines", type=int, help="Engine processes for each model.  [default: 2, or 1 where memory is short]")
@click.option(
    "--tuned/--no-tuned", default=None, help="As `seatrial tune` advises, if it did on such a machine.  [default: no]"
)
@click.option(
    "--gateways", type=int, help="Processes that share the ports.  [default: 1, or 2 and more for small models]"
)
@click.option("--request-log/--no-request-log", default=None, help="One JSON line a request.  [default: on]")
@json_option
def serve(
    what: tuple[str, ...],
    *,
    host: str | None,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    management_port: int | None,
    target: str | None,
    fallbacks: tuple[str, ...],
    engines: int | None,
    tuned: bool | None,
    gateways: int | None,
    request_log: bool | None,
    as_json: bool,
) -> None:
    """Serve models over REST and gRPC (Open Inference Protocol v2), with metrics for Prometheus.

    WHAT is NAME@ALIAS (followed: when the alias moves, the server swaps without a failed request), NAME/VERSION, a
    bundle's directory, a Triton model repository (a directory of models with config.pbtxt or versions; all of it is
    served, shown as unverified: docs/triton.md), FILE.onnx (unverified too), or ENSEMBLE.toml (a graph of models that are
    served beside it: docs/protocols.md).

    \b
    Example:
      seatrial serve digits-cnn@champion
      seatrial serve model.onnx --http-port 9000
      seatrial serve /models
      curl localhost:8000/v2/models/digits-cnn
    """
    from seatrial.settings import load_settings
    from seatrial_serving.run import run

    settings = load_settings(
        registry={"target": target, "fallbacks": fallbacks or None},
        serving={
            "host": host,
            "http_port": http_port,
            "grpc_port": grpc_port,
            "metrics_port": metrics_port,
            "management_port": management_port,
            "engines": {"count": engines},
            "tuned": tuned,
            "gateways": gateways,
            "request_log": request_log,
        },
    )

    def ready(addresses: "Addresses") -> None:
        if as_json:
            click.echo(json.dumps({"event": "ready", **asdict(addresses)}))
            return
        tls = settings.serving.tls
        click.echo(f"serving {', '.join(addresses.models)}")
        click.echo(f"  REST     {'https' if tls.certificate else 'http'}://{addresses.http}")
        click.echo(f"  gRPC     {addresses.grpc}")
        click.echo(f"  metrics  {'https' if tls.metrics else 'http'}://{addresses.metrics}/metrics")

    run(what, settings, ready=ready)


@click.command()
@click.argument("url")
@click.option("--model", required=True, help="The model's name on the server.")
@click.option(
    "--protocol", type=click.Choice(["rest", "rest-json", "grpc"]), default="rest", show_default=True,
    help="REST with binary tensors, REST with JSON, or gRPC.",
)  # fmt: skip
@click.option("-c", "--callers", type=click.IntRange(1), default=8, show_default=True, help="Connections.")
@click.option("-s", "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="How long.")
@click.option("--rate", type=click.FloatRange(0.1), help="Open loop: so many requests a second, whatever happens.")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows in each request.")
@click.option("--samples", type=click.Path(path_type=Path, exists=True), help="An .npz with real inputs; else zeros.")
@json_option
def bench(
    url: str,
    *,
    model: str,
    protocol: "Protocol",
    callers: int,
    seconds: float,
    rate: float | None,
    rows: int,
    samples: Path | None,
    as_json: bool,
) -> None:
    """Put load on any Open Inference Protocol v2 server and say what it held: throughput, percentiles, errors.

    A server that asks who calls is shown the key in SEATRIAL_API_KEY. Over TLS, of gRPC too, URL begins with https.

    \b
    Example:
      seatrial bench localhost:8000 --model digits-cnn -c 32
      seatrial bench localhost:8001 --model digits-cnn --protocol grpc --rate 500
    """
    import uvloop

    from seatrial.settings import load_settings
    from seatrial_serving.bench import Plan
    from seatrial_serving.bench import bench as run

    plan = Plan(
        url=url,
        model=model,
        protocol=protocol,
        callers=callers,
        seconds=seconds,
        rate=rate,
        rows=rows,
        samples=samples,
        credentials=load_settings().credentials,
    )
    result = uvloop.run(run(plan))

    def text() -> str:
        failures = {outcome: count for outcome, count in result.outcomes.items() if outcome != "ok"}
        return (
            f"{result.per_second:,.0f} requests/s over {result.seconds:.1f} s, {callers} callers, {protocol}\n"
            f"p50 {result.p50_ms:.3f} ms  p90 {result.p90_ms:.3f} ms  p99 {result.p99_ms:.3f} ms  max {result.max_ms:.3f} ms\n"
            f"{result.failed} of {result.requests} failed{': ' + str(failures) if failures else ''}"
        )

    show(asdict(result), as_json=as_json, text=text)
    if result.failed:
        raise SystemExit(EXIT_FAILED)


@click.command()
@click.argument("what")
@click.option(
    "--p99-ms", type=click.FloatRange(0, min_open=True), required=True,
    help="The latency that 99 of 100 requests must keep, from when they were due.",
)  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="At most.")
@click.option(
    "--memory", "memory_mb", metavar="MB", type=click.FloatRange(1),
    help="Most memory of each server that is tried, in 10^6 bytes.  [default: a third of what is free]",
)  # fmt: skip
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows in each request.")
@click.option(
    "--traffic", "recording", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Recorded requests, one in JSON a line (docs/operations.md); else those that the bundle holds.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["rest", "rest-json", "grpc"]), default="rest", show_default=True,
    help="How it is asked, as with `seatrial bench`.",
)  # fmt: skip
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), help="Also write what was measured as HTML.")
@json_option
def tune(
    what: str,
    *,
    p99_ms: float,
    minutes: float,
    memory_mb: float | None,
    rows: int,
    recording: Path | None,
    protocol: "Protocol",
    page: Path | None,
    as_json: bool,
) -> None:
    """Search for the settings that answer the most requests on this machine within a bound on latency.

    Real servers are started and asked, one after the other: gateways, engines, threads, the largest batch, its delay. The
    best are then measured in turn with the settings that hold now, and advised only if they are faster beyond doubt. The
    time is a hard limit, and Ctrl-C ends it earlier: the best so far is the result. It goes into the evidence of a bundle,
    whose digest stays, and `seatrial serve --tuned` follows it. Ends with 3 if nothing that was tried keeps the bound. Use
    a machine that does nothing else.

    WHAT is anything that `seatrial serve` takes, of one model.

    \b
    Example:
      seatrial tune digits-cnn@champion --p99-ms 5
      seatrial tune encoder/3 --p99-ms 80 --minutes 20 --traffic requests.jsonl --page tuning.html
    """
    import msgspec

    from seatrial.settings import load_settings
    from seatrial_serving.tune.advice import keep, tuning
    from seatrial_serving.tune.page import draw
    from seatrial_serving.tune.summary import Progress, summary
    from seatrial_serving.tune.tune import tune as run
    from seatrial_serving.tune.tuned import Request

    request = Request(
        what=what, p99_ms=p99_ms, minutes=minutes, rows=rows, recording=recording, protocol=protocol,
        memory_bytes=int(memory_mb * 1e6) if memory_mb else None,
    )  # fmt: skip
    with Progress(minutes=minutes) as progress:
        tuned = run(request, load_settings(), tell=progress.tell)
    evidence, why_not = keep(tuned)
    if page is not None:
        draw(tuned, page)
    result = {**msgspec.to_builtins(tuning(tuned)), "evidence": evidence, "interrupted": tuned.interrupted}
    show(result, as_json=as_json, text=lambda: summary(tuned, evidence, why_not))
    if as_json and tuned.unmet:  # one document is enough
        click.get_current_context().exit(EXIT_NOT_ADMITTED)
    tuned.check()


@click.command()
@click.argument("url")
@click.option(
    "--grpc", metavar="HOST:PORT", default="", help="The server's gRPC end; without it, REST alone is judged."
)
@click.option("--model", default="", help="The model to ask.  [default: the first of the repository's index]")
@click.option(
    "--samples", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A v2 request in JSON with inputs to ask with, for a model that random ones do not suit.",
)  # fmt: skip
@click.option("--only", metavar="PATTERN", default="*", help="Only the checks whose id matches, such as 'binary.*'.")
@click.option("--hostile", is_flag=True, help="Also send what may hurt a server: not to one that is in use.")
@click.option("--strict", is_flag=True, help="Count advice too, not only what the protocol requires.")
@json_option
def conformance(
    url: str, *, grpc: str, model: str, samples: Path | None, only: str, hostile: bool, strict: bool, as_json: bool
) -> None:
    """Judge any Open Inference Protocol v2 server from outside: what holds, over REST and gRPC, clause by clause.

    Extensions are judged where the server advertises them. Nothing on the server is changed. Ends with 3 if a required
    check fails. A server that asks who calls is shown the key in SEATRIAL_API_KEY. Over TLS, of gRPC too, its address
    begins with https.

    \b
    Example:
      seatrial conformance localhost:8000 --grpc localhost:8001 --model digits-cnn
      seatrial conformance localhost:8000 --model digits-cnn --only 'errors.*' --json
    """
    from seatrial.settings import load_settings
    from seatrial_serving.conformance.suite import Plan, judge

    shown = load_settings().credentials
    plan = Plan(url=url, grpc=grpc, model=model, samples=samples, only=only, hostile=hostile, credentials=shown)
    report = judge(plan)
    show(report.document(strict=strict), as_json=as_json, text=lambda: report.text(color=sys.stdout.isatty()))
    if report.failing(strict=strict):
        raise SystemExit(EXIT_NOT_ADMITTED)
