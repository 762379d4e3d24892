"""Pieces of PromQL that cannot name a series or label that we do not export, and what an expression asks for.

Dashboards and rules are put together from these; the check of a live server, and the tests, take them apart again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from seatrial_monitoring.series import MODEL, Series

PANEL_WINDOW = "$__rate_interval"
"""Grafana puts at least four scrape intervals in its place."""
TARGET_LABELS = ("namespace", "job", "instance")
"""What Prometheus adds to every series. `namespace` is there on Kubernetes only; elsewhere grouping by it does nothing."""
BY_MODEL = ("namespace", "job", "model")

_SELECTOR = re.compile(r"\b((?:seatrial_|process_|nv_inference_|slo:)[\w:]*)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Matcher:
    label: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f'{self.label}{self.operator}"{self.value}"'

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether `labels` match. What a dashboard variable or the target decides matches everything."""
        if "$" in self.value or self.label in TARGET_LABELS:
            return True
        found = labels.get(self.label, "")
        equal = bool(re.fullmatch(self.value, found)) if "~" in self.operator else found == self.value
        return equal is not self.operator.startswith("!")


@dataclass(frozen=True, slots=True)
class Selector:
    name: str
    matchers: tuple[Matcher, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}{{{', '.join(map(str, self.matchers))}}}" if self.matchers else self.name


def selectors(expression: str) -> tuple[Selector, ...]:
    """Every series that `expression` asks for, in order, each once."""
    found = (
        Selector(name, tuple(Matcher(*match) for match in _MATCHER.findall(matchers)))
        for name, matchers in _SELECTOR.findall(expression)
    )
    return tuple(dict.fromkeys(found))


def select(series: Series, *conditions: str, part: str = "") -> str:
    """`series`, or one `part` of a histogram, where all `conditions` hold, each as `label="value"`."""
    name = f"{series.name}_{part}" if part else series.exposed[0]
    assert name in series.exposed, f"{series.name} exposes {series.exposed}, not {name}: this is a bug"
    known = {*series.labels, *TARGET_LABELS, *(("le",) if part == "bucket" else ())}
    for condition in conditions:
        match = _MATCHER.fullmatch(condition)
        assert match is not None, f"{condition} is no condition: this is a bug"
        assert match[1] in known, f"{series.name} has the labels {known}, not {match[1]}: this is a bug"
    return f"{name}{{{', '.join(conditions)}}}" if conditions else name


def chosen(series: Series, *conditions: str, part: str = "") -> str:
    """`series` for what the reader of a dashboard has chosen."""
    variables = [f'{label}=~"${label}"' for label in ("job", *MODEL) if label == "job" or label in series.labels]
    return select(series, *variables, *conditions, part=part)


def total(labels: tuple[str, ...], inner: str) -> str:
    return f"sum by ({', '.join(labels)}) ({inner})" if labels else f"sum({inner})"


def per_second(selector: str, window: str = PANEL_WINDOW) -> str:
    return f"rate({selector}[{window}])"


def grown(selector: str, window: str) -> str:
    return f"increase({selector}[{window}])"


def ratio(part: str, whole: str) -> str:
    """Nothing, rather than NaN, where the whole is zero: what had no traffic broke no promise."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, series: Series) -> str:
    """Per model, version and variant. Nothing, rather than NaN, where there was no traffic."""
    rates = total(("le", *MODEL), per_second(chosen(series, part="bucket")))
    return f"histogram_quantile({q:g}, {rates}) >= 0"


def mean(series: Series) -> str:
    def rate(part: str) -> str:
        return total(MODEL, per_second(chosen(series, part=part)))

    return ratio(rate("sum"), rate("count"))
