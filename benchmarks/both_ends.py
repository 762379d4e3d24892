"""Good at both ends, with one and the same default configuration: a text encoder and an image model.

One caller: the server's median against that of the raw session with all cores. Many callers: its throughput against the best
that the raw engine reaches in any way of dividing the cores. The best way is that with the best median over all rounds; its
ratio is then taken round by round.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bench import Bench, case, rest, seatrial
from benchmarks.clients import v2
from benchmarks.intervals import Promise, promises
from benchmarks.models import graph, request
from benchmarks.raw import CASE, Raw
from benchmarks.rounds import Rounds, Trial, p50_ms, play
from benchmarks.started import Revived
from benchmarks.tables import table
from seatrial.bundle import Bundle
from seatrial.machine import cores

OURS = "Seatrial"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """`callers` put a model under load, of which `share` of the best raw throughput is promised; `slower` is how much
    slower than the raw session a lone request may be."""

    title: str
    callers: int
    share: float
    slower: float
    rows: tuple[int, ...]
    """Batches that the raw engine is tried with."""


TEXT = End(title="MiniLM-L6, 32 tokens", callers=32, share=0.97, slower=1.15, rows=(4, 8, 16))
IMAGE = End(title="ResNet-18, 224x224", callers=8, share=0.96, slower=1.1, rows=(1, 2, 4, 8))


def measure(bench: Bench) -> str:
    parts = [_measure(bench, TEXT, bench.models.minilm), _measure(bench, IMAGE, bench.models.resnet18)]
    return "\n\n".join(parts)


def _measure(bench: Bench, end: End, bundle: Bundle) -> str:
    ways = _ways(end)
    with Revived(seatrial(bundle)) as server:
        trials = list(_trials(bench, end, bundle, server, ways))
        rounds = play(trials, rounds=bench.rounds, progress=bench.progress, title=end.title)
    return "\n\n".join(filter(None, (f"### {end.title}", _found(rounds, end, ways), rounds.losses())))


def _ways(end: End) -> list[Raw]:
    """All cores for one row; then a session a core, and all cores together, with every batch."""
    alone = Raw(callers=1, threads=cores(), rows=1)
    a_core = [Raw(callers=cores(), threads=1, rows=rows) for rows in end.rows]
    together = [Raw(callers=1, threads=cores(), rows=max(end.rows))]
    return list(dict.fromkeys((alone, *a_core, *together)))


def _trials(bench: Bench, end: End, bundle: Bundle, server: Revived, ways: list[Raw]) -> Iterator[Trial]:
    post = v2(bundle.manifest.model.name, request(bundle.manifest.signature))
    yield rest(OURS, server, post, 1, bench.seconds)
    yield rest(OURS, server, post, end.callers, bench.seconds)
    for way in ways:
        yield way.trial(graph(bundle), seconds=bench.seconds)


def _found(rounds: Rounds, end: End, ways: list[Raw]) -> str:
    alone = str(ways[0])
    best = max((str(way) for way in ways), key=lambda way: rounds.median(way, CASE))
    one, many = case(1), case(end.callers)
    loaded = rounds.ratio(OURS, best, many, to_case=CASE)
    lone = rounds.ratio(OURS, alone, one, p50_ms, to_case=CASE)
    held = promises(
        [
            Promise(f"{many}: >= {end.share} of the best raw throughput ({best})", loaded, at_least=end.share),
            Promise(f"c=1: p50 <= {end.slower} of the raw session's with all cores", lone, at_most=end.slower),
        ]
    )
    rows = [
        [name, f"{rounds.median(name, under):,.1f}", f"{rounds.median(name, under, p50_ms):.2f}"]
        for name, under in ((OURS, one), (OURS, many), *((str(way), CASE) for way in ways))
    ]
    for row, under in zip(rows, (one, many), strict=False):
        row[0] += f", {under}"
    return f"{held}\n\n" + table(["", "rows/s", "p50 ms of a request or call"], rows)
