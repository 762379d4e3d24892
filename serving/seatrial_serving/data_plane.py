"""What every door calls: the models that are served, by name, version and alias, and one way to ask them.

A door translates; timing, ids, outcomes, metrics and the request log live here, once for all doors.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from seatrial.bundle import MAIN
from seatrial.errors import (
    BadRequest,
    DeadlinePassed,
    Forbidden,
    NotReady,
    Overloaded,
    QuotaExceeded,
    Refused,
    SeatrialError,
    TooLarge,
    Unauthenticated,
    UnknownModel,
)
from seatrial.protocol import PRIORITY, TIMEOUT, InferRequest
from seatrial.settings import Serving
from seatrial_monitoring.metrics import Counted, ServingMetrics
from seatrial_monitoring.request_log import Record, RequestLog
from seatrial_monitoring.series import Outcome, Protocol, Rejection
from seatrial_serving.access.caller import CALLER, Act, Caller
from seatrial_serving.access.guard import Guard
from seatrial_serving.cache import ResponseCache, fingerprint
from seatrial_serving.generation import Generation, State
from seatrial_serving.repository import Listed, ModelState, Repository
from seatrial_serving.sequences import steps
from seatrial_serving.workers import Outputs, Request

ALIAS = "@"

A = TypeVar("A")

log = logging.getLogger(__name__)


class Exchange:
    """One request on its way through: who asked what, when, and how it ended. Doors begin and end it."""

    alias: str = ""
    """The one that was asked for, where that stood in a place of its own."""
    request_id: str = ""
    generation: Generation | None = None
    outcome: Outcome = Outcome.OK
    error: str = ""
    waiting: Request | None = None
    cached: bool = False
    """It was answered with what an earlier one was answered."""
    caller: Caller | None = None
    """None where nobody is asked who they are."""

    def __init__(self, protocol: Protocol, model: str, version: str) -> None:
        self.protocol, self.model, self.version = protocol, model, version
        self.arrived = time.monotonic()

    @property
    def asker(self) -> str:
        """The caller's name; empty where nobody is asked."""
        return self.caller.name if self.caller is not None else ""

    def leave(self) -> None:
        """The caller has gone: nobody wants the answer."""
        if self.waiting is not None:
            self.waiting.answer.cancel()

    @property
    def left(self) -> bool:
        """Whether it ended because the caller went."""
        return self.waiting is not None and self.waiting.answer.cancelled()

    @property
    def queue_s(self) -> float:
        """Time between arrival and the moment an engine got it; 0 if none did."""
        waiting = self.waiting
        return waiting.started - waiting.arrived if waiting is not None and waiting.started else 0.0


