"""What a server has counted, kept in plain integers and rendered when somebody asks.

The hot path adds to the fields of a `ModelMetrics`; no object of `prometheus_client` is touched there. Counters belong to
a model version and variant, not to the processes that run it: they survive a generation.
"""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from seatrial import __version__
from seatrial_monitoring import series, triton_names
from seatrial_monitoring.series import Closing, Denial, Outcome, Protocol, Rejection, Series, Swap


class Histogram:
    """Counts per bucket; `edges` are the buckets' inclusive upper bounds, without infinity."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        cumulative = 0
        pairs = []
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            cumulative += count
            pairs.append((series.le(edge), float(cumulative)))
        return pairs

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class BatchesOfSize:
    """Batches of one number of rows that engines ran."""

    count: int = 0
    compute_s: float = 0.0


class ModelMetrics:
    """The counters of one model version and variant."""

    def __init__(self, labels: tuple[str, str, str], edges_s: Sequence[float]) -> None:
        self.labels = labels
        self.requests = {protocol: dict.fromkeys(Outcome, 0) for protocol in Protocol}
        self.request_s = Histogram(edges_s)
        self.queue_s = Histogram(edges_s)
        self.compute_s = Histogram(edges_s)
        self.batch_rows = Histogram(series.BATCH_EDGES)
        self.rejected = dict.fromkeys(Rejection, 0)
        self.engine_deaths = 0
        self.retried = 0
        self.quarantined = 0
        self.cache_hits = self.cache_misses = 0
        self.cache_hit_s = 0.0
        """The part of `request_s` that went to requests that were answered from the cache."""
        self.computed_requests = 0
        self.compute_shared_s = 0.0
        """Compute time as each request of a batch saw it, which is how Triton counts it."""
        self.by_rows: dict[int, BatchesOfSize] = {}
        self.tokens = 0
        """Of batches whose rows differ in length: what they asked for, and what was added to make them equally long."""
        self.padding = 0
        self.failed_s = 0.0
        """The part of `request_s` that went to requests that did not end well."""
        self.last_computed = 0.0
        """When an engine last ran a batch, in seconds since 1970; 0 for never."""

    def computed(self, compute_s: float, *, rows: int, requests: int) -> None:
        """Count one batch that an engine ran."""
        self.compute_s.observe(compute_s)
        self.batch_rows.observe(rows)
        self.computed_requests += requests
        self.compute_shared_s += compute_s * requests
        self.last_computed = time.time()
        size = self.by_rows.get(rows)
        if size is None:
            size = self.by_rows[rows] = BatchesOfSize()
        size.count += 1
        size.compute_s += compute_s


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFacts:
    """What a generation is doing at the moment of a scrape. `alias` is empty where the version is pinned."""

    model: str
    version: str
    variant: str
    digest: str
    alias: str
    verified: bool
    engines: int
    queue_depth: int
    in_flight: int
    load_s: float
    resident_bytes: int

    @property
    def labels(self) -> tuple[str, str, str]:
        return self.model, self.version, self.variant


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasFacts:
    """How long `alias` has meant something else than what answers, at the moment of a scrape."""

    model: str
    alias: str
    drift_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    ready: bool = False
    registry_age_s: float = -1.0
    log_dropped: int = 0
    log_written: int = 0
    generations: Sequence[GenerationFacts] = ()
    aliases: Sequence[AliasFacts] = ()
    denied: Mapping[Denial, int] = field(default_factory=lambda: dict.fromkeys(Denial, 0))


@dataclass(slots=True, eq=False)
class ServingMetrics(Collector):
    """All counters of a server. `facts` is asked at each scrape for what is a state rather than a count."""

    registry: CollectorRegistry
    latency_budget_s: float
    facts: Callable[[], ServerFacts] = ServerFacts
    unknown_model: dict[Protocol, int] = field(default_factory=lambda: dict.fromkeys(Protocol, 0))
    not_loaded: dict[str, dict[Protocol, int]] = field(default_factory=dict)
    """Requests for models that are still to come: refused, without a version or variant to count them for."""
    swaps: dict[str, dict[Swap, int]] = field(default_factory=dict)
    closed: dict[Protocol, dict[Closing, int]] = field(
        default_factory=lambda: {protocol: dict.fromkeys(Closing, 0) for protocol in (Protocol.REST, Protocol.GRPC)}
    )
    _models: dict[tuple[str, str, str], ModelMetrics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry.register(self)

    def model(self, name: str, version: str, variant: str) -> ModelMetrics:
        """The counters of this model version and variant, from zero the first time."""
        labels = (name, version, variant)
        self.swaps.setdefault(name, dict.fromkeys(Swap, 0))
        if labels not in self._models:
            self._models[labels] = ModelMetrics(labels, series.latency_edges_s(self.latency_budget_s))
        return self._models[labels]

    def expect(self, name: str) -> None:
        """Count from zero the requests that come for `name` before it is loaded."""
        self.not_loaded.setdefault(name, dict.fromkeys(Protocol, 0))

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        models = list(self._models.values())
        facts = self.facts()
        yield _counter(series.REQUESTS, (*self._refused_before_loaded(), *_by_outcome(models)))
        yield _counter(
            series.REJECTED,
            (((*model.labels, reason), count) for model in models for reason, count in model.rejected.items()),
        )
        yield _histogram(series.REQUEST_DURATION, ((model.labels, model.request_s) for model in models))
        yield _histogram(series.QUEUE_DURATION, ((model.labels, model.queue_s) for model in models))
        yield _histogram(series.COMPUTE_DURATION, ((model.labels, model.compute_s) for model in models))
        yield _histogram(series.BATCH_SIZE, ((model.labels, model.batch_rows) for model in models))
        yield _counter(series.TOKENS, ((model.labels, model.tokens) for model in models))
        yield _counter(series.PADDING, ((model.labels, model.padding) for model in models))
        yield _counter(series.ENGINE_DEATHS, ((model.labels, model.engine_deaths) for model in models))
        yield _counter(series.RETRIED, ((model.labels, model.retried) for model in models))
        yield _counter(series.QUARANTINED, ((model.labels, model.quarantined) for model in models))
        yield _counter(series.CACHE_HITS, ((model.labels, model.cache_hits) for model in models))
        yield _counter(series.CACHE_MISSES, ((model.labels, model.cache_misses) for model in models))
        yield _counter(series.UNKNOWN_MODEL, (((protocol,), n) for protocol, n in self.unknown_model.items()))
        yield _counter(
            series.SWAPS, (((name, outcome), n) for name, by in self.swaps.items() for outcome, n in by.items())
        )
        yield _counter(
            series.CLOSED, (((protocol, reason), n) for protocol, by in self.closed.items() for reason, n in by.items())
        )
        yield from _states(facts)
        yield _gauge(series.BUILD, [((__version__, platform.python_version()), 1)])
        yield from triton_names.collect(models, facts)

    def _refused_before_loaded(self) -> "Iterator[tuple[Sequence[str], float]]":
        for name, by_protocol in self.not_loaded.items():
            for protocol, count in by_protocol.items():
                yield (name, "", "", protocol, Outcome.REFUSED), count


def _by_outcome(models: Iterable[ModelMetrics]) -> "Iterator[tuple[Sequence[str], float]]":
    for model in models:
        for protocol, by_outcome in model.requests.items():
            for outcome, count in by_outcome.items():
                yield (*model.labels, protocol, outcome), count


def _states(facts: ServerFacts) -> Iterator[Metric]:
    yield _gauge(series.READY, [((), facts.ready)])
    yield _gauge(series.REGISTRY_AGE, [((), facts.registry_age_s)])
    yield _gauge(series.ALIAS_DRIFT, (((each.model, each.alias), each.drift_s) for each in facts.aliases))
    yield _counter(series.DENIED, (((denial,), count) for denial, count in facts.denied.items()))
    yield _counter(series.LOG_DROPPED, [((), facts.log_dropped)])
    yield _counter(series.LOG_WRITTEN, [((), facts.log_written)])
    live = facts.generations
    yield _gauge(series.QUEUE_DEPTH, _by_model(live, lambda each: each.queue_depth))
    yield _gauge(series.IN_FLIGHT, _by_model(live, lambda each: each.in_flight))
    yield _gauge(series.ENGINES, _by_model(live, lambda each: each.engines))
    yield _gauge(series.LOAD_DURATION, _by_model(live, lambda each: each.load_s, together=max))
    yield _gauge(series.RESIDENT, _by_model(live, lambda each: each.resident_bytes))
    loaded = {(*each.labels, each.digest, each.alias, str(each.verified).lower()): 1 for each in live}
    yield _gauge(series.LOADED, loaded.items())


Samples = Iterable[tuple[Sequence[str], float]]


def _by_model(
    generations: Iterable[GenerationFacts],
    fact: Callable[[GenerationFacts], float],
    *,
    together: Callable[[Iterable[float]], float] = sum,
) -> Samples:
    """Two aliases of one version are two generations with the same labels, and Prometheus takes none of them twice."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for each in generations:
        found.setdefault(each.labels, []).append(fact(each))
    return ((labels, together(values)) for labels, values in found.items())


def _counter(spec: Series, samples: Samples) -> Metric:
    family = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _gauge(spec: Series, samples: Samples) -> Metric:
    family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(spec: Series, samples: Iterable[tuple[Sequence[str], Histogram]]) -> Metric:
    family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, histogram in samples:
        family.add_metric(labels, buckets=histogram.buckets(), sum_value=histogram.total)
    return family
