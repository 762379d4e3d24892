"""The dashboard as the JSON that Grafana imports, provisions and exports. Knows Grafana; decides nothing of what is shown."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from seatrial_monitoring.dashboard import ROWS, SWAPPED
from seatrial_monitoring.series import BUILD, REQUESTS
from seatrial_monitoring.spec import Panel, Row

COLUMNS, HEIGHT, STAT_HEIGHT = 24, 8, 4
SOURCE = {"type": "prometheus", "uid": "$datasource"}
SCHEMA = 39


def dashboard(*, runbook: str, rows: Sequence[Row] = ROWS) -> str:
    drawn = {
        "uid": "seatrial-serving",
        "title": "Seatrial serving",
        "description": "What `seatrial serve` does for its callers, and what it is busy with. Generated.",
        "tags": ["seatrial"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_swaps()]},
        "links": [_link("Runbook", runbook)],
        "panels": list(_panels(rows, runbook)),
    }
    return json.dumps(drawn, indent=2) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    yield _variable("job", f"label_values({BUILD.exposed[0]}, job)")
    for name, chosen in (
        ("model", 'job=~"$job"'),
        ("version", 'job=~"$job", model=~"$model"'),
        ("variant", 'job=~"$job", model=~"$model", version=~"$version"'),
    ):
        yield _variable(name, f"label_values({REQUESTS.exposed[0]}{{{chosen}}}, {name})")


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _swaps() -> dict[str, Any]:
    return {
        "name": "Swaps",
        "datasource": SOURCE,
        "enable": True,
        "expr": SWAPPED,
        "titleFormat": "{{model}}: a new generation",
        "iconColor": "blue",
    }


def _panels(rows: Sequence[Row], runbook: str) -> Iterator[dict[str, Any]]:
    top = number = 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, top, COLUMNS, 1),
        }
        top += 1
        across = min(4, len(row.panels))
        width = COLUMNS // across
        height = STAT_HEIGHT if all(panel.kind == "stat" for panel in row.panels) else HEIGHT
        for index, panel in enumerate(row.panels):
            number += 1
            place = _place(width * (index % across), top + height * (index // across), width, height)
            yield {"id": number, "gridPos": place, **_panel(panel, runbook)}
        top += height * -(-len(row.panels) // across)


def _panel(panel: Panel, runbook: str) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "links": [_link(alert, f"{runbook}#{alert.lower()}") for alert in panel.alerts],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit} | ({"min": 0} if panel.from_zero else {})
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        field["custom"] = {"fillOpacity": 20 if panel.stacked else 0, "stacking": stacking, "spanNulls": False}
    return field


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "textMode": "value_and_name"}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _link(title: str, url: str) -> dict[str, Any]:
    return {"title": title, "url": url, "type": "link", "targetBlank": True}
