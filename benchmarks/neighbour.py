"""A busy neighbour: another process computes without a pause on one of the cores. Who keeps how much of the throughput?

Each server is asked undisturbed and disturbed in every round; its share is the quotient of the two.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.bench import Bench, rest, seatrial, triton
from benchmarks.clients import v2
from benchmarks.intervals import Interval, Promise, promises
from benchmarks.models import request
from benchmarks.rounds import Rounds, Trial, play
from benchmarks.started import Revived
from benchmarks.tables import table
from seatrial.bundle import Bundle
from seatrial_serving.bench import Result

OURS, TRITON = "Seatrial", "Triton"
QUIET, BUSY = "undisturbed", "disturbed"
SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"


def measure(bench: Bench) -> str:
    made: list[Promise] = []
    rows: list[list[str]] = []
    losses: list[str] = []
    for title, bundle, callers in (
        ("digits, c=32", bench.models.digits, 32),
        ("MiniLM-L6, 32 tokens, c=32", bench.models.minilm, 32),
        ("ResNet-18, c=8", bench.models.resnet18, 8),
    ):
        rounds = _rounds(bench, title, bundle, callers)
        rows += [_row(rounds, title, of) for of in (OURS, TRITON)]
        made.append(Promise(f"{title}: share kept >= Triton's", _shares(rounds), at_least=1))
        losses.append(rounds.losses())
    found = table(["", "", f"requests/s {QUIET}", BUSY, "share kept"], rows)
    return "\n\n".join(filter(None, (promises(made), found, *losses)))


def _rounds(bench: Bench, title: str, bundle: Bundle, callers: int) -> Rounds:
    post = v2(bundle.manifest.model.name, request(bundle.manifest.signature))
    with Revived(seatrial(bundle)) as ours, Revived(triton(bundle)) as theirs:
        quiet = [rest(of, server, post, callers, bench.seconds) for of, server in ((OURS, ours), (TRITON, theirs))]
        trials = [
            trial
            for each in quiet
            for trial in (replace(each, case=QUIET), replace(each, case=BUSY, take=_disturbed(each)))
        ]
        return play(trials, rounds=bench.rounds, progress=bench.progress, title=title)


def _row(rounds: Rounds, title: str, of: str) -> list[str]:
    kept = rounds.ratio(of, of, BUSY, to_case=QUIET)
    return [title, of, *(f"{rounds.median(of, each):,.0f}" for each in (QUIET, BUSY)), str(kept)]


def _disturbed(trial: Trial) -> Callable[[], Result]:
    def take() -> Result:
        with busy_core():
            return trial.take()

    return take


@contextmanager
def busy_core() -> Iterator[None]:
    """The last of the cores that we may use is kept busy by a process of no special priority."""
    core = str(max(os.sched_getaffinity(0)))
    with subprocess.Popen([sys.executable, "-c", SPIN, core], stdout=subprocess.PIPE) as spinning:
        try:
            assert spinning.stdout is not None, "asked for a pipe and got none: this is a bug"
            spinning.stdout.readline()
            yield
        finally:
            spinning.kill()


def _shares(rounds: Rounds) -> Interval:
    """Of our share to Triton's, in the rounds that have all four figures."""
    found = [rounds.found.get((of, each), []) for of in (OURS, TRITON) for each in (BUSY, QUIET)]
    whole = [four for four in zip(*found, strict=False) if None not in four]
    return Interval.of(
        [
            (busy.per_second / quiet.per_second) / (their_busy.per_second / their_quiet.per_second)
            for busy, quiet, their_busy, their_quiet in whole
        ]
    )
