"""How a model is served, as Triton's model configuration extension tells it: from its signature, the batching settings and
the engines that run.
"""

from collections.abc import Sequence
from typing import Any

from seatrial.settings import Batching
from seatrial.tensors import DataType, TensorSpec
from seatrial_serving.generation import Generation

ENSEMBLE = "ensemble"
"""The platform of what computes nothing itself."""


def configuration(generation: Generation, *, cached: bool = False) -> dict[str, Any]:
    """The fields of Triton's `ModelConfig` that mean something here, under its names."""
    identity, signature = generation.identity, generation.signature
    batched, computes = signature.batch is not None, identity.platform != ENSEMBLE
    described: dict[str, Any] = {
        "name": identity.name,
        "platform": identity.platform,
        "backend": identity.platform.partition("_")[0] if computes else "",
        "max_batch_size": generation.max_rows if batched else 0,
        "input": _tensors(signature.inputs, batched=batched),
        "output": _tensors(signature.outputs, batched=batched),
        "instance_group": [{"name": identity.name, "kind": "KIND_CPU", "count": len(generation.pids)}],
        "parameters": {
            f"seatrial.{key}": {"string_value": value}
            for key, value in (
                ("version", identity.version),
                ("variant", identity.variant),
                ("digest", identity.digest),
            )
        },
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": cached and bool(identity.digest)},
    }
    if generation.stateful:
        idle_us = round(generation.sequences.idle_s * 1e6)
        described["sequence_batching"] = {"oldest": {}, "max_sequence_idle_microseconds": idle_us}
    elif batched and computes and generation.batching.together:
        described["dynamic_batching"] = _batching(generation.batching, generation.max_rows)
    return described


def _batching(batching: Batching, max_rows: int) -> dict[str, Any]:
    return {
        "preferred_batch_size": [size for size in batching.preferred_sizes if size <= max_rows],
        "max_queue_delay_microseconds": round(batching.max_delay_ms * 1000),
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.level(0),
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": round((batching.queue_timeout_ms or 0) * 1000),
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue,
        },
    }


def _tensors(specs: Sequence[TensorSpec], *, batched: bool) -> list[dict[str, Any]]:
    """As Triton states them: without the batch axis, and never without dimensions."""
    tensors = []
    for spec in specs:
        dims = list(spec.shape[1:] if batched else spec.shape)
        datatype = "TYPE_STRING" if spec.datatype is DataType.BYTES else f"TYPE_{spec.datatype}"
        tensor: dict[str, Any] = {"name": spec.name, "data_type": datatype, "dims": dims or [1]}
        if not dims:
            tensor["reshape"] = {"shape": []}
        tensors.append(tensor)
    return tensors
