"""The digits model behind other servers, each as its documentation advises: two instances of one thread, with batching.

A server is started anew for its turn in each round, so that no idle loop of another takes its cores; it must give the answer
of the raw session before it is asked for more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import httpx
import numpy as np

from benchmarks import clients
from benchmarks.bench import Bench, Start, case, seatrial, triton
from benchmarks.clients import Post, v2
from benchmarks.intervals import Promise, promises
from benchmarks.models import DIGITS, graph, ones, request
from benchmarks.peer import PEERS
from benchmarks.rounds import Lost, Rounds, Trial
from benchmarks.started import Running
from benchmarks.tables import table
from seatrial.bundle import Bundle
from seatrial.protocol import InferRequest
from seatrial.tensors import Array
from seatrial_serving.bench import Result, as_grpc
from seatrial_serving.engines.onnxruntime import OnnxRuntime
from seatrial_serving.open_inference import messages

CALLERS = (1, 8, 32, 64)
CLASSES = 10
WARM_UP_CALLERS, WARM_UP_S = 8, 1

Ask: TypeAlias = Callable[[Running, int, int], Result]
"""Of a running server, so many callers for so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A server and one way to ask it. `try_once` returns the logits."""

    name: str
    server: str
    start: Start
    ask: Ask
    try_once: Callable[[Running], Array]


def _over_rest(name: str, start: Start, post: Post, *, server: str) -> Way:
    def ask(running: Running, callers: int, seconds: int) -> Result:
        return clients.over_rest(running.addresses["http"], post, callers=callers, seconds=seconds)

    def try_once(running: Running) -> Array:
        url = f"http://{running.addresses['http']}{post.path}"
        answer = httpx.post(url, content=post.body, headers=dict(post.headers), timeout=30)
        if answer.is_error:
            raise Lost(f"{name} answers {answer.status_code}: {answer.text[:300]}")
        return _logits(answer)

    return Way(name=name, server=server, start=start, ask=ask, try_once=try_once)


def _over_grpc(name: str, start: Start, asked: InferRequest, *, server: str) -> Way:
    def ask(running: Running, callers: int, seconds: int) -> Result:
        return clients.over_grpc(running.addresses["grpc"], DIGITS, asked, callers=callers, seconds=seconds)

    def try_once(running: Running) -> Array:
        answer = messages.ModelInferResponse.FromString(
            clients.ask_once(running.addresses["grpc"], as_grpc(asked, DIGITS))
        )
        raw = answer.raw_output_contents
        return np.frombuffer(raw[0], np.float32) if raw else np.array(answer.outputs[0].contents.fp32_contents)

    return Way(name=name, server=server, start=start, ask=ask, try_once=try_once)


def _logits(answer: httpx.Response) -> Array:
    """What a server says of one row, however it wraps it: ten numbers side by side."""
    try:
        found = _ten_numbers(answer.json())
    except ValueError:
        return np.frombuffer(answer.content[-4 * CLASSES :], np.float32)
    if found is None:
        raise Lost(f"no {CLASSES} numbers in {answer.text[:300]}")
    return np.array(found)


def _ten_numbers(document: Any) -> list[float] | None:
    if isinstance(document, list) and len(document) == CLASSES and isinstance(document[0], float):
        return document
    inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return next((found for each in inner if (found := _ten_numbers(each)) is not None), None)


# The section


def measure(bench: Bench) -> str:
    bundle = bench.models.digits
    ways = list(_ways(bundle, bench))
    rounds, started = Rounds(), defaultdict[str, list[tuple[float, int]]](list)
    expected = OnnxRuntime({"main": graph(bundle)}, signature=bundle.manifest.signature, options={}, threads=1).predict(
        ones(bundle.manifest.signature)
    )["logits"]
    task = bench.progress.add_task("peers", total=bench.rounds * len(ways))
    for number in range(bench.rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            for trial in _turn(way, bench, expected, started[way.server]):
                rounds.note(trial)
            bench.progress.advance(task)
    names, cases = [way.name for way in ways], [case(callers) for callers in CALLERS]
    parts = (
        promises(_promises(rounds)),
        rounds.throughput(names, cases),
        rounds.latency(names, cases),
        _startup(started),
        rounds.losses(),
    )
    return "\n\n".join(filter(None, parts))


def _ways(bundle: Bundle, bench: Bench) -> Iterator[Way]:
    asked = request(bundle.manifest.signature)
    for server, start in (("Seatrial", seatrial(bundle)), ("Triton", triton(bundle))):
        yield _over_rest(f"{server}, v2 binary", start, v2(DIGITS, asked), server=server)
        yield _over_grpc(f"{server}, gRPC", start, asked, server=server)
    for peer in PEERS:
        start = partial(peer.start, graph(bundle), bench.place)
        yield _over_rest(f"{peer.name}, {peer.speaks.partition(',')[0]}", start, peer.post(asked), server=peer.name)
        if peer.grpc:
            yield _over_grpc(f"{peer.name}, gRPC", start, asked, server=peer.name)


def _turn(way: Way, bench: Bench, expected: Array, started: list[tuple[float, int]]) -> Iterator[Trial]:
    """The server is there while its trials are taken; each of them says so if it is not."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(way.start())
            given = way.try_once(running)
            if not np.allclose(given, expected.ravel(), atol=1e-3):
                raise Lost(f"it answers {given}, the raw session {expected.ravel()}")
            way.ask(running, WARM_UP_CALLERS, WARM_UP_S)
        except Lost as lost:
            yield from (Trial(of=way.name, case=case(callers), take=partial(_lose, lost)) for callers in CALLERS)
            return
        started.append((running.ready_s, running.own_bytes))
        for callers in CALLERS:
            yield Trial(of=way.name, case=case(callers), take=partial(way.ask, running, callers, bench.seconds))


def _lose(lost: Lost) -> Result:
    raise lost


def _startup(started: Mapping[str, Sequence[tuple[float, int]]]) -> str:
    versions = {peer.name: ", ".join(peer.requires) for peer in PEERS}
    rows = [
        [
            server,
            versions.get(server, ""),
            f"{median(s for s, _ in found):.1f}",
            f"{median(b for _, b in found) / 1e6:,.0f}",
        ]
        for server, found in started.items()
        if found
    ]
    return table(["", "installed", "ready after, s", "PSS MB under load"], rows)


def _promises(rounds: Rounds) -> list[Promise]:
    best = max(
        (f"{peer.name}, gRPC" for peer in PEERS if peer.grpc),
        key=lambda name: max(rounds.values(name, "c=32"), default=0),
    )
    found = rounds.ratio("Seatrial, gRPC", best, "c=32")
    return [Promise(f"gRPC, c=32: >= 2 of the best Python peer's ({best})", found, at_least=2)]
