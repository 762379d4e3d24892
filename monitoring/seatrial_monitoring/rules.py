"""The recording rules and alerts: burn rates of the objectives page, causes that somebody should look at make tickets.

Each alert has the runbook's section beside it, and a proof: series that make it fire, which promtool tries.
"""

from seatrial_monitoring.objectives import BURNS, LONG_WINDOWS, WINDOWS, Burn, Indicator, Objectives, indicators
from seatrial_monitoring.promql import BY_MODEL, grown, per_second, select, total
from seatrial_monitoring.series import (
    ALIAS_DRIFT,
    BUILD,
    ENGINE_DEATHS,
    LOG_DROPPED,
    QUARANTINED,
    READY,
    REGISTRY_AGE,
    REJECTED,
    REQUEST_DURATION,
    Rejection,
    le,
)
from seatrial_monitoring.spec import Advice, Alert, Condition, Proof, Recording, Rules

ERROR_RATIO = "slo:sli_error:ratio_rate{window}"
BAD = "slo:sli_bad:increase{window}"
BURN_RATE = "slo:burn_rate:ratio{window}"
DRAWN_WINDOWS = ("5m", "1h", "6h")


def rules(objectives: Objectives) -> Rules:
    promised = indicators(objectives)
    return Rules(
        recordings=tuple(recording for indicator in promised for recording in _recordings(indicator)),
        alerts=(
            *(_burn_alert(indicator, burn, objectives) for indicator in promised for burn in BURNS),
            *CAUSES,
            _blind(objectives),
        ),
        advice={indicator.alert: _burn_advice(indicator) for indicator in promised} | ADVICE,
    )


# Objectives


def _recordings(indicator: Indicator) -> tuple[Recording, ...]:
    labels = {"slo": indicator.slo}
    return (
        *(
            Recording(name=ERROR_RATIO.format(window=window), expr=indicator.error_ratio(window), labels=labels)
            for window in WINDOWS
        ),
        *(
            Recording(name=BAD.format(window=window), expr=indicator.bad(window), labels=labels)
            for window in LONG_WINDOWS
        ),
        *(
            Recording(
                name=BURN_RATE.format(window=window),
                expr=f"{_recorded(ERROR_RATIO, window, indicator)} / {indicator.budget:.6g}",
                labels=labels,
            )
            for window in DRAWN_WINDOWS
        ),
    )


def _recorded(name: str, window: str, indicator: Indicator) -> str:
    return f'{name.format(window=window)}{{slo="{indicator.slo}"}}'


def _burn_alert(indicator: Indicator, burn: Burn, objectives: Objectives) -> Alert:
    bound = burn.factor * indicator.budget
    return Alert(
        name=indicator.alert,
        severity=burn.severity,
        conditions=(
            Condition(_recorded(ERROR_RATIO, burn.long, indicator), ">", bound),
            Condition(_recorded(ERROR_RATIO, burn.short, indicator), ">", bound),
            Condition(_recorded(BAD, burn.long, indicator), ">=", objectives.least_bad),
        ),
        labels={"slo": indicator.slo, "windows": f"{burn.long}/{burn.short}"},
        summary=f"{{{{ $labels.model }}}}: the {indicator.title} budget burns over {burn.factor:g} times too fast",
        description=(
            f"Over the last {burn.long}, {{{{ $value | humanizePercentage }}}} of the requests for {{{{ $labels.model }}}} "
            f"{indicator.promise}; the objective allows {100 * indicator.budget:.6g}%."
        ),
    )


def _burn_advice(indicator: Indicator) -> Advice:
    return Advice(
        meaning=(
            f"Requests that {indicator.promise} use up the month's error budget too fast, over a long window and still over "
            "a short one. The label `windows` says which: `1h/5m` (14.4 times) spends 2 % of the budget in an hour, `6h/30m` "
            "(6 times) 5 % in six hours; these page. `1d/2h` (3 times) and `3d/6h` (as fast as the budget allows) are tickets."
        ),
        impact="Callers notice. At the pace of a page, the month's budget is gone within one to five days.",
        look=(
            "the row *Objectives* of the dashboard: since when, and is it one model or all",
            "*Requests by outcome* and *Turned away, by reason*: refused, too late, or failed",
            "*Latency, where it is spent*: waiting (queue) or computing",
            "*Versions that answer* and *Swaps*: did a promotion come just before",
        ),
        act=(
            "after a promotion: `seatrial rollback NAME`",
            "`queue_full`, or latency in the queue: more replicas, or less traffic",
            "`server_error`: the server's log names the engine's error; see SeatrialEngineRestarting",
            "latency in compute: compare with the evidence of the bundle (`seatrial bundle inspect`); is the machine shared",
        ),
    )


