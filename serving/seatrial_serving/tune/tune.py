"""From a model and a bound on its latency to the settings that serve it best here: search, contest, proof, in a time given.

Most of the time goes to the search, from the settings that hold now; then its best are measured again in turn with those;
at last the rate is found at which the winner keeps the bound whatever the callers do. Whatever ends it early, time or
Ctrl-C, what was measured until then is the result.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from seatrial.bundle import Bundle
from seatrial.errors import EngineFailed
from seatrial.machine import cores, free_memory_bytes, this_machine
from seatrial.settings import Serving, Settings
from seatrial_serving.gateway import how_many
from seatrial_serving.sources import OnDisk, fetch, parse
from seatrial_serving.supervisor import share
from seatrial_serving.triton.folder import TritonRepository
from seatrial_serving.tune import traffic
from seatrial_serving.tune.configuration import Configuration, Knob, Room
from seatrial_serving.tune.search import Measured, Point, finalists, search
from seatrial_serving.tune.served import Disturbed, Lost, Served
from seatrial_serving.tune.trials import Trials
from seatrial_serving.tune.tuned import Request, Tuned

SEARCH_PART, CONTEST_PART = 0.6, 0.92
"""Until when, as a part of the time, each lasts."""
CONTENDERS = 2
"""Configurations that are measured again beside the one of now; all of their servers are up at once."""
LEVELS = 250
"""So many measurements would fill the time; between the shortest and the longest that make sense."""
SHORTEST_S, LONGEST_S = 0.2, 1.2
FIRST_START_S, LEAST_START_S = 120.0, 30.0
"""How long the first server may take to start; the others as long as that one took altogether, but at least so long."""
MOST_ROUNDS, ENOUGH_TO_EASE = 40, 3
HELD_PARTS = (0.95, 0.85, 0.75, 0.6, 0.45, 0.3)
"""Of the throughput that callers got who wait for their answers: the rates at which requests are then due."""


Tell = Callable[[str], None]


def tune(request: Request, settings: Settings, *, tell: Tell) -> Tuned:
    """Search for at most `request.minutes`. Ctrl-C and SIGTERM end it early.

    Raises `InvalidSource` and what the registry raises before anything is measured, `EngineFailed` where not one
    configuration could be.
    """
    what, bundle = _resolve(request.what, settings)
    serving = _spelt_out(settings.serving, Path(what))
    signature = bundle.manifest.signature if bundle else None
    asked = (
        traffic.read_recording(request.recording, signature)
        if request.recording
        else traffic.generate(bundle, rows=request.rows)
    )
    began = time.monotonic()
    total_s = 60 * request.minutes
    trials = Trials(
        what=what,
        serving=serving,
        traffic=asked,
        protocol=request.protocol,
        p99_ms=request.p99_ms,
        memory_bytes=request.memory_bytes or free_memory_bytes() // (1 + CONTENDERS),
        level_s=min(max(total_s / LEVELS, SHORTEST_S), LONGEST_S),
        start_s=FIRST_START_S,
    )
    tuned = Tuned(request=request, machine=this_machine(), bundle=bundle, traffic=asked.words)
    try:
        with _sigterm_as_ctrl_c():
            Run(trials, tuned, began=began, ends=began + total_s, tell=tell).run(_knobs(request, bundle))
    except KeyboardInterrupt:
        tuned.interrupted = True
    tuned.took_s = time.monotonic() - began
    if not any(measured.points for measured in tuned.found):
        why = tuned.found[0].lost if tuned.found else "it was interrupted before the first measurement"
        raise EngineFailed(f"{request.what} could not be measured: {why}")
    return tuned


def _resolve(what: str, settings: Settings) -> tuple[str, Bundle | None]:
    """What to type after `seatrial serve`, and the bundle that it is."""
    source = parse(what)
    if isinstance(source, TritonRepository) or (isinstance(source, OnDisk) and source.path.is_file()):
        return str(source.path), None
    bundle = fetch(source, settings)
    return str(bundle.path.absolute()), bundle


def _spelt_out(serving: Serving, path: Path) -> Serving:
    """With the numbers of gateways and engines that the server would choose itself, so that they are not measured twice."""
    count, _ = share(path, serving.engines)
    engines = serving.engines.model_copy(update={"count": count})
    return serving.model_copy(update={"engines": engines, "gateways": how_many(serving, cores=cores())})


def _knobs(request: Request, bundle: Bundle | None) -> tuple[Knob, ...]:
    room = Room(cores=cores(), p99_ms=request.p99_ms)
    if bundle is not None:
        signature = bundle.manifest.signature
        most = signature.batch.max if signature.batch else 1
        room = replace(room, most_rows=most, padded=signature.padding is not None)
    return room.knobs()


class Run:
    """What it learns goes into `tuned` at once, so that an interrupt loses nothing. Begins when it is made."""

    def __init__(self, trials: Trials, tuned: Tuned, *, began: float, ends: float, tell: Tell) -> None:
        self._trials, self._tuned, self._tell, self._ends = trials, tuned, tell, ends
        self._search_ends = began + SEARCH_PART * (ends - began)
        self._contest_ends = began + CONTEST_PART * (ends - began)
        self._longest_s = 0.0

    def run(self, knobs: Sequence[Knob]) -> None:
        self._search(knobs)
        with ExitStack() as running:
            servers = self._start_contenders(running)
            self._contest(servers)
            chosen = self._tuned.verdict.chosen
            if chosen is not None and chosen in servers:
                self._prove(chosen, servers[chosen])

    def _search(self, knobs: Sequence[Knob]) -> None:
        p99_ms, tuned = self._tuned.request.p99_ms, self._tuned
        present = Configuration.of(self._trials.serving)
        for measured in search(present, knobs, self._measure, p99_ms=p99_ms, goes_on=self._has_time_to_search):
            tuned.found.append(measured)
            self._tell(_line(measured, present, p99_ms=p99_ms))

    def _measure(self, configuration: Configuration, callers: int) -> Measured:
        """The first has all the time that there is: without it there is nothing to compare with."""
        first = not self._tuned.found
        began = self._clock()
        measured = self._trials.measure(configuration, callers, until=self._ends if first else self._search_ends)
        self._longest_s = max(self._longest_s, self._clock() - began)
        if first:
            self._trials = replace(self._trials, start_s=max(LEAST_START_S, self._longest_s))
        return measured

    def _has_time_to_search(self) -> bool:
        """None is begun that may not end: it may take as long as the longest so far."""
        return self._trials.has_time(self._search_ends) and self._clock() + self._longest_s < self._search_ends

    # Beside the settings that hold now

    def _start_contenders(self, running: ExitStack) -> dict[Configuration, Served]:
        tuned = self._tuned
        [present, *others] = tuned.found
        contenders = finalists(others, p99_ms=tuned.request.p99_ms, most=CONTENDERS)
        servers = {}
        for each in (present, *contenders):
            if each.lost or not self._trials.has_time(self._contest_ends):
                continue
            try:
                server = running.enter_context(self._trials.serve(each.configuration, until=self._contest_ends))
                servers[each.configuration] = server
            except Lost as lost:
                self._tell(f"{each.configuration.beside(tuned.present)}: {lost}")
        return servers

    def _contest(self, servers: dict[Configuration, Served]) -> None:
        """Round after round, each beginning with another. Who cannot be measured in one is out; a disturbed round is left out."""
        rounds = self._tuned.rounds
        rounds |= {each: [] for each in servers}
        callers = {each: self._callers(each) for each in servers}
        while rounds and min(map(len, rounds.values())) < MOST_ROUNDS and self._has_time_for_all():
            order = list(rounds)
            done = len(rounds[order[0]])
            first = done % len(order)
            taken = self._round(order[first:] + order[:first], servers, callers)
            if taken.keys() != rounds.keys():
                continue
            for each, point in taken.items():
                rounds[each].append(point)
            self._tell(f"round {done + 1}, beside the settings of now")
            self._ease(callers)

    def _has_time_for_all(self) -> bool:
        return self._trials.has_time(self._contest_ends, asks=len(self._tuned.rounds))

    def _round(
        self, order: Sequence[Configuration], servers: dict[Configuration, Served], callers: dict[Configuration, int]
    ) -> dict[Configuration, Point]:
        taken = {}
        for each in order:
            try:
                taken[each] = self._trials.ask(servers[each], callers[each], until=self._ends)
            except Lost as lost:
                self._tell(f"{each.beside(self._tuned.present)}: {lost}")
                if not isinstance(lost, Disturbed):
                    del self._tuned.rounds[each]
        return taken

    def _ease(self, callers: dict[Configuration, int]) -> None:
        """Halve the callers of whoever does not keep the bound in most rounds, and did by chance before. Then all begin anew."""
        rounds, p99_ms = self._tuned.rounds, self._tuned.request.p99_ms
        strained = [
            each
            for each, points in rounds.items()
            if len(points) >= ENOUGH_TO_EASE
            and callers[each] > 1
            and 2 * sum(point.keeps(p99_ms) for point in points) <= len(points)
        ]
        for each in strained:
            callers[each] //= 2
        if strained:
            rounds.update({each: [] for each in rounds})

    def _callers(self, configuration: Configuration) -> int:
        """How many it was best with."""
        measured = next(each for each in self._tuned.found if each.configuration == configuration)
        point = measured.best(self._tuned.request.p99_ms) or measured.closest
        assert point is not None, "a contender that was never measured: this is a bug"
        return point.callers

    def _prove(self, chosen: Configuration, server: Served) -> None:
        """With requests that come when they come: the highest rate at which the bound is kept."""
        points = self._tuned.rounds[chosen]
        fastest = median(point.per_second for point in points)
        for part in HELD_PARTS:
            if not self._trials.has_time(self._ends):
                return
            rate = part * fastest
            self._tell(f"{rate:,.0f} requests/s due, whatever the server does")
            try:
                point = self._trials.ask_at(server, rate, points[0].callers, until=self._ends)
            except Lost:
                continue
            if point.keeps(self._tuned.request.p99_ms):
                self._tuned.held = replace(point, per_second=rate)
                return

    def _clock(self) -> float:
        return self._trials.clock()


def _line(measured: Measured, present: Configuration, *, p99_ms: float) -> str:
    what = measured.configuration.beside(present)
    if measured.lost:
        return f"{what}: {measured.lost}"
    point = measured.best(p99_ms)
    if point is None:
        return f"{what}: does not keep p99 within {p99_ms:g} ms"
    return f"{what}: {point.per_second:,.0f} requests/s, p99 {point.p99_ms:.3g} ms"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A pod that is evicted keeps what it has found, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
