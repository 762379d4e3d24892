"""The agent's child that times all candidates of its targets: `python -P -m seatrial_export.remote.timing job.json`.

The whole contest is in here, with its stand and all rounds, so that nothing of a figure has crossed a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from seatrial.bundle import Bundle, open_bundle
from seatrial.bundle.evidence import Quality
from seatrial_export import child
from seatrial_export.candidate import Candidate
from seatrial_export.child import Limits
from seatrial_export.choose import Budget, Objective, Variant, halved_by_target, undecided_by_target
from seatrial_export.contest import Outcome, Pace, Sizes, contest
from seatrial_export.remote.wire import SAID
from seatrial_export.samples import read_arrays
from seatrial_export.stand import Stand, Terms
from seatrial_export.verify import Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`folder` holds its bundle."""

    candidate: Candidate
    folder: str
    proof: Proof
    quality: Quality

    @property
    def bundle(self) -> Bundle:
        return open_bundle(Path(self.folder).absolute())


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` is an .npz of inputs. `memory_bytes` is what one engine may take, and `start_s` the time that it has to start."""

    entries: tuple[Entry, ...]
    rows: str
    sizes: Sizes
    pace: Pace
    budget: Budget
    objective: Objective
    threads: int
    call_s: float
    start_s: float
    memory_bytes: int


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    outcome: Outcome


def step(job: Job) -> Timed:
    limits = Limits(time_s=job.start_s, memory_bytes=job.memory_bytes, threads=job.threads)
    terms = Terms.of(limits, threads=job.threads, call_s=job.call_s)
    with Stand(Path.cwd(), terms) as stand:
        outcome = contest(
            job.entries,
            read_arrays(Path(job.rows)),
            stand=stand,
            folder=Path.cwd() / "calls",
            sizes=job.sizes,
            pace=job.pace,
            halved=partial(_halved, job),
            undecided=partial(undecided_by_target, budget=job.budget, objective=job.objective),
        )
    return Timed(outcome=outcome)


def _halved(job: Job, variants: Sequence[Variant]) -> list[Variant]:
    staying = halved_by_target(variants, budget=job.budget, objective=job.objective)
    with Path(SAID).open("a") as said:
        said.write(f"timed {len(variants)} variants, going on with {len(staying)}\n")
    return staying


if __name__ == "__main__":
    child.work(Job, step)
