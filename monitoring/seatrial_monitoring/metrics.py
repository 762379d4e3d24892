"""What a server has counted, kept in plain integers and rendered when somebody asks.

The hot path adds to the fields of a `ModelMetrics`; no object of `prometheus_client` is touched there. Counters belong to
a model version and variant, not to the processes that run it: they survive a generation. Of several gateways each counts for
itself; what they have counted is added up when somebody asks.
"""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from seatrial import __version__
from seatrial_monitoring import series, triton_names
from seatrial_monitoring.series import Closing, Denial, Outcome, Protocol, Rejection, Series, Swap


@dataclass(slots=True)
class Histogram:
    """Counts per bucket; `edges` are the buckets' inclusive upper bounds, without infinity."""

    edges: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.edges) + 1)

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


@dataclass(slots=True, kw_only=True, eq=False)
class ModelMetrics:
    """The counters of one model version and variant. Created by `zero`."""

    labels: tuple[str, str, str]
    request_s: Histogram
    queue_s: Histogram
    compute_s: Histogram
    batch_rows: Histogram = field(default_factory=lambda: Histogram(series.BATCH_EDGES))
    requests: dict[Protocol, dict[Outcome, int]] = field(
        default_factory=lambda: {protocol: dict.fromkeys(Outcome, 0) for protocol in Protocol}
    )
    rejected: dict[Rejection, int] = field(default_factory=lambda: dict.fromkeys(Rejection, 0))
    engine_deaths: int = 0
    retried: int = 0
    quarantined: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_hit_s: float = 0.0
    """The part of `request_s` that went to requests that were answered from the cache."""
    computed_requests: int = 0
    compute_shared_s: float = 0.0
    """Compute time as each request of a batch saw it, which is how Triton counts it."""
    by_rows: dict[int, BatchesOfSize] = field(default_factory=dict)
    tokens: int = 0
    """Of batches whose rows differ in length: what they asked for, and what was added to make them equally long."""
    padding: int = 0
    failed_s: float = 0.0
    """The part of `request_s` that went to requests that did not end well."""
    last_computed: float = 0.0
    """When an engine last ran a batch, in seconds since 1970; 0 for never."""

    @classmethod
    def zero(cls, labels: tuple[str, str, str], edges_s: Sequence[float]) -> "ModelMetrics":
        return cls(
            labels=labels, request_s=Histogram(edges_s), queue_s=Histogram(edges_s), compute_s=Histogram(edges_s)
        )

    def plus(self, other: "ModelMetrics") -> "ModelMetrics":
        """With what another gateway has counted for the same model; but the death of an engine, which each of them has seen,
        is counted by this one."""
        names = {each.name for each in fields(self)} - {"labels", "engine_deaths", "last_computed"}
        sums = {name: _sum(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, **sums, last_computed=max(self.last_computed, other.last_computed))

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
    gateways: int = 1
    gateway_deaths: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What one gateway has counted since its start, and what its generations are doing at this moment."""

    models: Sequence[ModelMetrics] = ()
    unknown_model: Mapping[Protocol, int] = field(default_factory=dict)
    not_loaded: Mapping[str, Mapping[Protocol, int]] = field(default_factory=dict)
    closed: Mapping[Protocol, Mapping[Closing, int]] = field(default_factory=dict)
    denied: Mapping[Denial, int] = field(default_factory=dict)
    log_dropped: int = 0
    log_written: int = 0
    generations: Sequence[GenerationFacts] = ()

    def plus(self, other: "Counted") -> "Counted":
        """With what another gateway has counted. Engines, which are the same, this one counts."""
        mine, theirs = self.by_labels, other.by_labels
        both = {labels: mine[labels].plus(theirs[labels]) for labels in mine.keys() & theirs.keys()}
        return Counted(
            models=list((mine | theirs | both).values()),
            unknown_model=_sum(self.unknown_model, other.unknown_model),
            not_loaded=_sum(self.not_loaded, other.not_loaded),
            closed=_sum(self.closed, other.closed),
            denied=_sum(self.denied, other.denied),
            log_dropped=self.log_dropped + other.log_dropped,
            log_written=self.log_written + other.log_written,
            generations=[
                *self.generations,
                *(replace(each, engines=0, load_s=0.0, resident_bytes=0) for each in other.generations),
            ],
        )

    @property
    def by_labels(self) -> dict[tuple[str, str, str], ModelMetrics]:
        return {each.labels: each for each in self.models}


def _sum(one: Any, other: Any) -> Any:
    """Numbers added up, wherever in the two they are."""
    match one:
        case Histogram():
            counts = [mine + theirs for mine, theirs in zip(one.counts, other.counts, strict=True)]
            return Histogram(one.edges, counts, one.total + other.total)
        case BatchesOfSize():
            return BatchesOfSize(one.count + other.count, one.compute_s + other.compute_s)
        case dict():
            both = {key: _sum(one[key], other[key]) for key in one.keys() & other.keys()}
            return one | other | both
        case _:
            return one + other


@dataclass(slots=True, eq=False)
class ServingMetrics(Collector):
    """All counters of a gateway. `facts` is asked at each scrape for what is a state rather than a count, and `elsewhere`
    for what the other gateways of this server have counted."""

    registry: CollectorRegistry
    latency_budget_s: float
    facts: Callable[[], ServerFacts] = ServerFacts
    elsewhere: Callable[[], Sequence[Counted]] = tuple
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
            self._models[labels] = ModelMetrics.zero(labels, series.latency_edges_s(self.latency_budget_s))
        return self._models[labels]

    def expect(self, name: str) -> None:
        """Count from zero the requests that come for `name` before it is loaded."""
        self.not_loaded.setdefault(name, dict.fromkeys(Protocol, 0))

    def counted(self) -> Counted:
        """By this gateway: the counters themselves, no copies."""
        return self._counted(self.facts())

    def total(self) -> Counted:
        """By all gateways, as far as the others have told."""
        return self._with_others(self.counted())

    def _counted(self, facts: ServerFacts) -> Counted:
        return Counted(
            models=list(self._models.values()),
            unknown_model=self.unknown_model,
            not_loaded=self.not_loaded,
            closed=self.closed,
            denied=facts.denied,
            log_dropped=facts.log_dropped,
            log_written=facts.log_written,
            generations=facts.generations,
        )

    def _with_others(self, total: Counted) -> Counted:
        for other in self.elsewhere():
            total = total.plus(other)
        return total

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        facts = self.facts()
        total = self._with_others(self._counted(facts))
        models = total.models
        yield _counter(series.REQUESTS, (*_refused_before_loaded(total), *_by_outcome(models)))
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
        yield _counter(series.UNKNOWN_MODEL, (((protocol,), n) for protocol, n in total.unknown_model.items()))
        yield _counter(
            series.SWAPS, (((name, outcome), n) for name, by in self.swaps.items() for outcome, n in by.items())
        )
        yield _counter(
            series.CLOSED,
            (((protocol, reason), n) for protocol, by in total.closed.items() for reason, n in by.items()),
        )
        yield from _states(facts, total)
        yield _gauge(series.BUILD, [((__version__, platform.python_version()), 1)])
        yield from triton_names.collect(models, total.generations)


def _refused_before_loaded(total: Counted) -> "Iterator[tuple[Sequence[str], float]]":
    for name, by_protocol in total.not_loaded.items():
        for protocol, count in by_protocol.items():
            yield (name, "", "", protocol, Outcome.REFUSED), count


def _by_outcome(models: Iterable[ModelMetrics]) -> "Iterator[tuple[Sequence[str], float]]":
    for model in models:
        for protocol, by_outcome in model.requests.items():
            for outcome, count in by_outcome.items():
                yield (*model.labels, protocol, outcome), count


def _states(facts: ServerFacts, total: Counted) -> Iterator[Metric]:
    yield _gauge(series.READY, [((), facts.ready)])
    yield _gauge(series.GATEWAYS, [((), facts.gateways)])
    yield _counter(series.GATEWAY_DEATHS, [((), facts.gateway_deaths)])
    yield _gauge(series.REGISTRY_AGE, [((), facts.registry_age_s)])
    yield _gauge(series.ALIAS_DRIFT, (((each.model, each.alias), each.drift_s) for each in facts.aliases))
    yield _counter(series.DENIED, (((denial,), count) for denial, count in total.denied.items()))
    yield _counter(series.LOG_DROPPED, [((), total.log_dropped)])
    yield _counter(series.LOG_WRITTEN, [((), total.log_written)])
    live = total.generations
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
