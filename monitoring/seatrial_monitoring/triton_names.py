"""The counters once more under the names that Triton gives them, so that its dashboards and autoscalers work unchanged.

Derived at scrape time from what is counted anyway. Two things differ from Triton: durations here cover every outcome, and
variants of a version are added up, because Triton knows no variants. The names break the conventions that ours follow
(microseconds, no `_total`), which is why they are exposed without a type.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric, UnknownMetricFamily

from seatrial_monitoring.series import Outcome

if TYPE_CHECKING:
    from seatrial_monitoring.metrics import GenerationFacts, ModelMetrics

LABELS = ("model", "version")
US = 1e6
REASONS = {
    Outcome.REFUSED: "REJECTED",
    Outcome.DEADLINE: "REJECTED",
    Outcome.ABANDONED: "CANCELED",
    Outcome.SERVER_ERROR: "BACKEND",
    Outcome.CLIENT_ERROR: "OTHER",
}
"""Triton's four reasons for a failure."""
SUMS = {
    "nv_inference_request_success": "Requests that ended well.",
    "nv_inference_count": "Rows that were computed.",
    "nv_inference_exec_count": "Batches that were computed.",
    "nv_inference_request_duration_us": "Time of all requests, from arrival to answer.",
    "nv_inference_queue_duration_us": "Time that requests waited for an engine.",
    "nv_inference_compute_infer_duration_us": "Time in the engine, for each request of a batch the whole batch's.",
    "nv_cache_num_hits_per_model": "Requests that were answered from the response cache.",
    "nv_cache_num_misses_per_model": "Requests that the response cache was asked for in vain.",
}
FAILURES = "nv_inference_request_failure"
PENDING = "nv_inference_pending_request_count"


def collect(models: "Iterable[ModelMetrics]", generations: "Iterable[GenerationFacts]") -> Iterator[Metric]:
    totals: dict[str, dict[tuple[str, ...], float]] = {name: defaultdict(float) for name in (*SUMS, FAILURES, PENDING)}
    for model in models:
        name, version, _ = model.labels
        for family, value in _sums(model).items():
            totals[family][name, version] += value
        for outcome, reason in REASONS.items():
            totals[FAILURES][name, version, reason] += _ended(model, outcome)
    for each in generations:
        totals[PENDING][each.model, each.version] += each.queue_depth
    for family, words in SUMS.items():
        yield _family(family, words, LABELS, totals[family])
    yield _family(FAILURES, "Requests that did not end well.", (*LABELS, "reason"), totals[FAILURES])
    yield _family(PENDING, "Requests waiting for an engine at this moment.", LABELS, totals[PENDING])


def _sums(model: "ModelMetrics") -> dict[str, float]:
    return {
        "nv_inference_request_success": _ended(model, Outcome.OK),
        "nv_inference_count": model.batch_rows.total,
        "nv_inference_exec_count": model.batch_rows.count,
        "nv_inference_request_duration_us": model.request_s.total * US,
        "nv_inference_queue_duration_us": model.queue_s.total * US,
        "nv_inference_compute_infer_duration_us": model.compute_shared_s * US,
        "nv_cache_num_hits_per_model": model.cache_hits,
        "nv_cache_num_misses_per_model": model.cache_misses,
    }


def _ended(model: "ModelMetrics", outcome: Outcome) -> int:
    return sum(by_outcome[outcome] for by_outcome in model.requests.values())


def _family(name: str, words: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = UnknownMetricFamily(name, f"{words} As Triton counts; see the seatrial_ series.", labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
