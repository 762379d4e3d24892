"""What the benchmarks say is what was measured: medians, ratios within a round, losses, and latency from when it was due."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from rich.progress import Progress

from benchmarks.__main__ import SECTIONS
from benchmarks.intervals import Interval, Promise, ratio
from benchmarks.open_loop import load
from benchmarks.rounds import Lost, Rounds, Trial, p50_ms, play
from benchmarks.started import Revived, Running, started
from benchmarks.tables import README
from seatrial_serving.bench import OK, Plan, Protocol, Result
from tests.conditions import until
from tests.digits import ExportedDigits
from tests.servers import Server, serving
from tests.serving.models import LinearBundle

ROOT = Path(__file__).parent.parent.parent


def result(per_second: float, *, requests: int = 10, failed: int = 0) -> Result:
    outcomes, p50_ms = {OK: requests - failed, "refused": failed}, 1000 / per_second
    return Result(
        requests=requests, seconds=1, outcomes=outcomes, per_second=per_second, p50_ms=p50_ms, p90_ms=2, p99_ms=3, max_ms=4
    )  # fmt: skip


# Figures


def test_an_interval_is_a_median_and_the_medians_that_other_rounds_might_have_had() -> None:
    found = Interval.of([1.0, 1.1, 1.2, 1.3, 9.0])
    assert found.middle == 1.2
    assert 1.0 <= found.low < 1.2 < found.high <= 9.0
    assert str(Interval.of([2.0, 2.0])) == "2.00 (2.00 to 2.00)"
    assert str(Interval.of([])) == "-"


def test_a_ratio_is_taken_within_a_round() -> None:
    assert ratio([2, 20, 200], [1, 10, 100]) == Interval(middle=2, low=2, high=2)


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"at_least": 1.3}, "holds"),
        ({"at_least": 1.31}, "does not hold"),
        ({"at_most": 1.1}, "holds"),
        ({"at_most": 1.09}, "does not hold"),
        ({"at_least": 1.3, "surely": 1.1}, "holds"),
        ({"at_least": 1.3, "surely": 1.11}, "does not hold"),
        ({"at_most": 1.2, "surely": 1.3}, "holds"),
        ({"at_most": 1.2, "surely": 1.29}, "does not hold"),
    ],
)
def test_a_promise_holds_unless_the_interval_excludes_it(bounds: dict[str, float], verdict: str) -> None:
    assert Promise("", Interval(middle=1.2, low=1.1, high=1.3), **bounds).verdict == verdict


def test_what_was_not_measured_holds_nothing() -> None:
    assert Promise("", Interval.of([]), at_least=-math.inf).verdict == "not measured"


# Rounds


def test_a_loss_costs_its_round_and_no_more() -> None:
    """The second round of `b` fails; the ratio is of the first and the third."""
    order: list[str] = []
    given = {"a": iter([10.0, 20.0, 30.0]), "b": iter([5.0, math.nan, 10.0])}

    def take(name: str) -> Result:
        order.append(name)
        value = next(given[name])
        if math.isnan(value):
            raise Lost("it crashed")
        return result(value)

    trials = [Trial(of=name, case="c=1", take=partial(take, name)) for name in given]
    rounds = play(trials, rounds=3, progress=Progress(disable=True), title="test")
    assert order == ["a", "b", "b", "a", "a", "b"], "each round begins with another"
    assert rounds.values("b", "c=1") == [5.0, 10.0]
    assert rounds.ratio("a", "b", "c=1") == Interval.of([10 / 5, 30 / 10])
    assert rounds.difference("a", "b", "c=1", p50_ms) == Interval.of([100 - 200, 1000 / 30 - 100])
    assert rounds.median("a", "c=1") == 20
    assert "b, c=1, round 2: it crashed" in rounds.losses()
    assert rounds.throughput(["a", "c"], ["c=1"]).splitlines()[-2:] == ["| a | 20 |", "| c | - |"]


@pytest.mark.parametrize(
    ("taken", "words"), [(result(5.0, failed=1), "1 of 10 requests failed"), (result(0.1, requests=0), "nothing was answered")]
)  # fmt: skip
def test_a_measurement_without_an_answer_or_with_a_failure_is_lost(taken: Result, words: str) -> None:
    rounds = Rounds()
    rounds.note(Trial(of="a", case="c=1", take=lambda: taken))
    assert rounds.values("a", "c=1") == []
    assert words in rounds.losses()


# Servers


def test_a_server_that_ended_is_started_again_when_it_is_asked_for(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    with Revived(partial(_serve, bundle.path)) as server:
        first = server.running
        assert server.running is first
        for process in first.processes:
            process.kill()
        until(lambda: not first.alive)
        second = server.running
        assert second is not first
        assert second.alive
    assert not second.alive


def test_a_server_that_does_not_start_is_lost_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(Lost, match=r"there is no file .*nothing\.onnx"), _serve(tmp_path / "nothing.onnx"):
        pytest.fail("it started")


def _serve(what: Path) -> AbstractContextManager[Running]:
    return started(
        "seatrial", "serve", str(what), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json"
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("open-loop")
    with serving(LinearBundle().write(place / "store").path, place=place) as running:
        yield running


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_an_open_loop_asks_at_its_rate_and_knows_each_request(server: Server, protocol: Protocol) -> None:
    def answered() -> float:
        return server.total("seatrial_requests_total", outcome="ok", protocol=protocol)

    before, url = answered(), server.grpc if protocol == "grpc" else server.http
    with load(Plan(url=url, model="linear", protocol=protocol, callers=4, rate=200.0)) as asked:
        until(lambda: answered() - before >= 100)
    assert len(asked.due_s) == len(asked.took_s) == answered() - before
    assert asked.failed == 0
    due = sorted(asked.due_s)
    assert (due[-1] - due[0]) / (len(due) - 1) == pytest.approx(1 / 200)
    assert math.isnan(asked.p99_ms((0, 1)))
    assert 0 < asked.p99_ms((due[0], due[-1])) <= 1000 * asked.took_s.max()


def test_the_wait_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """Each answer takes 20 ms and is due 5 ms after the one before: on one connection each waits longer than the last."""
    slow = {"SEATRIAL_SERVING__BATCHING__MAX_DELAY_MS": "20"}
    with serving(LinearBundle().write(tmp_path).path, place=tmp_path / "server", environment=slow) as server:
        with load(Plan(url=server.http, model="linear", callers=1, rate=200.0)) as asked:
            until(lambda: server.total("seatrial_requests_total") >= 30)
        assert len(asked.due_s) == server.total("seatrial_requests_total"), "none is left out"
    assert asked.failed == 0
    waited = asked.took_s[asked.due_s.argsort()]
    assert waited[-1] > 0.015 * (len(waited) - 1)


# The sections


def test_every_section_has_its_place_in_the_readme() -> None:
    page = README.read_text()
    for name in SECTIONS:
        assert page.count(f"<!-- {name} -->\n") == page.count(f"\n<!-- end of {name} -->") == 1, name
        assert f"`python -m benchmarks {name}" in page


@pytest.mark.slow
@pytest.mark.parametrize("section", ["overhead", "both-ends", "swaps"])
@pytest.mark.timeout(1200)
def test_a_section_measures(section: str, exported_digits: ExportedDigits, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", section, "--rounds", "1", "--seconds", "1", "--no-write"]
    command += ["--bundle", str(exported_digits.bundle.path)]
    said = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SEATRIAL_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    assert "must hold" in said
    assert "not measured" not in said
    assert "Lost" not in said
