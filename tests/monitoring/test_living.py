"""Every panel and every rule against the living thing: a real server, a real Prometheus, and everything that can happen."""

import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from seatrial_monitoring.check import check
from seatrial_monitoring.dashboard import ROWS, SWAPPED
from seatrial_monitoring.objectives import Objectives
from seatrial_monitoring.promql import PANEL_WINDOW
from seatrial_monitoring.rules import rules
from seatrial_monitoring.series import Outcome
from seatrial_monitoring.spec import Panel, Query, Recording
from tests.conditions import until
from tests.monitoring.prometheus import Labels
from tests.monitoring.voyage import MUST_FIRE, Voyage, voyage

pytestmark = pytest.mark.xdist_group("prometheus")

RULES = rules(Objectives())
PANELS = [(panel, query) for row in ROWS for panel in row.panels for query in panel.queries]
ABSENT = "absent(seatrial_build_info)"
BLIND = "SeatrialLatencyNotMeasured"
"""These two have no value while all is well; each has a test of its own."""
OF_A_VERSION = {"Versions that answer", "Time to load"}
"""What is drawn there does not change while a version lives; a new version is a new line."""
SIGNALS = sorted(
    {condition.signal for alert in RULES.alerts for condition in alert.conditions if alert.name != BLIND} - {ABSENT}
)