@dataclass(slots=True, eq=False)
class DataPlane:
    settings: Serving
    metrics: ServingMetrics
    log: RequestLog | None = None
    repository: Repository | None = None
    """None where what is served is fixed."""
    guard: Guard | None = None
    """None where everybody may do everything."""
    starting: bool = False
    """True while what was asked for at the start is not all up: readiness says no, while what is up is served."""
    everywhere: Callable[[], Awaitable[Counted]] | None = None
    """What all gateways have counted together; None where this is the only one."""
    accepting: bool = True
    """False once draining began: readiness says no, while requests are still answered."""
    cache: ResponseCache | None = field(init=False)
    _installed: dict[Generation, None] = field(default_factory=dict)
    """All of them, the last one installed last."""
    _defaults: dict[str, Generation] = field(default_factory=dict)
    _versions: dict[tuple[str, str], Generation] = field(default_factory=dict)
    _aliases: dict[tuple[str, str], Generation] = field(default_factory=dict)
    _expected: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.cache = ResponseCache(self.settings.cache_bytes) if self.settings.cache_bytes else None

    # Which models there are

    def expect(self, name: str) -> None:
        """Without a generation of `name`, the server as a whole is not ready."""
        self._expected.add(name)
        self.metrics.expect(name)

    def forget(self, name: str) -> None:
        """The opposite of `expect`."""
        self._expected.discard(name)

    @property
    def expected(self) -> set[str]:
        return self._expected

    def install(self, generation: Generation, *, default: bool) -> None:
        """From now on, requests go to `generation`: for its version, its alias, and the bare name if `default`, or as long
        as that means nothing."""
        self.place(generation, default=default or generation.identity.name not in self._defaults)

    def place(self, generation: Generation, *, default: bool) -> None:
        """The same, and the bare name only if `default`."""
        identity = generation.identity
        self._installed.pop(generation, None)
        self._installed[generation] = None
        self._versions[identity.name, identity.version] = generation
        if identity.alias:
            self._aliases[identity.name, identity.alias] = generation
        if default:
            self._defaults[identity.name] = generation

    def installed(self) -> list[tuple[Generation, bool]]:
        """All that take requests, in their order, and whether the bare name means them: to `place` them again elsewhere."""
        return [(each, self._defaults.get(each.identity.name) is each) for each in self._installed]

    def remove(self, generation: Generation) -> None:
        """Send no request to `generation` any more. What it shared with another, a version or an alias, is that one's then."""
        self._installed.pop(generation, None)
        for table, key_of in ((self._versions, _version), (self._aliases, _alias)):
            key = key_of(generation)
            if table.get(key) is generation:
                heir = next((each for each in reversed(self._installed) if key_of(each) == key), None)
                if heir is None:
                    del table[key]
                else:
                    table[key] = heir
        if self._defaults.get(generation.identity.name) is generation:
            del self._defaults[generation.identity.name]

    def find(self, name: str, version: str = "", *, alias: str = "") -> Generation:
        """What is asked for by name, and version or alias. A version that begins with "@" is an alias: so they are written
        where a protocol has room for a version only.

        Raises `UnknownModel`, `NotReady` for a model that is still to come, or `Forbidden`.
        """
        if self.guard is not None:
            self.guard.check(CALLER.get(), Act.READ, name)
        return self.resolve(name, version, alias=alias)

    def resolve(self, name: str, version: str = "", *, alias: str = "") -> Generation:
        """The same for the server itself, whose rights nobody asks for."""
        if version and version[0] == ALIAS:
            version, alias = "", version[1:]
        if version:
            found = self._versions.get((name, version))
        elif alias:
            found = self._aliases.get((name, alias))
        else:
            found = self._defaults.get(name)
        if found is not None:
            return found
        if name in self._expected and name not in self._defaults:
            raise NotReady(f"model '{name}' is not loaded yet")
        wanted = name + (f" version {version}" if version else f" alias {alias}" if alias else "")
        others = "" if self.guard else f"; there are {self.served() or 'none yet'}"  # not for everybody to know
        raise UnknownModel(f"there is no model {wanted!r} here{others}")

    def served(self) -> list[str]:
        return sorted(str(generation.identity) for generation in self._versions.values())

    def versions(self, name: str) -> list[Generation]:
        """The generation of each version of the model `name`."""
        return [each for each in self._versions.values() if each.identity.name == name]

    def visible(self) -> list[Generation]:
        """The generation of each version of every model that the caller may know of."""
        return [each for each in self._versions.values() if self._may_see(each.identity.name)]

    def _may_see(self, name: str) -> bool:
        return self.guard is None or CALLER.get().may_anything(name)

    def generations(self) -> Iterator[Generation]:
        """Those that take requests, each once. Two aliases of one version are two of them."""
        yield from self._installed

    def addresses(self) -> list[tuple[str, str, Generation]]:
        """Every way in which the caller may ask for a generation: its model, its version or alias (with "@") or neither, and
        itself."""
        ways = (
            *((name, "", generation) for name, generation in self._defaults.items()),
            *((name, version, generation) for (name, version), generation in self._versions.items()),
            *((name, ALIAS + alias, generation) for (name, alias), generation in self._aliases.items()),
        )
        return [way for way in ways if self._may_see(way[0])]

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests: not draining, and every model that was asked for is up."""
        return (
            self.accepting
            and not self.starting
            and bool(self._defaults)
            and self._expected <= self._defaults.keys()
            and all(generation.ready for generation in self.generations())
        )

    async def counted(self) -> Counted:
        """By all gateways, if there are several."""
        return self.metrics.counted() if self.everywhere is None else await self.everywhere()

    async def index(self, *, ready: bool) -> list[Listed]:
        """What could be served, or only what is `ready` to be."""
        if self.repository is not None:
            listed = [each for each in await self.repository.index() if each.state is ModelState.READY or not ready]
            return [each for each in listed if self._may_see(each.name)]
        served = (generation.identity for generation in self.visible())
        return [Listed(name=each.name, version=each.version, state=ModelState.READY) for each in served]

    def control(self, name: str) -> Repository:
        """The repository, for those who want to load or unload the model `name`. Raises `Forbidden` where they may not."""
        if self.repository is None or not self.settings.repository_control:
            raise Forbidden(
                "models are not loaded or unloaded over the network here (serving.repository_control is off)"
            )
        if self.guard is not None:
            caller = CALLER.get()
            self.guard.check(caller, Act.MANAGE, name)
            log.info("'%s' loads or unloads the model '%s'", caller.name, name)
        return self.repository

    # One request

    def begin(self, protocol: Protocol, model: str, version: str = "") -> Exchange:
        exchange = Exchange(protocol, model, version)
        if self.guard is not None:
            exchange.caller = CALLER.get(None)
        return exchange

    def answer(
        self,
        exchange: Exchange,
        read: Callable[[], InferRequest],
        write: Callable[[Exchange, InferRequest, Outputs], A],
        respond: Callable[[A | Exception], None],
        *,
        timeout_s: float | None = None,
    ) -> None:
        """The whole of an exchange, without a task: `respond` is called with what `write` makes of the outputs or with what
        went wrong, at once or later, when the exchange has ended. A caller that left gets nothing."""
        try:
            self.locate(exchange)
            request = read()
            outputs = self.submit(exchange, request, timeout_s=timeout_s)
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            self.fail(exchange, error)
            self.end(exchange)
            respond(error)
        else:
            outputs.add_done_callback(partial(self._answered, exchange, request, write, respond))

    def _answered(
        self,
        exchange: Exchange,
        request: InferRequest,
        write: Callable[[Exchange, InferRequest, Outputs], A],
        respond: Callable[[A | Exception], None],
        outputs: "asyncio.Future[Outputs]",
    ) -> None:
        if outputs.cancelled():
            self.give_up(exchange)
            return
        answer: A | Exception
        try:
            answer = write(exchange, request, outputs.result())
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            self.fail(exchange, error)
            answer = error
        self.end(exchange)
        respond(answer)

    def give_up(self, exchange: Exchange) -> None:
        """The caller has left, before its request was whole or after. It is counted for the model that it asked for."""
        if exchange.generation is None:
            with suppress(SeatrialError):
                self.locate(exchange)
        self.fail(exchange, asyncio.CancelledError())
        self.end(exchange)

    def submit(
        self, exchange: Exchange, request: InferRequest, *, timeout_s: float | None = None, graph: str = MAIN
    ) -> "asyncio.Future[Outputs]":
        """Put the request in line. The outputs come in the order of the signature, or `DeadlinePassed`, or what the engine
        refused with; the future is cancelled where the caller leaves. `timeout_s`, and the request's own, can only shorten
        the server's limit.

        Raises the errors of `locate` and of `Generation.admit`, and `WrongInput` for a wrong priority or timeout.
        """
        generation = exchange.generation or self.locate(exchange)
        if generation.state is not State.SERVING:  # its successor took over while the body came
            generation = self._locate_again(exchange)
        if generation.stateful:
            generation = exchange.generation = generation.home(request, exchange.asker)
        exchange.request_id = request.id
        limit_s = self.settings.limits.request_s
        if timeout_s is not None:
            limit_s = min(limit_s, timeout_s)
        if TIMEOUT in request.parameters:
            limit_s = min(limit_s, request.timeout_s)
        if self.cache is not None and generation.identity.digest and not generation.stateful:
            return self._through_cache(self.cache, exchange, generation, request, limit_s=limit_s, graph=graph)
        return self._admit(exchange, generation, request, limit_s=limit_s, graph=graph)

    async def stream(
        self, exchange: Exchange, request: InferRequest, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Outputs, None]:
        """The answers to `request`, each computed when the one before was taken: one for each row where the model has a
        memory, each within the time limit, else the only one. Whoever wants no more of them closes the generator.

        Raises as `submit` does, and what that gives.
        """
        generation = exchange.generation or self.locate(exchange)
        if not generation.stateful:
            yield await self.submit(exchange, request, timeout_s=timeout_s)
            return
        exchange.generation = home = self._locate_again(exchange).home(request, exchange.asker)
        try:
            for row in steps(request, home.signature):
                step = Exchange(exchange.protocol, exchange.model, exchange.version)
                step.generation, step.caller, step.alias = home, exchange.caller, exchange.alias
                answer = self.submit(step, row, timeout_s=timeout_s)
                exchange.waiting, exchange.request_id = step.waiting, request.id
                yield await answer
        except BaseException:
            if exchange.waiting is not None:  # what follows would go on from another state than its client thinks
                home.abandon(request, exchange.asker)
            raise

    def _through_cache(
        self,
        cache: ResponseCache,
        exchange: Exchange,
        generation: Generation,
        request: InferRequest,
        *,
        limit_s: float,
        graph: str,
    ) -> "asyncio.Future[Outputs]":
        question = fingerprint(generation.identity.digest, graph, request.inputs)
        if (kept := cache.find(question)) is not None:
            exchange.cached = True
            generation.metrics.cache_hits += 1
            answer = asyncio.get_running_loop().create_future()
            answer.set_result(kept)
            return answer
        answer = self._admit(exchange, generation, request, limit_s=limit_s, graph=graph)
        generation.metrics.cache_misses += 1
        answer.add_done_callback(partial(_keep, cache, question))
        return answer

    def _admit(
        self, exchange: Exchange, generation: Generation, request: InferRequest, *, limit_s: float, graph: str
    ) -> "asyncio.Future[Outputs]":
        caller = exchange.caller
        exchange.waiting = generation.admit(
            request,
            arrived=exchange.arrived,
            deadline=exchange.arrived + limit_s,
            graph=graph,
            priority=request.priority if PRIORITY in request.parameters else 0,
            caller=caller.name if caller is not None else "",
        )
        if caller is not None:
            caller.allowance.take_rows(exchange.waiting.rows)
        return exchange.waiting.answer

    def locate(self, exchange: Exchange, *, alias: str = "") -> Generation:
        """Find the generation that the exchange asks for, and note it there. Raises as `find` does, and `QuotaExceeded`."""
        if self.guard is not None:
            assert exchange.caller is not None, "a door let somebody in without asking who: this is a bug"
            self.guard.check(exchange.caller, Act.INFER, exchange.model)
        if alias:
            exchange.alias = alias
        exchange.generation = self.resolve(exchange.model, exchange.version, alias=alias)
        if exchange.caller is not None:
            exchange.caller.allowance.take_request(exchange.caller.name)
        return exchange.generation

    def _locate_again(self, exchange: Exchange) -> Generation:
        """What the exchange asks for now. Where that is gone, it counts as what its client is told: a model unknown."""
        exchange.generation = None
        exchange.generation = self.resolve(exchange.model, exchange.version, alias=exchange.alias)
        return exchange.generation

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        """Note how the exchange ended if it did not end well."""
        exchange.outcome, exchange.error = _outcome(error), type(error).__name__

    def end(self, exchange: Exchange) -> None:
        """Count and log it."""
        total_s = time.monotonic() - exchange.arrived
        failed = exchange.outcome is not Outcome.OK
        generation = exchange.generation
        if generation is None:
            self._count_homeless(exchange)
        else:
            metrics = generation.metrics
            metrics.requests[exchange.protocol][exchange.outcome] += 1
            metrics.request_s.observe(total_s)
            if exchange.cached:
                metrics.cache_hit_s += total_s
            if failed:
                metrics.failed_s += total_s
                if (reason := REJECTIONS.get(exchange.error)) is not None:
                    metrics.rejected[reason] += 1
        if self.log is not None and self.log.takes(failed=failed):
            self.log.write(_record(exchange, total_s))

    def _count_homeless(self, exchange: Exchange) -> None:
        """Count a request that found no generation."""
        if exchange.error in DENIED:
            return  # the guard has counted it
        if exchange.outcome is Outcome.CLIENT_ERROR:
            self.metrics.unknown_model[exchange.protocol] += 1
        elif exchange.error == NotReady.__name__:
            self.metrics.not_loaded[exchange.model][exchange.protocol] += 1


def _keep(cache: ResponseCache, question: bytes, answer: "asyncio.Future[Outputs]") -> None:
    if not answer.cancelled() and answer.exception() is None:
        cache.keep(question, answer.result())


def _version(generation: Generation) -> tuple[str, str]:
    return generation.identity.name, generation.identity.version


def _alias(generation: Generation) -> tuple[str, str]:
    return generation.identity.name, generation.identity.alias


REJECTIONS = {
    Overloaded.__name__: Rejection.QUEUE_FULL,
    NotReady.__name__: Rejection.NOT_READY,
    DeadlinePassed.__name__: Rejection.DEADLINE,
    TooLarge.__name__: Rejection.TOO_LARGE,
    QuotaExceeded.__name__: Rejection.QUOTA,
}
DENIED = {Forbidden.__name__, Unauthenticated.__name__}


def _outcome(error: BaseException) -> Outcome:
    match error:
        case asyncio.CancelledError():
            return Outcome.ABANDONED
        case DeadlinePassed():
            return Outcome.DEADLINE
        case BadRequest() | QuotaExceeded():
            return Outcome.CLIENT_ERROR
        case Refused():
            return Outcome.REFUSED
        case _:
            return Outcome.SERVER_ERROR


def _record(exchange: Exchange, total_s: float) -> Record:
    generation, waiting, caller = exchange.generation, exchange.waiting, exchange.caller
    return Record(
        exchange.protocol,
        exchange.request_id,
        exchange.model,
        generation.identity.version if generation is not None else exchange.version,
        generation.identity.variant if generation is not None else "",
        exchange.outcome,
        waiting.rows if waiting is not None else 0,
        int(total_s * 1e6) / 1000,
        int(exchange.queue_s * 1e6) / 1000,
        exchange.cached,
        caller.name if caller is not None else "",
        exchange.error,
    )
