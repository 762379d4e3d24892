"""The rules and their unit tests, as the YAML that Prometheus and promtool read."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from seatrial_monitoring.objectives import BURNS, Indicator, Objectives, indicators
from seatrial_monitoring.rules import rules
from seatrial_monitoring.spec import Alert, Rules

HEADER = (
    "# Generated from seatrial_monitoring; change the specification, or write anew with `seatrial monitor write`.\n"
)
RULES_FILE = "seatrial.rules.yaml"
A_MINUTE = 1_000_000
"""Requests that callers send each minute in the tests of burn rates."""
MODEL = 'job="seatrial", model="m", version="1", variant="fp32"'
MODEL_LABELS = {"job": "seatrial", "model": "m"}


def rule_file(objectives: Objectives) -> str:
    written = rules(objectives)
    return HEADER + _yaml(
        {
            "groups": [
                {
                    "name": "seatrial-objectives",
                    "rules": [_recording(each.name, each.expr, each.labels) for each in written.recordings],
                },
                {"name": "seatrial-alerts", "rules": [_alert(alert, objectives) for alert in written.alerts]},
            ]
        }
    )


def proofs_of_causes(objectives: Objectives) -> str:
    """Each alert of a cause fires when it must, and no alert does in health or without traffic."""
    written = rules(objectives)
    return _tests(
        [
            *_causes(written, objectives),
            _quiet("healthy", _healthy(objectives), written),
            _quiet("no traffic", _idle(objectives), written),
        ],
        evaluated="1m",
    )


def proofs_of_objectives(objectives: Objectives) -> str:
    """Burn alerts; evaluated less often, because they look back over days."""
    written = rules(objectives)
    return _tests(
        [test for indicator in indicators(objectives) for test in _burns(indicator, written, objectives)],
        evaluated="5m",
    )


def _tests(tests: list[dict[str, Any]], *, evaluated: str) -> str:
    return HEADER + _yaml({"rule_files": [RULES_FILE], "evaluation_interval": evaluated, "tests": tests})


# Rules


def _recording(name: str, expr: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"record": name, "expr": expr, "labels": dict(labels)}


def _alert(alert: Alert, objectives: Objectives) -> dict[str, Any]:
    hold = {"for": f"{alert.hold_m}m"} if alert.hold_m else {}
    return {
        "alert": alert.name,
        "expr": alert.expr,
        **hold,
        "labels": {"severity": alert.severity, **alert.labels},
        "annotations": _annotations(alert, objectives),
    }


def _annotations(alert: Alert, objectives: Objectives) -> dict[str, str]:
    return {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{objectives.runbook}#{alert.name.lower()}",
    }


# Their tests


def _causes(written: Rules, objectives: Objectives) -> Iterator[dict[str, Any]]:
    for alert in written.alerts:
        if (proof := alert.proof) is not None:
            fired = _fired(alert, objectives, labels=proof.labels, value=proof.value)
            yield {
                "name": alert.name,
                "interval": "1m",
                "input_series": _series(proof.series),
                "alert_rule_test": [
                    {"eval_time": f"{proof.quiet}m", "alertname": alert.name, "exp_alerts": []},
                    {"eval_time": f"{proof.fires}m", "alertname": alert.name, "exp_alerts": [fired]},
                ],
            }


def _burns(indicator: Indicator, written: Rules, objectives: Objectives) -> Iterator[dict[str, Any]]:
    """Steady burning wakes exactly those pairs of windows that it must; a burst that is over falls silent, shortest first."""
    pairs = [alert for alert in written.alerts if alert.name == indicator.alert]
    for level in (20.0, 10.0, 4.0, 2.0, 0.5):
        share = min(level * indicator.budget, 1.0)
        firing = [alert for alert, burn in zip(pairs, BURNS, strict=True) if share > burn.factor * indicator.budget]
        yield {
            "name": f"{indicator.slo} at {level:g} times the budget",
            "interval": "1m",
            "input_series": _series(_traffic(indicator, [(share, 15)])),
            "alert_rule_test": [
                {
                    "eval_time": "15m",
                    "alertname": indicator.alert,
                    "exp_alerts": [
                        _fired(alert, objectives, labels=MODEL_LABELS, value=f"{100 * share:.4g}%") for alert in firing
                    ],
                }
            ],
        }
    yield {
        "name": f"{indicator.slo}: an hour in which all went wrong, and what is still firing after it",
        "interval": "1m",
        "input_series": _series(_traffic(indicator, [(1.0, 60), (0.0, 370)])),
        "promql_expr_test": [
            {
                "expr": f'count by (windows) (ALERTS{{alertname="{indicator.alert}", alertstate="firing"}})',
                "eval_time": at,
                "exp_samples": [{"labels": f'{{windows="{windows}"}}', "value": 1} for windows in firing],
            }
            for at, firing in (
                ("60m", ["1h/5m", "6h/30m", "1d/2h", "3d/6h"]),
                ("70m", ["6h/30m", "1d/2h", "3d/6h"]),
                ("95m", ["1d/2h", "3d/6h"]),
                ("185m", ["3d/6h"]),
                ("425m", []),
            )
        ],
    }
    yield {
        "name": f"{indicator.slo}: everything goes wrong, but it is fewer than {objectives.least_bad} requests",
        "interval": "1m",
        "input_series": _series(
            _traffic(indicator, [(0.0, 10), (1.0, 1), (0.0, 59)], a_minute=objectives.least_bad - 1)
        ),
        "alert_rule_test": [
            {"eval_time": f"{at}m", "alertname": indicator.alert, "exp_alerts": []} for at in (15, 20, 70)
        ],
    }


def _traffic(indicator: Indicator, phases: list[tuple[float, int]], *, a_minute: int = A_MINUTE) -> dict[str, str]:
    """Series in which, phase by phase, this share of the requests breaks the promise for so many minutes."""
    bad = [(round(a_minute * share), minutes) for share, minutes in phases]
    good = [(a_minute - each, minutes) for each, minutes in bad]
    counted = [(a_minute, minutes) for _, minutes in phases]
    return indicator.example(MODEL, counted=_counter(counted), good=_counter(good), bad=_counter(bad))


def _counter(phases: list[tuple[int, int]]) -> str:
    """A counter as promtool writes it, that grows by so much each minute, for so many minutes."""
    written, reached = ["0"], 0
    for each, minutes in phases:
        written.append(f"{reached + each}+{each}x{minutes - 1}")
        reached += each * minutes
    return " ".join(written)


def _fired(alert: Alert, objectives: Objectives, *, labels: Mapping[str, str], value: str) -> dict[str, Any]:
    annotations = {
        name: _rendered(words, labels=labels, value=value) for name, words in _annotations(alert, objectives).items()
    }
    return {"exp_labels": {"severity": alert.severity, **alert.labels, **labels}, "exp_annotations": annotations}


def _rendered(words: str, *, labels: Mapping[str, str], value: str) -> str:
    """`words` as Prometheus renders its templates."""
    for label, found in labels.items():
        words = words.replace(f"{{{{ $labels.{label} }}}}", found)
    for form in ('{{ $value | printf "%.0f" }}', "{{ $value | humanizePercentage }}"):
        words = words.replace(form, value)
    assert "{{" not in words, f"no proof says what to put into {words!r}: this is a bug"
    return words


def _healthy(objectives: Objectives) -> dict[str, str]:
    """An hour and more of a server at work, with one bad request in ten thousand."""
    traffic: dict[str, str] = {}
    for indicator in indicators(objectives):
        traffic |= indicator.example(MODEL, counted="0+10000x80", good="0+9999x80", bad="0+1x80")
    return traffic | {
        'seatrial_build_info{job="seatrial", instance="a"}': "1x80",
        'seatrial_ready{job="seatrial", instance="a"}': "1x80",
        f"seatrial_engine_deaths_total{{{MODEL}}}": "0x60 1x20",
        f"seatrial_quarantined_requests_total{{{MODEL}}}": "0x80",
        f'seatrial_rejected_total{{{MODEL}, reason="queue_full"}}': "0x80",
        'seatrial_registry_age_seconds{job="seatrial", instance="a"}': "1x80",
        'seatrial_alias_drift_seconds{job="seatrial", model="m", alias="champion"}': "0x60 2 0x19",
        'seatrial_request_log_dropped_total{job="seatrial", instance="a"}': "0x80",
    }


def _idle(objectives: Objectives) -> dict[str, str]:
    """An hour and more in which nobody asked anything."""
    healthy = _healthy(objectives)
    return {series: values if values == "1x80" else "0x80" for series, values in healthy.items()}


def _quiet(name: str, series: Mapping[str, str], written: Rules) -> dict[str, Any]:
    """With `series`, not one alert, not even one that waits."""
    return {
        "name": name,
        "interval": "1m",
        "input_series": _series(series),
        "alert_rule_test": [
            {"eval_time": "75m", "alertname": alert, "exp_alerts": []}
            for alert in dict.fromkeys(a.name for a in written.alerts)
        ],
        "promql_expr_test": [{"expr": "count(ALERTS)", "eval_time": "75m", "exp_samples": []}],
    }


def _series(series: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]


class _Dumper(yaml.SafeDumper):
    pass


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _yaml(document: Any) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, default_flow_style=False)