# Causes


def _growth(selector: str, window: str) -> str:
    return total(BY_MODEL, grown(selector, window))


CAUSES = (
    Alert(
        name="SeatrialAbsent",
        severity="page",
        conditions=(Condition(f"absent({select(BUILD)})", "==", 1),),
        hold_m=5,
        summary="No Seatrial server is scraped",
        description="Prometheus has had no sample of any Seatrial server for five minutes.",
        proof=Proof(series={}, quiet=4, fires=6, labels={}),
    ),
    Alert(
        name="SeatrialNoneReady",
        severity="page",
        conditions=(Condition(f"max by (namespace, job) ({select(READY)})", "==", 0),),
        hold_m=2,
        summary="{{ $labels.job }}: no server is ready",
        description="All servers of {{ $labels.job }} are starting, draining or without engines.",
        proof=Proof(
            series={
                'seatrial_ready{job="seatrial", instance="a"}': "1x5 0x20",
                'seatrial_ready{job="seatrial", instance="b"}': "1x10 0x20",
            },
            quiet=12,
            fires=14,
            labels={"job": "seatrial"},
        ),
    ),
    Alert(
        name="SeatrialNotReady",
        severity="ticket",
        conditions=(Condition(select(READY), "==", 0),),
        hold_m=10,
        summary="{{ $labels.instance }} is not ready",
        description="{{ $labels.instance }} has taken no requests for ten minutes.",
        proof=Proof(
            series={'seatrial_ready{job="seatrial", instance="a"}': "1x5 0x20"},
            quiet=14,
            fires=17,
            labels={"job": "seatrial", "instance": "a"},
        ),
    ),
    Alert(
        name="SeatrialEngineRestarting",
        severity="ticket",
        conditions=(Condition(_growth(select(ENGINE_DEATHS), "15m"), ">", 2),),
        summary="{{ $labels.model }}: engine processes keep dying",
        description='{{ $value | printf "%.0f" }} engine processes of {{ $labels.model }} died in the last 15 minutes.',
        proof=Proof(
            series={
                'seatrial_engine_deaths_total{job="seatrial", model="m", version="1", variant="fp32"}': "0x10 1+1x20"
            },
            quiet=10,
            fires=30,
            labels={"job": "seatrial", "model": "m"},
            value="15",
        ),
    ),
    Alert(
        name="SeatrialRequestQuarantined",
        severity="ticket",
        conditions=(Condition(_growth(select(QUARANTINED), "15m"), ">", 0),),
        summary="{{ $labels.model }}: a request kills engines",
        description="Engines of {{ $labels.model }} died again and again with the same request in hand; it is not tried again.",
        proof=Proof(
            series={
                'seatrial_quarantined_requests_total{job="seatrial", model="m", version="1", variant="fp32"}': "0x10 1x20"
            },
            quiet=10,
            fires=12,
            labels={"job": "seatrial", "model": "m"},
        ),
    ),
    Alert(
        name="SeatrialQueueFull",
        severity="ticket",
        conditions=(
            Condition(total(BY_MODEL, per_second(select(REJECTED, f'reason="{Rejection.QUEUE_FULL}"'), "5m")), ">", 0),
        ),
        hold_m=5,
        summary="{{ $labels.model }}: requests are refused because the queue is full",
        description="The queue of {{ $labels.model }} has been full again and again for five minutes.",
        proof=Proof(
            series={
                'seatrial_rejected_total{job="seatrial", model="m", version="1", variant="fp32", reason="queue_full"}': (
                    "0x10 1+1x30"
                )
            },
            quiet=14,
            fires=18,
            labels={"job": "seatrial", "model": "m"},
        ),
    ),
    Alert(
        name="SeatrialRegistryUnreachable",
        severity="ticket",
        conditions=(Condition(select(REGISTRY_AGE), ">", 60),),
        hold_m=5,
        summary="{{ $labels.instance }} cannot read the model registry",
        description='The registry last answered {{ $value | printf "%.0f" }} s ago; what was served then is served still.',
        proof=Proof(
            series={
                'seatrial_registry_age_seconds{job="seatrial", instance="a"}': "1x10 60+60x20",
                'seatrial_registry_age_seconds{job="seatrial", instance="follows-none"}': "-1x40",
            },
            quiet=15,
            fires=20,
            labels={"job": "seatrial", "instance": "a"},
            value="600",
        ),
    ),
    Alert(
        name="SeatrialAliasDrift",
        severity="ticket",
        conditions=(Condition(f"max by (namespace, job, model, alias) ({select(ALIAS_DRIFT)})", ">", 300),),
        summary="{{ $labels.model }}@{{ $labels.alias }} is not what answers",
        description=(
            'The alias has pointed at something else than what answers for {{ $value | printf "%.0f" }} s: '
            "the new version cannot be served."
        ),
        proof=Proof(
            series={
                'seatrial_alias_drift_seconds{job="seatrial", instance="a", model="m", alias="champion"}': "0x10 60+60x20"
            },
            quiet=14,
            fires=20,
            labels={"job": "seatrial", "model": "m", "alias": "champion"},
            value="600",
        ),
    ),
    Alert(
        name="SeatrialRequestLogLosing",
        severity="ticket",
        conditions=(Condition(f"sum by (namespace, job, instance) ({grown(select(LOG_DROPPED), '15m')})", ">", 0),),
        summary="{{ $labels.instance }} loses request log records",
        description="Records were dropped because whoever reads the server's standard output is too slow, or has gone.",
        proof=Proof(
            series={'seatrial_request_log_dropped_total{job="seatrial", instance="a"}': "0x10 7x20"},
            quiet=10,
            fires=12,
            labels={"job": "seatrial", "instance": "a"},
        ),
    ),
)


