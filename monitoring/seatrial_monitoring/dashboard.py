"""What the dashboard shows, row by row, from the most urgent to the most patient."""

from seatrial_monitoring.promql import (
    PANEL_WINDOW,
    TARGET_LABELS,
    chosen,
    grown,
    mean,
    per_second,
    quantile,
    ratio,
    total,
)
from seatrial_monitoring.rules import BURN_RATE, DRAWN_WINDOWS
from seatrial_monitoring.series import (
    ALIAS_DRIFT,
    BATCH_SIZE,
    BUILD,
    CACHE_HITS,
    CACHE_MISSES,
    CLOSED,
    COMPUTE_DURATION,
    ENGINE_DEATHS,
    ENGINES,
    IN_FLIGHT,
    LOAD_DURATION,
    LOADED,
    LOG_DROPPED,
    LOG_WRITTEN,
    MODEL,
    PROCESS_CPU,
    PROCESS_RESIDENT,
    QUARANTINED,
    QUEUE_DEPTH,
    QUEUE_DURATION,
    READY,
    REGISTRY_AGE,
    REJECTED,
    REQUEST_DURATION,
    REQUESTS,
    RESIDENT,
    RETRIED,
    SWAPS,
    UNKNOWN_MODEL,
    Outcome,
    Series,
    Swap,
)
from seatrial_monitoring.spec import Panel, Query, Row

_DONE = f'outcome="{Swap.DONE}"'
BURNING = ("SeatrialAvailabilityBurn", "SeatrialLatencyBurn")
DEPLOYED = "it changes with a deployment"
OFF = "the cache is off unless somebody wants it"
ONE_BUCKET = "a quantile is read off the buckets, and a small model on a quiet machine stays within the first"
VARIANT = "{{model}} {{version}} {{variant}}"
SWAPPED = f"{total(('model',), grown(chosen(SWAPS, _DONE), PANEL_WINDOW))} > 0"
"""Drawn over every panel: a new generation took over."""


def _rate(series: Series, by: tuple[str, ...], *conditions: str, part: str = "") -> str:
    return total(by, per_second(chosen(series, *conditions, part=part)))


def _of_server(expression: str) -> str:
    """For the servers that are ours: process metrics are everybody's names."""
    return f"{expression} and on ({', '.join(TARGET_LABELS)}) {chosen(BUILD)}"


def _percentiles(series: Series, *, steady: str = "") -> tuple[Query, ...]:
    return tuple(Query(quantile(q, series), f"p{100 * q:g} {VARIANT}", steady=steady) for q in (0.5, 0.95, 0.99))


