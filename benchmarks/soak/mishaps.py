"""What happens to the server while it is asked: swaps, kills and hangs. Each waits until all is well again.

They run beside the event loop, in a thread, one after the other, so that what each has caused can be told.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import TypeAlias

import httpx
import psutil

from benchmarks.soak.subject import ANSWER_S, BROKEN, FORK_SERVER, SCALES, SPARE, WATCHER, Subject

MOST_S = 180.0
LOOK_EVERY_S = 0.05

Mishap: TypeAlias = Callable[[Subject, Random], None]


class NotMended(Exception):
    """What was to come about did not."""


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + MOST_S
    while not holds():
        if time.monotonic() > deadline:
            raise NotMended(f"waited {MOST_S:g} s for {what}")
        time.sleep(LOOK_EVERY_S)


def settled(subject: Subject, engines: int) -> bool:
    """Whether there are so many engine processes, and all of them are ready."""
    return len(subject.server.engines()) == subject.server.total("seatrial_engines") == engines


def swap(subject: Subject, random: Random) -> None:  # noqa: ARG001 - as all mishaps
    engines = len(subject.server.engines())
    [to] = SCALES.keys() - {subject.served()}
    subject.point(to)
    until(lambda: subject.served() == to and settled(subject, engines), f"version {to} alone")


def swap_to_what_is_broken(subject: Subject, random: Random) -> None:  # noqa: ARG001
    before, failed = subject.served(), _swaps(subject, "failed")
    subject.point(BROKEN)
    until(lambda: _swaps(subject, "failed") > failed, "a swap that fails")
    subject.point(before)
    until(lambda: subject.server.total("seatrial_alias_drift_seconds") == 0, "the alias to agree")


def kill_an_engine(subject: Subject, random: Random) -> None:
    engines, deaths = len(subject.server.engines()), _deaths(subject)
    random.choice(subject.server.engines()).kill()
    until(lambda: _deaths(subject) > deaths and settled(subject, engines), "another engine")


def hang_an_engine(subject: Subject, random: Random) -> None:
    """One that has a batch in hand is replaced; one that nobody needs meanwhile is not missed, and comes to again."""
    engines, deaths = len(subject.server.engines()), _deaths(subject)
    engine = random.choice(subject.server.engines())
    engine.suspend()
    patience = time.monotonic() + 2 * ANSWER_S
    until(lambda: _deaths(subject) > deaths or time.monotonic() > patience, "the hung engine's end")
    with contextlib.suppress(psutil.NoSuchProcess):
        engine.resume()
    until(lambda: settled(subject, engines), "as many engines as before")


def kill_the_watcher(subject: Subject, random: Random) -> None:  # noqa: ARG001
    old = subject.child(WATCHER)
    assert old is not None, "there is no watcher: this is a bug"
    old.kill()
    until(lambda: (new := subject.child(WATCHER)) is not None and new != old, "another watcher")
    until(lambda: subject.server.total("seatrial_registry_age_seconds") < 1, "the registry's answer")


def hang_up(subject: Subject, random: Random) -> None:  # noqa: ARG001
    """SIGHUP: every model is loaded again."""
    _load_all_again(subject, engines=len(subject.server.engines()))


def kill_the_fork_server(subject: Subject, random: Random) -> None:  # noqa: ARG001
    """Its engines live on, as the server's own children; then all are replaced by another's."""
    engines = len(subject.server.engines())
    if (forks := subject.child(FORK_SERVER)) is not None:
        forks.kill()
    _load_all_again(subject, engines=engines)


def unload_and_load(subject: Subject, random: Random) -> None:  # noqa: ARG001
    engines = len(subject.server.engines())
    for act in ("unload", "load"):
        url = subject.server.url(f"/v2/repository/models/{SPARE}/{act}")
        httpx.post(url, json={}, timeout=MOST_S).raise_for_status()
    until(lambda: settled(subject, engines), "the engines of the model that was loaded")


def _load_all_again(subject: Subject, *, engines: int) -> None:
    done, models = _swaps(subject, "done"), len(subject.server.models)
    subject.server.process.send_signal(signal.SIGHUP)
    until(lambda: _swaps(subject, "done") >= done + models and settled(subject, engines), "all models anew")


def _deaths(subject: Subject) -> float:
    return subject.server.total("seatrial_engine_deaths_total")


def _swaps(subject: Subject, outcome: str) -> float:
    return subject.server.total("seatrial_swaps_total", outcome=outcome)


MISHAPS: Mapping[str, Mishap] = {
    "swap": swap,
    "swap to a broken version": swap_to_what_is_broken,
    "engine killed": kill_an_engine,
    "engine hangs": hang_an_engine,
    "watcher killed": kill_the_watcher,
    "SIGHUP": hang_up,
    "fork server killed, and SIGHUP": kill_the_fork_server,
    "model unloaded and loaded": unload_and_load,
}