def _blind(objectives: Objectives) -> Alert:
    """Without the bucket that the latency objective counts by, its alerts would be silent for ever."""
    counted = total(BY_MODEL, select(REQUEST_DURATION, part="count"))
    edge = total(BY_MODEL, select(REQUEST_DURATION, f'le="{le(objectives.latency_s)}"', part="bucket"))
    budget_ms = f"{1000 * objectives.latency_s:g}"
    labels = 'job="seatrial", model="m", version="1", variant="fp32"'
    return Alert(
        name="SeatrialLatencyNotMeasured",
        severity="ticket",
        conditions=(Condition(f"({counted} unless {edge})", ">=", 0),),
        hold_m=10,
        summary="{{ $labels.model }}: the latency objective is not measured",
        description=f"The server's histograms have no edge at {budget_ms} ms, so the latency alerts cannot fire.",
        proof=Proof(
            series={
                f"seatrial_request_duration_seconds_count{{{labels}}}": "0+9x30",
                f'seatrial_request_duration_seconds_bucket{{{labels}, le="{le(objectives.latency_s + 0.001)}"}}': "0+9x30",
            },
            quiet=8,
            fires=12,
            labels={"job": "seatrial", "model": "m"},
        ),
    )


ADVICE = {
    "SeatrialAbsent": Advice(
        meaning="Prometheus knows of no server at all: none runs, or none is scraped.",
        impact="Either nobody gets an answer, or everybody does and nobody watches.",
        look=("the targets page of Prometheus", "`kubectl get pods`, or the process table", "the Service's port 8002"),
        act=("start the server", "mend the scrape configuration", "remove these rules where no server is meant to run"),
    ),
    "SeatrialNoneReady": Advice(
        meaning="Every server of the job says that it is not ready: models load, engines are dead, or all of them drain.",
        impact="Load balancers send no traffic; callers get errors.",
        look=(
            "`GET /v2/health/ready`, and the server's log for the bundle or engine that failed",
            "*Engines that are ready* and *Swaps* on the dashboard",
            "`kubectl get events`: killed for memory, moved to other hardware",
        ),
        act=(
            "golden answers differ on this hardware: build a bundle for it (`seatrial export`), or `seatrial rollback NAME`",
            "killed for memory: raise the limit or set `serving.engines.count` to 1",
        ),
    ),
    "SeatrialNotReady": Advice(
        meaning="One server has not been ready for ten minutes; a start or a drain takes seconds to a minute.",
        impact="Less capacity. Others answer, if there are others (SeatrialNoneReady says when not).",
        look=("the log of that server", "*Servers ready* and *Engines that are ready*"),
        act=("what its log asks for", "delete the pod if its node is ill"),
    ),
    "SeatrialEngineRestarting": Advice(
        meaning="Engine processes end without being told to; each is replaced, and what it held is answered by another.",
        impact="Latency, not errors, while a sibling lives; with every engine dead at once, requests wait.",
        look=(
            "the server's log: the signal (9 is often the kernel's memory killer) and the batches in hand",
            "*Memory* against the container's limit",
            "*Tried again and given up*: does it come with certain requests",
        ),
        act=(
            "signal 9: raise the memory limit or serve fewer engines",
            "signal 11 or 6: keep the bundle, `seatrial rollback NAME`, report the model",
        ),
    ),
    "SeatrialRequestQuarantined": Advice(
        meaning="One request was in hand at `serving.engines.max_deaths` deaths of an engine and was answered with an error.",
        impact="Its sender gets an error; everybody else saw latency.",
        look=(
            "the request log: `error` is `EngineFailed`, `id` is the sender's",
            "the sizes and values that the sender sends",
        ),
        act=("ask the sender for the input and replay it against a test server", "tighten the model's input checks"),
    ),
    "SeatrialQueueFull": Advice(
        meaning="More requests wait for a model than `serving.batching.max_queue` or `max_queue_bytes` allows.",
        impact="Callers get 503 with Retry-After.",
        look=(
            "*Waiting and in hand*, *Batch size*",
            "*Latency, where it is spent*: did compute get slower, or did traffic grow",
        ),
        act=(
            "more replicas",
            "a cheaper variant (`seatrial export` with a tighter latency budget)",
            "quotas at the entrance",
        ),
    ),
    "SeatrialRegistryUnreachable": Advice(
        meaning="The registry (MLflow) has not answered for more than a minute, for five minutes on end.",
        impact="None for callers: the last known versions are served. Promotions and rollbacks do not arrive.",
        look=("is the tracking server up", "credentials (`MLFLOW_TRACKING_*`) and network policy", "the server's log"),
        act=("mend the registry; servers catch up by themselves within `registry.poll_s`",),
    ),
    "SeatrialAliasDrift": Advice(
        meaning="An alias points at a version whose bundle cannot be served here, so the old version goes on answering.",
        impact="Callers are answered by the version before; the promotion is not in effect.",
        look=(
            "the server's log: golden answers that differ, a corrupt or missing bundle, memory",
            "`seatrial status` and `seatrial history NAME`",
        ),
        act=("`seatrial rollback NAME`", "or build the missing bundle: `seatrial export models:/NAME/VERSION`"),
    ),
    "SeatrialRequestLogLosing": Advice(
        meaning="The request log's buffer overflowed, or the reader of standard output has gone.",
        impact="None for callers; the log has gaps, as long as this lasts.",
        look=("*Request log* on the dashboard", "the log collector's own health"),
        act=("mend or speed up the collector", "log a part of the requests: `serving.request_log_share`"),
    ),
    "SeatrialLatencyNotMeasured": Advice(
        meaning="The rules count requests up to a latency that is no edge of the server's histograms.",
        impact="The latency objective is not watched.",
        look=("`serving.latency_budget_ms` of the server", "`seatrial monitor check URL`"),
        act=(
            "write the rules with the server's budget: `seatrial monitor write DIR --latency-ms …`, or set the server's",
        ),
    ),
}
