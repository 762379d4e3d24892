"""What an agent does for an export: a closed table of children, each with the names in its job that must have been sent."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from seatrial_export import package, tensorrt
from seatrial_export.remote import asking, prove, timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`reads` are the names that a job uses of files and bundles, `makes` those of files that the child leaves for the export.

    One that is `alone` shares the machine with nothing else of ours.
    """

    module: str
    job: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    reads: Callable[[Any], Iterable[str]]
    makes: Callable[[Any], Iterable[str]] = lambda _: ()
    alone: bool = False


STEPS: Mapping[str, Step] = {
    "package": Step(
        module=package.__name__,
        job=package.Job,
        answer=package.Packaged,
        reads=lambda job: [job.program],
        makes=lambda answer: [answer.model],
    ),
    "plan": Step(
        module=tensorrt.__name__,
        job=tensorrt.Job,
        answer=tensorrt.Planned,
        reads=lambda job: [job.model, job.timings],
        makes=lambda _: [tensorrt.PLAN, tensorrt.LAYERS, tensorrt.TIMINGS],
    ),
    "prove": Step(
        module=prove.__name__,
        job=prove.Job,
        answer=prove.Proven,
        reads=lambda job: [job.bundle, job.questions, *filter(None, [job.program])],
    ),
    "time": Step(
        module=timing.__name__,
        job=timing.Job,
        answer=timing.Timed,
        reads=lambda job: [job.rows, *(each.folder for each in job.entries)],
        alone=True,
    ),
    "ask": Step(
        module=asking.__name__,
        job=asking.Job,
        answer=asking.Asking,
        reads=lambda job: [job.bundle, *filter(None, [job.calls, job.questions])],
        makes=lambda _: [asking.ANSWERS],
    ),
}
