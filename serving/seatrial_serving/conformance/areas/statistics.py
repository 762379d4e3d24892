"""Counts and durations of what the model answered."""

import secrets
import time
from collections.abc import Collection
from typing import NamedTuple

from seatrial_serving.conformance.check import Failed, check
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Wire

EXTENSION = "statistics"
ROWS = 3
LOOKS, BETWEEN_S = 20, 0.1
"""How often and how far apart the counts are read: a server may count a request after it has answered it."""


class _Counts(NamedTuple):
    inference_count: int
    execution_count: int
    successes: int


@check("statistics.counts", extension=EXTENSION)
def rows_and_requests_are_counted(wire: Wire, subject: Subject) -> None:
    """At least: others may be asking too. The request is a new one each time, lest a cache answer it."""
    before = _counts(wire, subject)
    wire.infer(subject.ask(rows=ROWS, seed=secrets.randbits(32)))
    least = _Counts(ROWS if subject.batched else 1, 1, 1)
    grown = _Counts(0, 0, 0)
    for _ in range(LOOKS):
        grown = _Counts(*(late - early for early, late in zip(before, _counts(wire, subject), strict=True)))
        if all(got >= wanted for got, wanted in zip(grown, least, strict=True)):
            return
        time.sleep(BETWEEN_S)
    raise Failed(found=f"counts that grew by {grown._asdict()}", expected=f"{least._asdict()}, or more")


def _counts(wire: Wire, subject: Subject) -> _Counts:
    """Over the versions of the model."""
    listed = [each for each in wire.statistics(subject.model) if each.name == subject.model]
    if not listed:
        raise Failed(found="no statistics of the model", expected=f"an entry for {subject.model}")
    return _Counts(
        sum(each.inference_count for each in listed),
        sum(each.execution_count for each in listed),
        sum(each.inference_stats.success.count for each in listed),
    )


@check("statistics.version", extension=EXTENSION)
def a_version_has_its_own_statistics(wire: Wire, subject: Subject) -> None:
    version = subject.version()
    _see([(each.name, each.version) for each in wire.statistics(subject.model, version)], (subject.model, version))


@check("statistics.all", extension=EXTENSION)
def without_a_name_statistics_are_of_all_models(wire: Wire, subject: Subject) -> None:
    _see([each.name for each in wire.statistics()], subject.model)


def _see(found: Collection[object], wanted: object) -> None:
    if wanted not in found:
        raise Failed(found=f"statistics of {found}", expected=f"{wanted} among them")


@check("statistics.unknown", extension=EXTENSION)
def an_unknown_model_has_no_statistics(wire: Wire, subject: Subject) -> str:
    return subject.refused(wire, lambda: wire.statistics(f"no-{subject.model}"))
