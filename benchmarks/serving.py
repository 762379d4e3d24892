"""The digits model, one row a request: our server, Triton on the same bundle, plain FastAPI, bare servers, the raw session.

All servers run from the beginning to the end, idle but for the one that is being asked. Ours does all that it does by
default: it validates, counts, and writes one log line a request. The clients run on the same cores as the servers.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.bench import Bench, case, over_grpc, rest, seatrial, triton
from benchmarks.clients import v2
from benchmarks.intervals import Promise, promises
from benchmarks.models import graph, request
from benchmarks.peer import FASTAPI
from benchmarks.raw import CASE, Raw
from benchmarks.rounds import Rounds, Trial, p50_ms, p99_ms, play
from benchmarks.started import Revived, started
from seatrial.machine import cores
from seatrial.settings import Serving
from seatrial_serving.gateway import how_many

CALLERS = (1, 8, 32, 64)
LOADED = 32
RAW = (
    Raw(callers=1, threads=1, rows=1),
    Raw(callers=2, threads=1, rows=1),
    Raw(callers=2, threads=1, rows=64),
)
OURS, TRITON, HELLO = "Seatrial, REST binary", "Triton, REST binary", "bare ASGI"
ONE_GATEWAY = "Seatrial, one gateway, REST binary"
OUR_JSON, TRITON_JSON, PLAIN = "Seatrial, REST JSON", "Triton, REST JSON", "plain FastAPI, two workers, JSON"
OUR_GRPC, TRITON_GRPC, HELLO_GRPC = "Seatrial, gRPC", "Triton, gRPC", "bare grpc.aio"
NAMES = (OURS, ONE_GATEWAY, TRITON, HELLO, OUR_JSON, TRITON_JSON, PLAIN, OUR_GRPC, TRITON_GRPC, HELLO_GRPC)


def measure(bench: Bench) -> str:
    with ExitStack() as running:
        trials = list(_trials(bench, running))
        rounds = play(trials, rounds=bench.rounds, progress=bench.progress, title="serving")
    cases = [case(callers) for callers in CALLERS]
    parts = (
        promises(_promises(rounds)),
        rounds.throughput(NAMES, cases),
        rounds.latency(NAMES, cases),
        rounds.throughput([str(raw) for raw in RAW], [CASE]).replace("requests/s", "rows/s"),
        rounds.losses(),
    )
    return "\n\n".join(filter(None, parts))


def _trials(bench: Bench, running: ExitStack) -> Iterator[Trial]:
    bundle, seconds = bench.models.digits, bench.seconds
    name, asked = bundle.manifest.model.name, request(bundle.manifest.signature)
    ours, theirs = running.enter_context(Revived(seatrial(bundle))), running.enter_context(Revived(triton(bundle)))
    one = running.enter_context(Revived(seatrial(bundle, "--gateways", "1")))
    gateways = how_many(Serving(), cores=cores())
    hello = running.enter_context(Revived(partial(started, "benchmarks.hello", str(gateways))))
    fastapi = running.enter_context(Revived(partial(FASTAPI.start, graph(bundle), bench.place)))
    for callers in CALLERS:
        for of, server in ((OURS, ours), (ONE_GATEWAY, one), (TRITON, theirs), (HELLO, hello)):
            yield rest(of, server, v2(name, asked), callers, seconds)
        for of, server in ((OUR_GRPC, ours), (TRITON_GRPC, theirs), (HELLO_GRPC, hello)):
            yield over_grpc(of, server, name, asked, callers, seconds)
    for of, server in ((OUR_JSON, ours), (TRITON_JSON, theirs), (PLAIN, fastapi)):
        yield rest(of, server, v2(name, asked._replace(parameters={}), binary=False), LOADED, seconds)
    for raw in RAW:
        yield raw.trial(graph(bundle), seconds=seconds)


def _promises(rounds: Rounds) -> list[Promise]:
    c32, c64 = rounds.ratio(OURS, TRITON, "c=32"), rounds.ratio(OURS, TRITON, "c=64")
    grpc, alone = rounds.ratio(OUR_GRPC, HELLO_GRPC, "c=32"), str(RAW[0])
    above_raw_ms = rounds.difference(OURS, alone, "c=1", p50_ms, to_case=CASE)
    loaded = ("c=32", "c=64")
    return [
        Promise("REST, c=32: >= 1.35 of Triton's requests/s, surely 1.2", c32, at_least=1.35, surely=1.2),
        Promise("REST, c=64: >= 1.25 of Triton's requests/s, surely 1.1", c64, at_least=1.25, surely=1.1),
        *(Promise(f"REST, {c}: p99 <= Triton's", rounds.ratio(OURS, TRITON, c, p99_ms), at_most=1) for c in loaded),
        *(Promise(f"REST, {c}: >= 0.55 of bare ASGI", rounds.ratio(OURS, HELLO, c), at_least=0.55) for c in loaded),
        Promise("JSON, c=32: >= 2.5 of plain FastAPI", rounds.ratio(OUR_JSON, PLAIN, "c=32"), at_least=2.5),
        Promise("JSON, c=32: >= 0.9 of Triton's", rounds.ratio(OUR_JSON, TRITON_JSON, "c=32"), at_least=0.9),
        Promise("gRPC, c=32: >= 0.6 of an empty grpc.aio handler", grpc, at_least=0.6),
        Promise("REST, c=1: p50 <= 0.30 ms above the raw session's", above_raw_ms, at_most=0.3),
        Promise("REST, c=1: p50 < Triton's", rounds.ratio(OURS, TRITON, "c=1", p50_ms), at_most=1),
        Promise("not promised: gRPC, c=32, to Triton's", rounds.ratio(OUR_GRPC, TRITON_GRPC, "c=32"), at_least=0),
    ]
