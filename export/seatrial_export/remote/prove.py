"""The agent's child that verifies and scores one candidate: `python -P -m seatrial_export.remote.prove job.json`."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from seatrial.bundle import open_bundle
from seatrial_export import child
from seatrial_export.candidate import Candidate, Lost
from seatrial_export.exam import Exam
from seatrial_export.quality import HeldOut
from seatrial_export.remote.wire import unpack
from seatrial_export.trial import Found, in_this_process, prove


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of an export's questions crosses the wire: all but the source itself."""

    exam: Exam
    held_out: HeldOut | None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle` is its folder, `questions` holds `Asked`; `program` is what it was converted from, empty for the source itself."""

    candidate: Candidate
    bundle: str
    questions: str
    program: str
    threads: int


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two."""

    found: Found | None = None
    lost: Lost | None = None


def step(job: Job) -> Proven:
    asked = unpack(Path(job.questions), Asked)
    bundle = open_bundle(Path(job.bundle))
    program = Path(job.program) if job.program else None
    found = prove(
        job.candidate, bundle, asked.exam, asked.held_out, program=program, opened=in_this_process(threads=job.threads)
    )
    return Proven(lost=found) if isinstance(found, Lost) else Proven(found=found)


if __name__ == "__main__":
    child.work(Job, step)
