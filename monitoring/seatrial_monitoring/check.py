"""What would stay empty: asks a live server which series it exports, and holds panels and rules against them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from seatrial.errors import InvalidSource, NotReady
from seatrial_monitoring.dashboard import ROWS
from seatrial_monitoring.objectives import Objectives
from seatrial_monitoring.promql import Selector, selectors
from seatrial_monitoring.rules import rules
from seatrial_monitoring.series import ALIAS_DRIFT, LOADED
from seatrial_monitoring.spec import Rules

Exported = Mapping[str, Sequence[Mapping[str, str]]]
"""The labels of each sample, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Something that would show or say nothing, and the series that it misses."""

    where: str
    missing: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    panels: int
    rules: int
    series: int
    gaps: tuple[Gap, ...]


def check(url: str, objectives: Objectives) -> Checked:
    """Raises `NotReady` where nobody answers, `InvalidSource` where the answer is no exposition of metrics."""
    exported = read(_ask(url), url=url)
    written = rules(objectives)
    panels = [panel for row in ROWS for panel in row.panels]
    return Checked(
        panels=len(panels),
        rules=len(written.recordings) + len(written.alerts),
        series=sum(map(len, exported.values())),
        gaps=tuple(dict.fromkeys(gaps(expressions(written), exported, written))),
    )


def expressions(written: Rules) -> Iterator[tuple[str, str]]:
    """Every expression, with the words for where it stands."""
    for row in ROWS:
        for panel in row.panels:
            yield from ((f"panel '{panel.title}'", query.expr) for query in panel.queries)
    yield from ((f"recording {recording.name}", recording.expr) for recording in written.recordings)
    for alert in written.alerts:
        for condition in alert.conditions:
            yield f"alert {alert.name}", condition.signal


def gaps(asked: Iterable[tuple[str, str]], exported: Exported, written: Rules) -> Iterator[Gap]:
    elsewhere = {recording.name for recording in written.recordings}
    if not any(labels["alias"] for labels in exported.get(LOADED.name, ())):
        elsewhere.add(ALIAS_DRIFT.name)  # who follows no alias cannot drift from it
    for where, expression in asked:
        for selector in selectors(expression):
            if selector.name not in elsewhere and (reason := _why_empty(selector, exported)):
                yield Gap(where=where, missing=str(selector), reason=reason)


def read(text: str, *, url: str) -> Exported:
    exported: dict[str, list[Mapping[str, str]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                exported.setdefault(sample.name, []).append(sample.labels)
    except ValueError as error:
        raise InvalidSource(f"{url} answers, but not with metrics: {error}") from error
    return exported


def _why_empty(selector: Selector, exported: Exported) -> str:
    if selector.name not in exported:
        return "the server exports no such series"
    for matcher in selector.matchers:
        if not any(matcher.accepts(labels) for labels in exported[selector.name]):
            return f"no sample has {matcher}"
    if not any(all(matcher.accepts(labels) for matcher in selector.matchers) for labels in exported[selector.name]):
        return "no sample has all these labels together"
    return ""


def _ask(url: str) -> str:
    whole = url if "://" in url else f"http://{url}"
    if urlsplit(whole).path in ("", "/"):
        whole = whole.rstrip("/") + "/metrics"
    try:
        answer = httpx.get(whole, timeout=10)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotReady(f"{whole} does not give its metrics: {error}; a server's are on port 8002") from error
    return answer.text
