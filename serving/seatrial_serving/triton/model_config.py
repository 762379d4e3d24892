"""What a `config.pbtxt` asks for, and which of it is done here.

Every field has a place: it is carried over, it is named in a warning where leaving it out changes no answer, or the model is
refused. What a file says is never dropped in silence. Knows nothing of files around it, engines or requests.
Source: Triton's model configuration documentation and its `model_config.proto`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from pydantic import ValidationError

from seatrial.errors import EngineUnavailable, InvalidSource
from seatrial.settings import Batching, Engines, Sequences
from seatrial.tensors import DataType
from seatrial_serving.open_inference import messages
from seatrial_serving.open_inference.open_inference_pb2 import ModelConfig

PLATFORM, BACKEND, ENSEMBLE = "onnxruntime_onnx", "onnxruntime", "ensemble"
IDLE_S = 1.0
"""After how long Triton ends a sequence that nobody asks, where the file does not say."""
THREADS = "intra_op_thread_count"
DATATYPES = {
    messages.DataType.Value("TYPE_STRING" if each is DataType.BYTES else f"TYPE_{each}"): each for each in DataType
}
MOST_ENGINES, MOST_THREADS = 64, 256
"""A file that asks for more is taken for a mistake."""

GROUPS = {
    *("input", "output", "dynamic_batching", "dynamic_batching.default_queue_policy", "instance_group"),
    *("model_transaction_policy", "parameters", "optimization", "ensemble_scheduling", "ensemble_scheduling.step"),
    *(f"sequence_batching{part}" for part in ("", ".direct", ".oldest", ".control_input", ".state")),
}
"""Fields whose own fields have each a place."""
CARRIED = {
    *("name", "platform", "backend", "version_policy", "max_batch_size", "default_model_filename", "model_warmup"),
    *("input.name", "input.data_type", "input.dims", "input.reshape", "input.format"),
    *("output.name", "output.data_type", "output.dims", "output.reshape", "output.label_filename"),
    *("instance_group.name", "instance_group.count", "instance_group.kind", "instance_group.passive"),
    *(f"dynamic_batching.{name}" for name in ("preferred_batch_size", "max_queue_delay_microseconds")),
    *(f"dynamic_batching.{name}" for name in ("priority_levels", "default_priority_level")),
    "dynamic_batching.preserve_ordering",  # answers on a stream come in the order of its requests anyway
    "dynamic_batching.default_queue_policy.allow_timeout_override",  # a request's own timeout always holds
    *(f"dynamic_batching.default_queue_policy.{name}" for name in ("default_timeout_microseconds", "max_queue_size")),
    *(f"ensemble_scheduling.step.{name}" for name in ("model_name", "model_version", "input_map", "output_map")),
    *(f"sequence_batching.{name}" for name in ("max_sequence_idle_microseconds", "control_input.name")),
    *(f"sequence_batching.{name}" for name in ("control_input.control", "state.input_name", "state.output_name")),
    *(f"sequence_batching.state.{name}" for name in ("data_type", "dims", "initial_state")),
    *(f"sequence_batching.state.use_{name}" for name in ("same_buffer_for_input_output", "growable_memory")),
    *(f"sequence_batching.oldest.{name}" for name in ("preferred_batch_size", "max_queue_delay_microseconds")),
    "sequence_batching.oldest.preserve_ordering",  # as above
    *(f"parameters.{THREADS}", "parameters.inter_op_thread_count"),
    *("parameters.seatrial.digest", "parameters.seatrial.variant"),  # what `seatrial triton repository` writes
}
"""What is done as the file says, or makes no difference here."""
REFUSED: Mapping[str, str] = {
    "ensemble_scheduling.step.model_namespace": "models have one name here",
    "sequence_batching.iterative_sequence": "no engine here gives a request back to be computed again",
    "batch_input": "inputs that the server makes of a batch are not made here",
    "batch_output": "outputs that the server cuts by an input are not cut here",
    "model_operations": "no library from outside is loaded into an engine",
    "model_repository_agents": "agents that change a model's files are not run here",
    "input.is_shape_tensor": "shape tensors are TensorRT's",
    "input.is_non_linear_format_io": "such formats are TensorRT's",
    "input.allow_ragged_batch": "requests of different shapes are not put together here",
    "input.optional": "a request gives every input here",
    "output.is_shape_tensor": "shape tensors are TensorRT's",
    "output.is_non_linear_format_io": "such formats are TensorRT's",
    "model_transaction_policy.decoupled": "a request has one answer here",
}
"""Without these the model would give other answers, or none."""


def parse(text: bytes, *, model: str) -> ModelConfig:
    """The configuration of the model in the directory `model`. Raises `InvalidSource` for what is none, is refused, or is
    another model's, `EngineUnavailable` where another backend would have to run it.
    """
    config = ModelConfig()
    try:
        text_format.Parse(text.decode(), config)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSource(f"the config.pbtxt of '{model}' cannot be read: {error}") from error
    if config.name not in ("", model):
        raise InvalidSource(
            f"the config.pbtxt of '{model}' names the model '{config.name}'; a directory has its model's name"
        )
    for path in _set_fields(config):
        if path in REFUSED:
            raise InvalidSource(f"the config.pbtxt of '{model}' sets {path}: {REFUSED[path]}")
    if config.HasField("ensemble_scheduling") != (config.platform == ENSEMBLE):
        raise InvalidSource(f"the config.pbtxt of '{model}' has one of platform 'ensemble' and ensemble_scheduling")
    if config.backend not in ("", BACKEND) or config.platform not in ("", PLATFORM, ENSEMBLE):
        raise EngineUnavailable(
            f"'{model}' is for Triton's backend '{config.backend or config.platform}'; here '{BACKEND}' runs, ONNX alone"
        )
    if config.max_batch_size < 0:
        raise InvalidSource(
            f"the config.pbtxt of '{model}' has max_batch_size {config.max_batch_size}, expected 0 or more"
        )
    return config


def left_out(config: ModelConfig) -> list[str]:
    """The fields that are set, make a difference at Triton and none here."""
    fields = [path for path in _set_fields(config) if path not in CARRIED]
    if any(group.kind == messages.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
        fields.append("instance_group.kind")
    return list(dict.fromkeys(fields))


def _set_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """Dotted names of what is set, each down to where its place is decided."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if path not in GROUPS:
            yield path
        elif isinstance(value, Message):
            yield from _set_fields(value, path + ".")
        elif path == "parameters":
            yield from (f"{path}.{key}" for key in value)
        else:
            for each in value:
                yield from _set_fields(each, path + ".")


