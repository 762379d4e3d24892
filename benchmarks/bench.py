"""What every section is given, and how the servers are started that most of them ask."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from rich.progress import Progress

from benchmarks import clients
from benchmarks.clients import Post
from benchmarks.models import Models
from benchmarks.rounds import Trial
from benchmarks.started import Revived, Running, started
from seatrial.bundle import Bundle
from seatrial.protocol import InferRequest

PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """`place` is where a section may keep what the next run can use again."""

    models: Models
    place: Path
    rounds: int
    seconds: int
    progress: Progress


Start: TypeAlias = Callable[[], AbstractContextManager[Running]]


def seatrial(bundle: Bundle, *options: str) -> Start:
    """With all defaults but `options`: validation, metrics and one log line a request."""
    return partial(started, "seatrial", "serve", str(bundle.path), *PORTS, *options)


def triton(bundle: Bundle) -> Start:
    """The real tritonserver: two instances of one thread each, dynamic batching, no request log."""
    return partial(started, "seatrial", "triton", "serve", str(bundle.path), *PORTS)


def rest(of: str, server: Revived, post: Post, callers: int, seconds: int) -> Trial:
    return Trial(
        of=of,
        case=case(callers),
        take=lambda: clients.over_rest(server.address("http"), post, callers=callers, seconds=seconds),
    )


def over_grpc(of: str, server: Revived, model: str, request: InferRequest, callers: int, seconds: int) -> Trial:
    return Trial(
        of=of,
        case=case(callers),
        take=lambda: clients.over_grpc(server.address("grpc"), model, request, callers=callers, seconds=seconds),
    )


def case(callers: int) -> str:
    return f"c={callers}"
