"""The names, labels, help and buckets of every time series that Seatrial exports: the one list.

The server renders them, dashboards and rules refer to them, and tests hold the three together. Names follow the
conventions of Prometheus: base units, plural unit suffix, `_total` on counters, `_info` for metadata.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from prometheus_client.utils import floatToGoString

Kind = Literal["counter", "gauge", "histogram"]

MODEL = ("model", "version", "variant")


class Outcome(StrEnum):
    """How a request ended, for its caller. `client_error` does not count against availability."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    REFUSED = "refused"
    DEADLINE = "deadline"
    SERVER_ERROR = "server_error"
    ABANDONED = "abandoned"


class Protocol(StrEnum):
    REST = "rest"
    GRPC = "grpc"
    MLFLOW = "mlflow"
    TF_SERVING = "tf_serving"
    TORCHSERVE = "torchserve"
    OPENAI = "openai"


class Rejection(StrEnum):
    """Why a request was not computed, although nothing in it was wrong; of `client_error`, what is too much."""

    QUEUE_FULL = "queue_full"
    NOT_READY = "not_ready"
    DEADLINE = "deadline"
    TOO_LARGE = "too_large"
    QUOTA = "quota"


class Denial(StrEnum):
    """Why a request was turned away because of who sent it."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"


class Closing(StrEnum):
    """Why the server closed a connection before its client wanted that."""

    MALFORMED = "malformed"
    HEADERS = "headers"
    SLOW = "slow"
    NO_ROOM = "no_room"


class Swap(StrEnum):
    """How an attempt to put a new generation in place of an old one ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric family. A counter's `name` lacks the suffix `_total`, which the exposition adds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names that a query can use."""
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "gauge":
                return (self.name,)
            case "histogram":
                return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))


REQUESTS = Series(
    name="seatrial_requests",
    kind="counter",
    labels=(*MODEL, "protocol", "outcome"),
    help="Inference requests that ended, by how they ended; version and variant are empty while a model is not loaded yet.",
)
REJECTED = Series(
    name="seatrial_rejected",
    kind="counter",
    labels=(*MODEL, "reason"),
    help="Inference requests that were turned away or given up before an answer was ready.",
)
REQUEST_DURATION = Series(
    name="seatrial_request_duration_seconds",
    kind="histogram",
    labels=MODEL,
    help="From the arrival of an inference request to its answer, whatever the outcome.",
)
QUEUE_DURATION = Series(
    name="seatrial_queue_duration_seconds",
    kind="histogram",
    labels=MODEL,
    help="From admission to the moment an engine got the request.",
)
COMPUTE_DURATION = Series(
    name="seatrial_compute_duration_seconds",
    kind="histogram",
    labels=MODEL,
    help="Time in the engine, once for each batch.",
)
BATCH_SIZE = Series(
    name="seatrial_batch_size",
    kind="histogram",
    labels=MODEL,
    help="Rows in each batch that an engine ran.",
)
TOKENS = Series(
    name="seatrial_tokens",
    kind="counter",
    labels=MODEL,
    help="Tokens that requests had, in the batches of models whose short rows are padded.",
)
PADDING = Series(
    name="seatrial_padding_tokens",
    kind="counter",
    labels=MODEL,
    help="Tokens that were added to short rows, so that they could share a batch with longer ones.",
)
QUEUE_DEPTH = Series(
    name="seatrial_queue_depth", kind="gauge", labels=MODEL, help="Requests waiting for an engine at this moment."
)
IN_FLIGHT = Series(
    name="seatrial_inflight_requests",
    kind="gauge",
    labels=MODEL,
    help="Requests in the hands of engines at this moment.",
)
UNKNOWN_MODEL = Series(
    name="seatrial_unknown_model_requests",
    kind="counter",
    labels=("protocol",),
    help="Inference requests that name no model or version that is served.",
)
DENIED = Series(
    name="seatrial_denied_requests",
    kind="counter",
    labels=("denial",),
    help="Requests of any kind that were turned away because nobody knows who sent them, or the sender may not.",
)
CLOSED = Series(
    name="seatrial_closed_connections",
    kind="counter",
    labels=("protocol", "reason"),
    help="Connections that were closed on their client: not HTTP, too much of it, too slow, or no descriptor left for it.",
)
ENGINE_DEATHS = Series(
    name="seatrial_engine_deaths",
    kind="counter",
    labels=MODEL,
    help="Engine processes that ended without being told to.",
)
RETRIED = Series(
    name="seatrial_retried_requests",
    kind="counter",
    labels=MODEL,
    help="Requests that were given to an engine once more because the first one died or failed with company in the batch.",
)
QUARANTINED = Series(
    name="seatrial_quarantined_requests",
    kind="counter",
    labels=MODEL,
    help="Requests that are not tried again because engines died with them in hand.",
)
CACHE_HITS = Series(
    name="seatrial_cache_hits",
    kind="counter",
    labels=MODEL,
    help="Requests that were answered from the response cache.",
)
CACHE_MISSES = Series(
    name="seatrial_cache_misses",
    kind="counter",
    labels=MODEL,
    help="Requests that the response cache was asked for in vain; 0 while it is off.",
)
GATEWAYS = Series(
    name="seatrial_gateways",
    kind="gauge",
    help="Processes that hold client connections, the one that tells you this included.",
)
GATEWAY_DEATHS = Series(
    name="seatrial_gateway_deaths",
    kind="counter",
    help="Further gateways that ended without being told to; their connections were lost, and each was replaced.",
)
ENGINES = Series(name="seatrial_engines", kind="gauge", labels=MODEL, help="Engine processes that are ready.")
LOADED = Series(
    name="seatrial_model_loaded_info",
    kind="gauge",
    labels=(*MODEL, "digest", "alias", "verified"),
    help="1 for each generation that takes requests; alias is empty where the version is pinned.",
)
LOAD_DURATION = Series(
    name="seatrial_model_load_duration_seconds",
    kind="gauge",
    labels=MODEL,
    help="Time the slowest engine took to load, verify, warm up and replay golden requests.",
)
RESIDENT = Series(
    name="seatrial_model_resident_bytes",
    kind="gauge",
    labels=MODEL,
    help="Resident memory of the generation's engine processes.",
)
SWAPS = Series(
    name="seatrial_swaps",
    kind="counter",
    labels=("model", "outcome"),
    help="Attempts to replace a generation by a new one.",
)
ALIAS_DRIFT = Series(
    name="seatrial_alias_drift_seconds",
    kind="gauge",
    labels=("model", "alias"),
    help="For how long an alias has pointed at something else than what answers; 0 while they agree.",
)
REGISTRY_AGE = Series(
    name="seatrial_registry_age_seconds",
    kind="gauge",
    help="Time since the registry last answered, or since it was first asked; -1 where none is followed.",
)
READY = Series(
    name="seatrial_ready", kind="gauge", help="1 while the server takes requests, 0 while it starts or drains."
)
LOG_DROPPED = Series(
    name="seatrial_request_log_dropped",
    kind="counter",
    help="Request log records that were dropped because they could not be written fast enough.",
)
LOG_WRITTEN = Series(name="seatrial_request_log_written", kind="counter", help="Request log records that were written.")
BUILD = Series(name="seatrial_build_info", kind="gauge", labels=("seatrial", "python"), help="Versions of what runs.")