@pytest.fixture(scope="module")
def sailed(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[Voyage]:
    place = tmp_path_factory.mktemp("voyage")
    home = place / "home"
    home.mkdir()
    shutil.copyfile(migrated_store, home / "mlflow.db")
    with voyage(home, place) as sailing:
        sailing.sail()
        yield sailing


def filled(expression: str) -> str:
    """As Grafana asks it, with everything chosen."""
    filled = expression.replace(PANEL_WINDOW, "2s")
    for variable in ("job", "model", "version", "variant"):
        filled = filled.replace(f'"${variable}"', '".*"')
    assert "$" not in filled, f"nothing fills in {filled}"
    return filled


def moves(drawn: dict[Labels, dict[float, float]]) -> bool:
    return any(len(set(line.values())) > 1 for line in drawn.values())


def begins(drawn: dict[Labels, dict[float, float]], *, since: float) -> bool:
    """Whether there is a line that was not there before."""
    return any(min(line) > since for line in drawn.values())


@pytest.mark.parametrize(("panel", "query"), PANELS, ids=[f"{panel.title}: {query.legend}" for panel, query in PANELS])
def test_every_panel_moves_with_what_happened(sailed: Voyage, panel: Panel, query: Query) -> None:
    drawn = sailed.prometheus.over(filled(query.expr), start=sailed.idle, end=sailed.landed)
    assert drawn, "it shows nothing"
    assert all(math.isfinite(value) for line in drawn.values() for value in line.values())
    moved = begins(drawn, since=sailed.sailed) if panel.title in OF_A_VERSION else moves(drawn)
    assert moved or query.steady, f"{panel.title}: {drawn}"


@pytest.mark.parametrize("recording", RULES.recordings, ids=lambda each: f"{each.name} {each.labels['slo']}")
def test_every_recording_rule_is_recorded_and_moves(sailed: Voyage, recording: Recording) -> None:
    recorded = f'{recording.name}{{slo="{recording.labels["slo"]}"}}'
    drawn = sailed.prometheus.over(recorded, start=sailed.idle, end=sailed.landed)
    assert {dict(labels)["model"] for labels in drawn} >= {"linear", "gather"}
    assert all(math.isfinite(value) for line in drawn.values() for value in line.values())
    assert moves(drawn), drawn


@pytest.mark.parametrize("watched", SIGNALS)
def test_what_every_alert_watches_moves(sailed: Voyage, watched: str) -> None:
    drawn = sailed.prometheus.over(watched, start=sailed.idle, end=sailed.landed)
    assert all(math.isfinite(value) for line in drawn.values() for value in line.values())
    assert moves(drawn), drawn


def test_a_swap_is_marked_on_the_dashboard(sailed: Voyage) -> None:
    drawn = sailed.prometheus.over(filled(SWAPPED), start=sailed.idle, end=sailed.landed)
    assert [dict(labels) for labels in drawn] == [{"model": "linear"}]


def test_prometheus_counted_what_the_callers_saw(sailed: Voyage) -> None:
    counted = sailed.prometheus.now('sum by (outcome) (seatrial_requests_total{model="linear"})')
    by_outcome = {Outcome(dict(labels)["outcome"]): int(value) for labels, value in counted.items()}
    assert by_outcome == {outcome: sailed.sent[outcome] for outcome in Outcome}
    assert min(by_outcome.values()) > 0, "each outcome was provoked"
    assert sailed.seen("seatrial_unknown_model_requests_total") == 5
    assert sailed.seen('seatrial_closed_connections_total{protocol="rest", reason="malformed"}') == 1
    assert sailed.seen('seatrial_request_duration_seconds_count{model="linear"}') == sailed.sent.total()
    assert sailed.seen('seatrial_rejected_total{model="linear", reason="queue_full"}') == sailed.sent[Outcome.REFUSED]
    assert sailed.seen('seatrial_rejected_total{model="linear", reason="deadline"}') == sailed.sent[Outcome.DEADLINE]
    until(lambda: sailed.seen("seatrial_engine_deaths_total") == sailed.killed)
    assert sailed.seen("seatrial_quarantined_requests_total") == 1


def test_triton_s_names_say_the_same(sailed: Voyage) -> None:
    triton = sailed.prometheus.now('sum by (model) (nv_inference_request_success{model="linear"})')
    assert list(triton.values()) == [sailed.sent[Outcome.OK]]
    failed = sailed.prometheus.now('sum by (reason) (nv_inference_request_failure{model="linear"})')
    assert {dict(labels)["reason"]: int(value) for labels, value in failed.items()} == {
        "REJECTED": sailed.sent[Outcome.REFUSED] + sailed.sent[Outcome.DEADLINE],
        "CANCELED": sailed.sent[Outcome.ABANDONED],
        "BACKEND": sailed.sent[Outcome.SERVER_ERROR],
        "OTHER": sailed.sent[Outcome.CLIENT_ERROR],
    }
    mean_batch = sailed.seen("nv_inference_count") / sailed.seen("nv_inference_exec_count")
    assert mean_batch >= 1
    assert sailed.seen("nv_inference_compute_infer_duration_us") >= 1e6 * sailed.seen(
        "seatrial_compute_duration_seconds_sum"
    )


def test_nothing_fires_in_peace_and_what_must_fires_in_trouble(sailed: Voyage) -> None:
    assert sailed.firing_while_idle == set()
    assert sailed.prometheus.firing() >= MUST_FIRE


def test_without_traffic_there_are_no_ratios_and_no_quantiles(sailed: Voyage) -> None:
    for panel, query in PANELS:
        if "histogram_quantile" in query.expr or panel.title == "Answered well":
            drawn = sailed.prometheus.over(filled(query.expr), start=sailed.idle, end=sailed.sailed)
            assert drawn == {}, panel.title
    assert (
        sailed.prometheus.over('{__name__=~"slo:(sli_error|burn_rate):.+"}', start=sailed.idle, end=sailed.sailed) == {}
    )


def test_the_server_feeds_all_panels_and_rules_from_its_start(sailed: Voyage) -> None:
    checked = check(sailed.server.metrics_address, Objectives())
    assert checked.gaps == ()
    assert checked.panels == len({panel.title for panel, _ in PANELS})


def test_rules_for_another_budget_than_the_server_s_are_noticed(sailed: Voyage) -> None:
    [blind] = [alert for alert in rules(Objectives(latency_s=0.3)).alerts if alert.name == BLIND]
    assert {dict(labels)["model"] for labels in sailed.prometheus.now(blind.expr)} == {"linear", "gather"}
    [seeing] = [alert for alert in RULES.alerts if alert.name == BLIND]
    assert sailed.prometheus.now(seeing.expr) == {}
    gaps = check(sailed.server.metrics_address, Objectives(latency_s=0.3)).gaps
    assert {gap.reason for gap in gaps} == {'no sample has le="0.3"'}
    assert {gap.where.partition(" ")[0] for gap in gaps} == {"recording", "alert"}


def test_no_server_at_all_is_noticed(sailed: Voyage) -> None:
    """The last test of the voyage: it ends the server."""
    assert sailed.prometheus.now(ABSENT) == {}
    sailed.server.process.send_signal(signal.SIGINT)
    until(lambda: list(sailed.prometheus.now(ABSENT).values()) == [1])