NOW = Row(
    title="Now",
    panels=(
        Panel(
            title="Servers ready",
            description="How many servers take requests; the rest start, drain or have lost an engine.",
            kind="stat",
            queries=(
                Query(total((), chosen(READY)), "ready"),
                Query(f"count({chosen(READY)})", "all", steady=DEPLOYED),
            ),
            unit="short",
            alerts=("SeatrialNoneReady", "SeatrialNotReady", "SeatrialAbsent"),
        ),
        Panel(
            title="Requests",
            description="Inference requests that ended, of all outcomes.",
            kind="stat",
            queries=(Query(_rate(REQUESTS, ()), "requests"),),
            unit="reqps",
        ),
        Panel(
            title="Answered well",
            description="The part of the requests that ended well; what callers did wrong counts here too.",
            kind="stat",
            queries=(Query(ratio(_rate(REQUESTS, (), f'outcome="{Outcome.OK}"'), _rate(REQUESTS, ())), "ok"),),
            unit="percentunit",
            alerts=("SeatrialAvailabilityBurn",),
        ),
        Panel(
            title="Slowest percent",
            description="The p99 of the whole request, over all models chosen.",
            kind="stat",
            queries=(
                Query(f"histogram_quantile(0.99, {_rate(REQUEST_DURATION, ('le',), part='bucket')}) >= 0", "p99"),
            ),
            unit="s",
            alerts=("SeatrialLatencyBurn",),
        ),
    ),
)
OBJECTIVES = Row(
    title="Objectives",
    panels=tuple(
        Panel(
            title=f"{title}: how fast the error budget burns",
            description="1 spends a month's budget in a month. Pages come at 14.4 (1h) and 6 (6h). No line where no traffic.",
            queries=tuple(
                Query(
                    f'{BURN_RATE.format(window=window)}{{job=~"$job", model=~"$model", slo="{slo}"}}',
                    f"{{{{model}}}} {window}",
                )
                for window in DRAWN_WINDOWS
            ),
            unit="short",
            alerts=(alert,),
        )
        for title, slo, alert in (
            ("Availability", "seatrial-availability", BURNING[0]),
            ("Latency", "seatrial-latency", BURNING[1]),
        )
    ),
)
TRAFFIC = Row(
    title="Traffic",
    panels=(
        Panel(
            title="Requests by outcome",
            description="refused: no room or not ready; deadline: too late; abandoned: the caller left before the answer.",
            queries=(Query(_rate(REQUESTS, ("outcome",)), "{{outcome}}"),),
            unit="reqps",
            stacked=True,
            alerts=("SeatrialAvailabilityBurn",),
        ),
        Panel(
            title="Requests by version",
            description="Which version and variant was asked, and over which protocol.",
            queries=(Query(_rate(REQUESTS, (*MODEL, "protocol")), VARIANT + " {{protocol}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="Turned away, by reason",
            description="Requests that were not computed although nothing was wrong with them, or that were too large.",
            queries=(Query(_rate(REJECTED, ("reason",)), "{{reason}}"),),
            unit="reqps",
            stacked=True,
            alerts=("SeatrialQueueFull",),
        ),
        Panel(
            title="For models that are not here",
            description="Requests for a name, version or alias that is not served: often a client with an old configuration.",
            queries=(Query(total(("protocol",), per_second(chosen(UNKNOWN_MODEL))), "{{protocol}}"),),
            unit="reqps",
        ),
        Panel(
            title="Connections closed, by reason",
            description="On clients that spoke something else, sent too large headers, were too slow, or found no room.",
            queries=(Query(total(("protocol", "reason"), per_second(chosen(CLOSED))), "{{protocol}} {{reason}}"),),
            unit="ops",
        ),
    ),
)
LATENCY = Row(
    title="Latency",
    panels=(
        Panel(
            title="Whole request",
            description="From arrival to answer, whatever the outcome.",
            queries=_percentiles(REQUEST_DURATION),
            unit="s",
            alerts=("SeatrialLatencyBurn", "SeatrialLatencyNotMeasured"),
        ),
        Panel(
            title="Queue",
            description="From admission to the moment an engine got the request.",
            queries=_percentiles(QUEUE_DURATION, steady=ONE_BUCKET),
            unit="s",
        ),
        Panel(
            title="Compute",
            description="In the engine, once for each batch.",
            queries=_percentiles(COMPUTE_DURATION, steady=ONE_BUCKET),
            unit="s",
        ),
        Panel(
            title="Latency, where it is spent",
            description="Means. What the whole takes beyond queue and compute is reading and writing the request.",
            queries=(
                Query(mean(REQUEST_DURATION), f"whole {VARIANT}"),
                Query(mean(QUEUE_DURATION), f"queue {VARIANT}"),
                Query(mean(COMPUTE_DURATION), f"compute {VARIANT}"),
            ),
            unit="s",
        ),
    ),
)
LOAD = Row(
    title="Load",
    panels=(
        Panel(
            title="Waiting and in hand",
            description="Requests in the queue, and requests that engines have, at the moment of the scrape.",
            queries=(
                Query(total(MODEL, chosen(QUEUE_DEPTH)), f"waiting {VARIANT}"),
                Query(total(MODEL, chosen(IN_FLIGHT)), f"in hand {VARIANT}"),
            ),
            unit="short",
            alerts=("SeatrialQueueFull",),
        ),
        Panel(
            title="Batch size",
            description="Rows in a batch: the mean, and what 95 % of the batches do not exceed.",
            queries=(
                Query(mean(BATCH_SIZE), f"mean {VARIANT}"),
                Query(quantile(0.95, BATCH_SIZE), f"p95 {VARIANT}"),
            ),
            unit="short",
        ),
        Panel(
            title="Rows and batches",
            description="What the engines ran, each second.",
            queries=(
                Query(_rate(BATCH_SIZE, MODEL, part="sum"), f"rows {VARIANT}"),
                Query(_rate(BATCH_SIZE, MODEL, part="count"), f"batches {VARIANT}"),
            ),
            unit="ops",
        ),
        Panel(
            title="Response cache",
            description="Requests that it answered, and that it was asked for in vain. Both are 0 while it is off.",
            queries=(
                Query(_rate(CACHE_HITS, MODEL), f"answered {VARIANT}", steady=OFF),
                Query(_rate(CACHE_MISSES, MODEL), f"in vain {VARIANT}", steady=OFF),
            ),
            unit="reqps",
        ),
        Panel(
            title="Engines busy",
            description="How much of the ready engines' time went into computing.",
            queries=(Query(ratio(_rate(COMPUTE_DURATION, MODEL, part="sum"), total(MODEL, chosen(ENGINES))), VARIANT),),
            unit="percentunit",
        ),
    ),
)
HEALTH = Row(
    title="Engines and versions",
    panels=(
        Panel(
            title="Engines that are ready",
            description="Engine processes, summed over all servers.",
            queries=(Query(total(MODEL, chosen(ENGINES)), VARIANT),),
            unit="short",
            alerts=("SeatrialEngineRestarting",),
        ),
        Panel(
            title="Engines that died",
            description="Processes that ended without being told to. Each is replaced.",
            queries=(Query(_rate(ENGINE_DEATHS, MODEL), VARIANT),),
            unit="ops",
            alerts=("SeatrialEngineRestarting",),
        ),
        Panel(
            title="Tried again and given up",
            description="Requests that another engine got because the first one failed, and those that are not tried again.",
            queries=(
                Query(_rate(RETRIED, MODEL), f"tried again {VARIANT}"),
                Query(_rate(QUARANTINED, MODEL), f"given up {VARIANT}"),
            ),
            unit="reqps",
            alerts=("SeatrialRequestQuarantined",),
        ),
        Panel(
            title="Versions that answer",
            description="How many servers answer with which version and variant; unverified ones have no golden requests.",
            queries=(
                Query(
                    total((*MODEL, "alias", "verified"), chosen(LOADED)), VARIANT + " @{{alias}} verified={{verified}}"
                ),
            ),
            unit="short",
            stacked=True,
        ),
        Panel(
            title="Swaps",
            description="Attempts to put a new generation in the old one's place. A failed one changes nothing for callers.",
            queries=(Query(_rate(SWAPS, ("model", "outcome")), "{{model}} {{outcome}}"),),
            unit="ops",
            alerts=("SeatrialAliasDrift",),
        ),
        Panel(
            title="Time to load",
            description="The slowest engine: load, verify, warm up, replay golden requests.",
            queries=(Query(f"max by ({', '.join(MODEL)}) ({chosen(LOAD_DURATION)})", VARIANT),),
            unit="s",
        ),
        Panel(
            title="Alias drift",
            description="For how long an alias has pointed at something else than what answers.",
            queries=(Query(f"max by (model, alias) ({chosen(ALIAS_DRIFT)})", "{{model}}@{{alias}}"),),
            unit="s",
            alerts=("SeatrialAliasDrift",),
        ),
        Panel(
            title="Registry age",
            description="Time since the registry last answered; -1 where a server follows none.",
            queries=(Query(chosen(REGISTRY_AGE), "{{instance}}"),),
            unit="s",
            from_zero=False,
            alerts=("SeatrialRegistryUnreachable",),
        ),
    ),
)
RESOURCES = Row(
    title="Resources",
    panels=(
        Panel(
            title="Memory",
            description="Resident: engines by model, and the gateway. Pages that processes share are counted in each.",
            queries=(
                Query(total(MODEL, chosen(RESIDENT)), f"engines {VARIANT}"),
                Query(_of_server(chosen(PROCESS_RESIDENT)), "gateway {{instance}}"),
            ),
            unit="bytes",
        ),
        Panel(
            title="Gateway's processor time",
            description="Cores that the gateway keeps busy; near 1 it is the bottleneck.",
            queries=(Query(_of_server(per_second(chosen(PROCESS_CPU))), "{{instance}}"),),
            unit="short",
        ),
        Panel(
            title="Request log",
            description="Records written, and records lost because the reader was too slow or has gone.",
            queries=(
                Query(f"sum by (instance) ({per_second(chosen(LOG_WRITTEN))})", "written {{instance}}"),
                Query(f"sum by (instance) ({per_second(chosen(LOG_DROPPED))})", "lost {{instance}}"),
            ),
            unit="ops",
            alerts=("SeatrialRequestLogLosing",),
        ),
        Panel(
            title="What runs",
            description="Servers by version of Seatrial and of Python.",
            queries=(
                Query(
                    total(("seatrial", "python"), chosen(BUILD)),
                    "seatrial {{seatrial}}, python {{python}}",
                    steady=DEPLOYED,
                ),
            ),
            unit="short",
        ),
    ),
)
ROWS = (NOW, OBJECTIVES, TRAFFIC, LATENCY, LOAD, HEALTH, RESOURCES)