ALL: tuple[Series, ...] = (
    *(REQUESTS, REQUEST_DURATION, QUEUE_DURATION, COMPUTE_DURATION, BATCH_SIZE, TOKENS, PADDING),
    *(QUEUE_DEPTH, IN_FLIGHT, UNKNOWN_MODEL),
    *(REJECTED, DENIED, CLOSED, CACHE_HITS, CACHE_MISSES, ENGINE_DEATHS, RETRIED, QUARANTINED),
    *(GATEWAYS, GATEWAY_DEATHS, ENGINES, LOADED, LOAD_DURATION, RESIDENT, SWAPS),
    *(ALIAS_DRIFT, REGISTRY_AGE, READY, LOG_DROPPED, LOG_WRITTEN, BUILD),
)

PROCESS_RESIDENT = Series(
    name="process_resident_memory_bytes",
    kind="gauge",
    help="Resident memory of the gateway, as prometheus_client has it.",
)
PROCESS_CPU = Series(
    name="process_cpu_seconds", kind="counter", help="Processor time of the gateway, as prometheus_client has it."
)
STANDARD: tuple[Series, ...] = (PROCESS_RESIDENT, PROCESS_CPU)
"""Of the series that every Prometheus client exports for its process, those that we draw."""

LATENCY_EDGES_S = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
"""OpenTelemetry's edges for HTTP, with three more below 5 ms, where most CPU models answer."""

BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def latency_edges_s(budget_s: float) -> tuple[float, ...]:
    """The edges of latency histograms: the promised p99 is one of them, so that the SLO can count by it."""
    return tuple(sorted({*LATENCY_EDGES_S, budget_s}))


def le(edge: float) -> str:
    """The label of a bucket, in the one form that every version of Prometheus keeps as it is."""
    return str(floatToGoString(edge))  # type: ignore[no-untyped-call] # prometheus_client gives this one no types
