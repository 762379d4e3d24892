"""The specification names only what the server exports, and what is generated from it is what its readers take."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import InvalidSettings
from seatrial_monitoring import series
from seatrial_monitoring.check import expressions, gaps, read
from seatrial_monitoring.dashboard import ROWS
from seatrial_monitoring.objectives import BURNS, Objectives
from seatrial_monitoring.promql import TARGET_LABELS, Matcher, Selector, chosen, select, selectors
from seatrial_monitoring.rules import rules
from seatrial_monitoring.runbook import runbook
from seatrial_monitoring.series import MODEL, Outcome, Protocol, Rejection, Swap
from seatrial_monitoring.written import DASHBOARD_PATH, PROOFS, RULES_PATH, watching, write
from tests.tools import tool

RULES = rules(Objectives())
CLOSED = {"outcome": {*Outcome, *Swap}, "reason": set(Rejection), "protocol": set(Protocol)}
KNOWN = {
    name: {*each.labels, *TARGET_LABELS, *({"le"} if name.endswith("_bucket") else ())}
    for each in (*series.ALL, *series.STANDARD)
    for name in each.exposed
}
OTHERS = [
    Objectives(availability=0.99, latency=0.95, latency_s=0.25),
    Objectives(
        availability=0.9999, latency=0.999, latency_s=1.0, least_bad=50, runbook="https://runbooks.test/seatrial"
    ),
]


@pytest.mark.parametrize(("where", "expression"), list(expressions(RULES)))
def test_every_expression_names_only_what_is_exported_or_recorded(where: str, expression: str) -> None:
    recorded = {recording.name for recording in RULES.recordings}
    asked = selectors(expression)
    assert asked, where
    for selector in asked:
        assert selector.name in KNOWN or selector.name in recorded, f"{where} asks for {selector.name}"
        for matcher in selector.matchers:
            assert selector.name in recorded or matcher.label in KNOWN[selector.name], f"{where}: {matcher}"
            if matcher.label in CLOSED:
                assert set(matcher.value.split("|")) <= CLOSED[matcher.label], f"{where}: {matcher}"


def test_a_series_or_label_that_is_not_exported_cannot_be_asked_for() -> None:
    with pytest.raises(AssertionError, match="has the labels"):
        select(series.READY, 'model="m"')
    with pytest.raises(AssertionError, match="not seatrial_ready_bucket"):
        select(series.READY, part="bucket")
    assert chosen(series.SWAPS) == 'seatrial_swaps_total{job=~"$job", model=~"$model"}'


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("rate(seatrial_requets_total[5m])", "the server exports no such series"),
        ('seatrial_requests_total{outcome="fine"}', 'no sample has outcome="fine"'),
        ('seatrial_requests_total{outcome="ok", model=~"b.*"}', "no sample has all these labels together"),
    ],
)
def test_a_gap_is_found_and_explained(expression: str, reason: str) -> None:
    text = (
        'seatrial_requests_total{model="a", outcome="ok"} 1\nseatrial_requests_total{model="b", outcome="refused"} 1\n'
    )
    [gap] = gaps([("panel 'x'", expression)], read(text, url=""), RULES)
    assert gap.reason == reason
    assert (
        list(gaps([("", 'sum(seatrial_requests_total{outcome!~"ok|x", job=~"$job"})')], read(text, url=""), RULES))
        == []
    )


NAMES = st.from_regex(r"seatrial_[a-z_]{1,12}", fullmatch=True)
VALUES = st.from_regex(r"[a-z.*|]{0,8}", fullmatch=True)
MATCHERS = st.builds(
    Matcher, st.sampled_from(["model", "outcome", "le"]), st.sampled_from(["=", "!=", "=~", "!~"]), VALUES
)
SELECTORS = st.builds(Selector, NAMES, st.lists(MATCHERS, max_size=3).map(tuple))


@given(st.lists(SELECTORS, min_size=1, max_size=4, unique=True))
def test_an_expression_can_be_taken_apart_again(asked: list[Selector]) -> None:
    expression = " / ".join(f"sum by (model) (rate({selector}[5m]))" for selector in asked)
    assert selectors(expression) == tuple(asked)


# The dashboard


def panels() -> Iterator[Any]:
    yield from json.loads(watching(Objectives())[DASHBOARD_PATH])["panels"]


def test_panels_lie_side_by_side_and_have_what_a_reader_needs() -> None:
    drawn = list(panels())
    assert len({panel["id"] for panel in drawn}) == len(drawn)
    for one, other in combinations([panel["gridPos"] for panel in drawn], 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)
    for panel in drawn:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_variables_are_those_that_expressions_use() -> None:
    dashboard = json.loads(watching(Objectives())[DASHBOARD_PATH])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "job", *MODEL}
    text = json.dumps(dashboard)
    assert all(f"${name}" in text for name in variables)


def test_alerts_and_panels_link_to_sections_that_the_runbook_has() -> None:
    sections = {line.removeprefix("## ") for line in runbook(Objectives()).splitlines() if line.startswith("## ")}
    alerts = {alert.name for alert in RULES.alerts}
    assert alerts == set(RULES.advice)
    assert alerts <= sections
    assert {alert for row in ROWS for panel in row.panels for alert in panel.alerts} == alerts
    links = [link["url"] for panel in panels() for link in panel.get("links", ())]
    assert {link.partition("#")[2] for link in links} == {alert.lower() for alert in alerts}


def test_the_runbook_s_panels_are_on_the_dashboard() -> None:
    titles = {panel.title for row in ROWS for panel in row.panels} | {row.title for row in ROWS}
    for advice in RULES.advice.values():
        for hint in advice.look:
            assert set(re.findall(r"\*([A-Z][^*`]+)\*", hint)) <= titles, hint


# Rules


@pytest.mark.parametrize(
    "objectives",
    [Objectives(), *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)],
    ids=lambda each: f"{each.availability}",
)
def test_promtool_takes_the_rules_and_every_proof_holds(objectives: Objectives, tmp_path: Path) -> None:
    write(tmp_path, objectives)
    promtool(tmp_path, "check", "rules", RULES_PATH)
    promtool(tmp_path, "test", "rules", *PROOFS)


CAUSES, OBJECTIVES = PROOFS


@pytest.mark.parametrize(
    ("right", "wrong", "proof"),
    [
        pytest.param(
            'outcome!~"client_error|abandoned"', 'outcome!~"abandoned"', OBJECTIVES, id="callers' errors count"
        ),
        pytest.param("for: 10m", "for: 1m", CAUSES, id="too soon"),
        *(
            pytest.param(*fault, marks=pytest.mark.slow, id=by)
            for by, *fault in (
                ("the ratio is never there", "/ (sum by", "/ (0 * sum by", OBJECTIVES),
                ("failures do not count", "refused|deadline|server_error", "refused|deadline", OBJECTIVES),
                ("the page comes late", "0.0144", "0.144", OBJECTIVES),
                ("an alert outlives its trouble", "ratio_rate5m{", "ratio_rate1h{", OBJECTIVES),
                ("nothing is enough", ">= 5", ">= 50000000", OBJECTIVES),
                ("few are too many", ">= 5", ">= 0", OBJECTIVES),
                ("engines may die for ever", "> 2", "> 2000", CAUSES),
                ("a healthy server is reported", "> 60", "> -2", CAUSES),
            )
        ),
    ],
)
def test_a_wrong_rule_is_found_by_its_proof(right: str, wrong: str, proof: str, tmp_path: Path) -> None:
    write(tmp_path, Objectives())
    path = tmp_path / RULES_PATH
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool(tmp_path, "test", "rules", proof)


def promtool(place: Path, *arguments: str) -> None:
    ran = subprocess.run(
        [tool("promtool"), *arguments], cwd=place, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_cause_is_proved_and_every_alert_says_what_to_do() -> None:
    burning = {alert.name for alert in RULES.alerts if "slo" in alert.labels}
    assert burning == {"SeatrialAvailabilityBurn", "SeatrialLatencyBurn"}
    for alert in RULES.alerts:
        assert alert.name in burning or alert.proof is not None, alert.name
    written = yaml.safe_load(watching(Objectives())[RULES_PATH])
    for alert in (rule for group in written["groups"] for rule in group["rules"] if "alert" in rule):
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["labels"]["severity"] in ("page", "ticket")


def test_burn_rates_are_the_workbook_s() -> None:
    month_h = 30 * 24
    spent = {burn.long: burn.factor * hours / month_h for burn, hours in zip(BURNS, (1, 6, 24, 72), strict=True)}
    assert spent == pytest.approx({"1h": 0.02, "6h": 0.05, "1d": 0.1, "3d": 0.1})


@pytest.mark.parametrize("objective", [0.5, 0.949, 1.0, 99.9])
def test_an_objective_whose_page_could_never_come_is_refused(objective: float) -> None:
    with pytest.raises(InvalidSettings, match="at least 95 and below 100"):
        replace(Objectives(), availability=objective)
