"""The commands `seatrial export` and `seatrial register`."""

from pathlib import Path

import click

from seatrial.cli import EXIT_NOT_ADMITTED, json_option, show
from seatrial.errors import InvalidSettings


@click.command()
@click.argument("model")
@click.option("--target", "targets", multiple=True, help="What to build for; repeat for several.  [default: onnx-cpu]")
@click.option(
    "--budget", "limits", multiple=True, metavar="KEY=VALUE",
    help="A limit: accuracy_drop (0.01 by default), p50_ms, p99_ms, size_mb, memory_mb, load_s at most, metric and "
    "throughput (rows a second) at least. Repeat for several.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice(["cheapest", "size", "accuracy"]), default="cheapest", show_default=True,
    help="What is wanted most within the budget: least time of a core for a row, the smallest file, or the best quality.",
)  # fmt: skip
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1), metavar="ROWS",
    help="Time calls of so many rows; latency counts at the smallest, cost at the largest.  [default: 1 and up to 32]",
)  # fmt: skip
@click.option(
    "--length", "lengths", multiple=True, type=click.IntRange(1),
    help="Time sequences of this length; both count at the largest.  [default: rows as they come]",
)  # fmt: skip
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True),
    help="Time for all of it: then the best that was proved until then is taken.  [default: no limit]",
)  # fmt: skip
@click.option(
    "--candidate", "names", multiple=True,
    help="Build this one too: onnx-cpu-int8-static-mse, onnx-cpu-int8-pruned-25-static, ... Repeat for several.",
)  # fmt: skip
@click.option(
    "--only", is_flag=True, help="Build what --candidate names and the plain FP32 of each target, and nothing else."
)
@click.option(
    "--search", type=click.IntRange(2), metavar="TRIALS",
    help="Try so many finer forms of static INT8 on some rows: how many activations to cut off, and how many layers to leave in "
    "float. The best are built, proved and timed as the others are. Where the model can be retrained, several sparsities are "
    "tried, too, by teaching each a little. 30 is a good number; a trial takes about as long as a run "
    "over 512 rows. Needs the extra 'search'.",
)  # fmt: skip
@click.option(
    "--samples", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Rows to judge by, for a model that came without labelled data: .npz, Parquet, or .txt with a text a line.",
)  # fmt: skip
@click.option(
    "--probe", is_flag=True,
    help="Report also how the chosen variant and the source take spoiled and adversarial rows, and on what in a row their "
    "answers hang. Takes minutes.",
)  # fmt: skip
@click.option(
    "--on", "places", multiple=True, metavar="[TARGET=]URL|[TARGET=]KEY=VALUE,...",
    help="Verify and time on another machine: at the address of a `seatrial agent`, or on a Kubernetes node with these labels, "
    "where one is started for it. For all targets, or for one. Repeat for several.",
)  # fmt: skip
@click.option("--trust", is_flag=True, help="Open a pickled model, which runs its author's code, in a child process.")
@json_option
def export(
    *,
    model: str,
    targets: tuple[str, ...],
    limits: tuple[str, ...],
    objective: str,
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    minutes: float | None,
    names: tuple[str, ...],
    only: bool,
    search: int | None,
    samples: Path | None,
    probe: bool,
    places: tuple[str, ...],
    trust: bool,
    as_json: bool,
) -> None:
    """Build variants of a model version, prove and measure them, and make the cheapest within the budget its bundle.

    MODEL is NAME/VERSION, NAME@ALIAS or models:/NAME/VERSION. Where no variant meets the budget, the exit code is 3 and
    the report is written all the same.

    \b
    Example:
      seatrial export models:/digits-cnn/1
      seatrial export digits-cnn/1 --target onnx-cpu --target openvino-cpu
      seatrial export my-model/3 --samples rows.npz --budget p99_ms=5 --budget size_mb=20
      seatrial export digits-cnn/1 --search 30 --minutes 20
      seatrial export digits-cnn/1 --only --candidate onnx-cpu-int8-pruned-25-static
      seatrial export my-encoder/1 --batch 1 --batch 8 --length 128 --objective accuracy --budget throughput=40
      seatrial export digits-cnn/1 --target onnx-cuda --on https://gpu.example.com:9500
    """
    import msgspec

    from seatrial.registry import ModelRef
    from seatrial.settings import load_settings
    from seatrial_export.candidate import CANDIDATES, DEFAULT_TARGETS, named
    from seatrial_export.choose import Budget, Objective
    from seatrial_export.contest import Sizes
    from seatrial_export.export import attempt
    from seatrial_export.remote.reach import On
    from seatrial_export.request import Request
    from seatrial_export.summary import Progress, summary

    if only and not names:
        raise click.UsageError("--only wants the candidates that it is about: --candidate NAME")
    try:
        asked = named(names)
        usual = [each for each in CANDIDATES if not (only and each.lossy)]
        request = Request(
            ref=ModelRef.parse(model),
            targets=tuple(dict.fromkeys((*(targets or DEFAULT_TARGETS), *(each.target for each in asked)))),
            budget=Budget.parse(limits),
            objective=Objective(objective),
            sizes=Sizes(batches=batches, lengths=lengths),
            samples=samples,
            trust=trust,
            minutes=minutes,
            probe=probe,
            search=search or 0,
            on=tuple(map(On.parse, places)),
            candidates=tuple(dict.fromkeys((*usual, *asked))),
        )
    except InvalidSettings as error:
        raise click.UsageError(str(error)) from error
    with Progress() as progress:
        exported = attempt(request, load_settings(), tell=progress.tell)
    result = {**msgspec.to_builtins(exported.report), "page": exported.page, "unmet": exported.unmet}
    show(result, as_json=as_json, text=lambda: summary(exported))
    if as_json and exported.unmet:  # one document is enough
        click.get_current_context().exit(EXIT_NOT_ADMITTED)
    exported.check()


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free one and prints it.  [default: 9500]")
@json_option
def agent(*, host: str | None, port: int | None, as_json: bool) -> None:
    """Verify and time variants on this machine for exports that run on others: `seatrial export --on`.

    Runs what it is sent, as its own user: it asks for a token, SEATRIAL_EXPORT__AGENT__TOKEN or the file
    export.agent.token_file, and listens beyond this machine with TLS alone (serving.tls). One export at a time. Ctrl-C ends it.

    \b
    Example:
      SEATRIAL_EXPORT__AGENT__TOKEN=$(openssl rand -hex 32) seatrial agent
      seatrial agent --host 0.0.0.0 --port 9500
    """
    from seatrial.settings import load_settings
    from seatrial_export.remote.run import serve

    settings = load_settings(export={"agent": {"host": host, "port": port}})

    def ready(url: str) -> None:
        result = {"ready": True, "url": url}
        show(result, as_json=as_json, text=lambda: f"measuring for others at {url}\nCtrl-C ends it")

    serve(settings, ready=ready)