def is_complete(config: ModelConfig) -> bool:
    """Whether it says what goes in and what comes out; Triton fills in what is missing, and so do we."""
    return bool(config.input and config.output)


def batching(config: ModelConfig, server: Batching) -> Batching:
    """How requests for this model wait: as its file says, and as the server does where it says nothing.

    Raises `InvalidSource` for numbers that make no sense.
    """
    asked = config.dynamic_batching
    policy = asked.default_queue_policy
    changes: dict[str, Any] = {"max_size": config.max_batch_size or server.max_size}
    if config.HasField("sequence_batching"):
        oldest = config.sequence_batching.oldest
        changes |= {
            "together": True,
            "preferred_sizes": tuple(oldest.preferred_batch_size),
            "max_delay_ms": oldest.max_queue_delay_microseconds / 1000,
        }
    elif config.HasField("ensemble_scheduling"):
        changes |= {"together": True, "preferred_sizes": ()}
    elif not config.HasField("dynamic_batching"):
        changes |= {"together": not is_complete(config), "preferred_sizes": ()}
    else:
        # who waited too long is answered last with DELAY: not refused, so not here either
        refuses = policy.timeout_action == messages.ModelQueuePolicy.REJECT
        changes |= {
            "together": True,
            "preferred_sizes": tuple(asked.preferred_batch_size),
            "max_delay_ms": asked.max_queue_delay_microseconds / 1000,
            "priority_levels": asked.priority_levels or 1,
            "default_priority": (asked.priority_levels and asked.default_priority_level) or None,
            "queue_timeout_ms": (refuses and policy.default_timeout_microseconds / 1000) or None,
            "max_queue": policy.max_queue_size or server.max_queue,
        }
    try:
        return Batching.model_validate(server.model_dump() | changes)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InvalidSource(
            f"dynamic_batching makes no sense: {'.'.join(map(str, wrong['loc']))} {wrong['msg']}"
        ) from error


def sequences(config: ModelConfig, server: Sequences) -> Sequences:
    """How long sequences may rest."""
    idle_us = config.sequence_batching.max_sequence_idle_microseconds
    return server.model_copy(update={"idle_s": idle_us / 1e6 or IDLE_S})


def engines(config: ModelConfig, server: Engines) -> Engines:
    """How many engines, and threads of each: as `batching`. Raises `InvalidSource`."""
    counts = [group.count or 1 for group in config.instance_group if not group.passive]
    if any(count < 0 for count in counts) or sum(counts) > MOST_ENGINES:
        raise InvalidSource(f"instance_group asks for {sum(counts)} instances, expected at most {MOST_ENGINES}")
    said = config.parameters[THREADS].string_value if THREADS in config.parameters else "0"
    if not re.fullmatch("[0-9]{1,3}", said) or int(said) > MOST_THREADS:
        raise InvalidSource(f"the parameter {THREADS} is {said[:20]!r}, expected a number of at most {MOST_THREADS}")
    return server.model_copy(update={"count": sum(counts) or server.count, "threads": int(said) or server.threads})
