"""A soak finds what it is there to find; and a short one holds."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from benchmarks.soak.course import Course, Reading
from benchmarks.soak.ledger import LEFT, Key, Ledger, closed, ended, unknown
from benchmarks.soak.subject import Taken
from benchmarks.soak.verdict import POOL_THREADS, judge, slope
from seatrial_monitoring.series import Closing, Outcome, Protocol
from tests.benchmarks.test_benchmarks import ROOT

TAKEN = Taken(gateway_mb=50, engines_mb=100, watcher_mb=90, descriptors=40, threads=9, children=7)
HALF_S, PER_S = 300, 300


def course(*, gateway_mb_per_s: float = 0.0, after: Taken = TAKEN) -> Course:
    """Ten minutes; every seventh reading falls into a swap, with engines that pass."""

    def readings() -> Iterator[Reading]:
        for at_s in range(2 * HALF_S + 1):
            engines_mb = TAKEN.engines_mb * (1.5 if at_s % 7 == 0 else 1)
            taken = replace(TAKEN, gateway_mb=50 + gateway_mb_per_s * at_s, engines_mb=engines_mb)
            yield Reading(at_s=at_s, answered=PER_S * at_s, failed=0, p99_ms=5, taken=taken)

    return Course(before=TAKEN, after=after, readings=list(readings()), ledger=Ledger(), counted=Counter(), mishaps=[])


def broken(of: Course, logged: str = "") -> list[str]:
    return [each.promise for each in judge(of, logged) if each.holds is False]


def test_what_holds_holds() -> None:
    assert broken(course()) == []


def test_an_object_that_leaks_with_each_request_is_found() -> None:
    """48 bytes, the smallest that has any fields."""
    [found] = broken(course(gateway_mb_per_s=48 * PER_S / 10**6))
    assert found.startswith("memory of the gateway")
    assert broken(course(gateway_mb_per_s=8 * PER_S / 10**6)) == [], "what the allocator wanders"


@pytest.mark.parametrize("name", ["descriptors", "threads", "children"])
def test_what_is_left_over_is_found(name: str) -> None:
    [found] = broken(course(after=replace(TAKEN, **{name: getattr(TAKEN, name) + POOL_THREADS + 1})))
    assert found.startswith(f"{name} at the end <=")


def test_a_failure_a_miscount_and_a_traceback_are_found() -> None:
    of = course()
    of.ledger.fail("REST, JSON", ValueError("wrong"))
    of.counted[unknown()] += 1
    assert len(broken(of, "INFO fine\nTraceback (most recent call last):")) == 3


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=40), st.integers(0, 1))
def test_a_slope_is_that_of_most_pairs(noise: list[float], outliers: int) -> None:
    x = [float(n) for n in range(len(noise) + 2)]
    y = [2 * each for each in x]
    y[:outliers] = noise[:outliers]
    assert slope(x, y) == pytest.approx(2)
    assert slope(x[:1], y[:1]) == 0


GRPC_OK = ended(Outcome.OK, Protocol.GRPC)


@pytest.mark.parametrize(
    ("seen", "counted", "differ"),
    [
        ({GRPC_OK: 3}, {GRPC_OK: 3}, 0),
        ({GRPC_OK: 3}, {GRPC_OK: 2}, 1),
        ({GRPC_OK: 3}, {ended(Outcome.OK): 3}, 2),
        ({closed(Closing.SLOW): 1}, {}, 1),
        ({ended(Outcome.OK): 5, ended(LEFT): 4}, {ended(Outcome.OK): 6, ended(Outcome.ABANDONED): 3}, 0),
        ({ended(Outcome.OK): 5, ended(LEFT): 4}, {ended(Outcome.OK): 6, ended(Outcome.ABANDONED): 2}, 1),
        ({ended(Outcome.OK): 5, ended(LEFT): 4}, {ended(Outcome.OK): 4, ended(Outcome.ABANDONED): 5}, 3),
    ],
)
def test_what_clients_saw_is_held_against_what_was_counted(
    seen: dict[Key, int], counted: dict[Key, int], differ: int
) -> None:
    assert len(Ledger(seen=Counter(seen)).differences(Counter(counted))) == differ


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_soak_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.5", "--into", str(tmp_path), "--json"]
    environment = os.environ | {"SEATRIAL_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [each for each in json.loads(done.stdout) if each["holds"] is False]
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    kept = json.loads((tmp_path / "soak.json").read_text())
    assert kept["failures"] == []
    assert len(kept["mishaps"]) > 3