@click.command()
@click.argument("source")
@click.option("--name", required=True, help="The registered model that gets a new version.")
@click.option(
    "--example", "examples", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An .npz with a few rows of inputs, by name; code is traced with them. Repeat with other sizes: what differs is "
    "dynamic.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(min=2), help="The longest text that a Hugging Face encoder need take."
)
@click.option(
    "--trust", is_flag=True, help="Run somebody's code, in a child process, to get a code-free program from it."
)
@json_option
def register(
    *, source: str, name: str, examples: tuple[Path, ...], max_tokens: int | None, trust: bool, as_json: bool
) -> None:
    """Make a model from elsewhere a model version: FILE.onnx, FILE.pt2, FILE.pt (TorchScript), the folder of a Hugging
    Face encoder, an MLflow URI, or module:factory.

    What is registered is code-free, whatever it came from: an ONNX file or a torch.export program.

    \b
    Example:
      seatrial register resnet.onnx --name resnet
      seatrial register ./all-MiniLM-L6-v2 --name minilm --max-tokens 128
      seatrial register my_package.models:build --name mine --example rows.npz --trust
    """
    from seatrial.settings import load_settings
    from seatrial_export.register import register as run

    version = run(
        source, name=name, settings=load_settings(), examples=examples, trust=trust, max_tokens=max_tokens or 0
    )
    show(
        {"model": str(version), "name": version.name, "version": version.version},
        as_json=as_json,
        text=lambda: f"{version}\nnext     seatrial export {version}",
    )
