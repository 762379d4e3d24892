"""What was counted for a model, as Triton's statistics extension tells it: sums since the start, for clients to take
differences of.

Derived when somebody asks from what is counted anyway. Copying tensors to and from an engine is not timed by itself, so the
durations of `compute_input` and `compute_output` are 0, and so is that of `cache_miss`; what they cost is the rest of
`success`. A `cache_hit` lasts from arrival to answer. Where there are several gateways, it is what all of them counted.
"""

from collections.abc import Iterator
from typing import Any

from seatrial_monitoring.metrics import BatchesOfSize, ModelMetrics
from seatrial_monitoring.series import Outcome
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.generation import Generation


async def statistics(plane: DataPlane, name: str = "", version: str = "") -> dict[str, Any]:
    """Of every version of every model, every version of the model `name`, or of one. Raises as `DataPlane.find` does."""
    asked = list(_asked(plane, name, version))
    counted = (await plane.counted()).by_labels
    return {"model_stats": [_of_model(each, counted.get(each.metrics.labels, each.metrics)) for each in asked]}


def _asked(plane: DataPlane, name: str, version: str) -> Iterator[Generation]:
    if not name:
        yield from plane.visible()
        return
    found = plane.find(name, version)
    yield from [found] if version else plane.versions(name)


def _of_model(generation: Generation, metrics: ModelMetrics) -> dict[str, Any]:
    return {
        "name": generation.identity.name,
        "version": generation.identity.version,
        "last_inference": int(metrics.last_computed * 1000),
        "inference_count": int(metrics.batch_rows.total),
        "execution_count": metrics.compute_s.count,
        "inference_stats": _of_requests(metrics),
        "batch_stats": [_of_batches(rows, batches) for rows, batches in sorted(metrics.by_rows.items())],
    }


def _of_requests(metrics: ModelMetrics) -> dict[str, Any]:
    ended = {outcome: sum(by[outcome] for by in metrics.requests.values()) for outcome in Outcome}
    good = ended.pop(Outcome.OK)
    return {
        "success": _duration(good, metrics.request_s.total - metrics.failed_s),
        "fail": _duration(sum(ended.values()), metrics.failed_s),
        "queue": _duration(metrics.queue_s.count, metrics.queue_s.total),
        "compute_input": _duration(metrics.computed_requests, 0),
        "compute_infer": _duration(metrics.computed_requests, metrics.compute_shared_s),
        "compute_output": _duration(metrics.computed_requests, 0),
        "cache_hit": _duration(metrics.cache_hits, metrics.cache_hit_s),
        "cache_miss": _duration(metrics.cache_misses, 0),
    }


def _of_batches(rows: int, batches: BatchesOfSize) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": _duration(batches.count, 0),
        "compute_infer": _duration(batches.count, batches.compute_s),
        "compute_output": _duration(batches.count, 0),
    }


def _duration(count: int, total_s: float) -> dict[str, int]:
    return {"count": count, "ns": max(0, round(total_s * 1e9))}
