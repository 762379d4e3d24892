"""`config.pbtxt`: what is carried over, what is warned about, what is refused. Nothing a file says is dropped in silence."""

from contextlib import suppress

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as some
from tritonclient.grpc import model_config_pb2

from seatrial.errors import EngineUnavailable, InvalidSource, SeatrialError
from seatrial.settings import Batching, Engines, Sequences
from seatrial_serving.open_inference.open_inference_pb2 import ModelConfig
from seatrial_serving.triton.model_config import (
    CARRIED,
    GROUPS,
    REFUSED,
    batching,
    engines,
    left_out,
    parse,
    sequences,
)

SERVER = Batching(max_size=32, max_delay_ms=3, max_queue=77, priority_levels=4)


def whole(text: bytes) -> tuple[ModelConfig, Batching, Engines]:
    config = parse(text, model="m")
    return config, batching(config, SERVER), engines(config, Engines())


def test_what_the_file_says_decides_how_requests_wait() -> None:
    config = parse(
        b"""
        max_batch_size: 16
        dynamic_batching {
          preferred_batch_size: [4, 8]
          max_queue_delay_microseconds: 1500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { default_timeout_microseconds: 250000 max_queue_size: 9 allow_timeout_override: true }
        }
        """,
        model="m",
    )
    assert batching(config, SERVER) == SERVER.model_copy(
        update={
            "max_size": 16, "preferred_sizes": (4, 8), "max_delay_ms": 1.5, "priority_levels": 3, "default_priority": 2,
            "queue_timeout_ms": 250.0, "max_queue": 9,
        }
    )  # fmt: skip
    assert left_out(config) == []
    assert [batching(config, SERVER).level(asked) for asked in (0, 1, 3, 4)] == [2, 1, 3, 2]


def test_what_the_file_leaves_open_is_as_triton_has_it_or_as_the_server_does() -> None:
    told = batching(parse(b"max_batch_size: 8 dynamic_batching { }", model="m"), SERVER)
    assert (told.max_size, told.max_delay_ms, told.priority_levels, told.max_queue) == (8, 0.0, 1, 77)
    assert batching(parse(b"", model="m"), SERVER) == SERVER


def test_without_dynamic_batching_requests_do_not_share_a_batch() -> None:
    tensors = b'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 3 }'
    assert not batching(parse(b"max_batch_size: 8 " + tensors, model="m"), SERVER).together
    assert batching(parse(b"max_batch_size: 8 dynamic_batching {} " + tensors, model="m"), SERVER).together
    assert batching(parse(b"max_batch_size: 8", model="m"), SERVER).together, "what Triton fills in, batches"


def test_sequences_share_batches_and_rest_as_the_file_says() -> None:
    oldest = b"oldest { max_candidate_sequences: 4 preferred_batch_size: [2] max_queue_delay_microseconds: 500 }"
    config = parse(
        b"max_batch_size: 8 sequence_batching { max_sequence_idle_microseconds: 2500000 " + oldest + b"}", model="m"
    )
    told = batching(config, SERVER)
    assert (told.together, told.preferred_sizes, told.max_delay_ms) == (True, (2,), 0.5)
    assert sequences(config, Sequences(max_open=9)) == Sequences(idle_s=2.5, max_open=9)
    assert left_out(config) == ["sequence_batching.oldest.max_candidate_sequences"]
    assert sequences(parse(b"sequence_batching { direct { } }", model="m"), Sequences()).idle_s == 1, "as at Triton"


def test_who_would_be_delayed_is_not_refused() -> None:
    policy = b"default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 }"
    config = parse(b"max_batch_size: 8 dynamic_batching { " + policy + b" }", model="m")
    assert batching(config, SERVER).queue_timeout_ms is None
    assert left_out(config) == ["dynamic_batching.default_queue_policy.timeout_action"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"instance_group { count: 3 kind: KIND_CPU }", (3, None)),
        (b"instance_group { kind: KIND_CPU } instance_group { count: 2 } instance_group { count: 9 passive: true }", (3, None)),
        (b'parameters { key: "intra_op_thread_count" value { string_value: "2" } }', (None, 2)),
        (b'parameters { key: "intra_op_thread_count" value { string_value: "0" } }', (None, None)),
        (b"", (None, None)),
    ],
)  # fmt: skip
def test_instances_and_threads(text: bytes, expected: tuple[int | None, int | None]) -> None:
    told = engines(parse(text, model="m"), Engines(start_s=5))
    assert (told.count, told.threads, told.start_s) == (*expected, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "must not exceed max_size 4"),
        (b"max_batch_size: 4 dynamic_batching { preferred_batch_size: -1 }", "preferred_sizes"),
        (b"max_batch_size: 4 dynamic_batching { priority_levels: 1000000 }", "priority_levels"),
        (b"max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 3 }", "default_priority 3"),
        (b"instance_group { count: 1000000 }", "1000000 instances"),
        (b"instance_group { count: -1 }", "-1 instances"),
        (b'parameters { key: "intra_op_thread_count" value { string_value: "many" } }', "'many'"),
        (b'parameters { key: "intra_op_thread_count" value { string_value: "' + b"9" * 5000 + b'" } }', "'999"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(text: bytes, words: str) -> None:
    with pytest.raises(InvalidSource, match=words):
        whole(text)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"max_batch_size: -1", InvalidSource, "max_batch_size -1"),
        (b'name: "other"', InvalidSource, "names the model 'other'"),
        (b'backend: "python"', EngineUnavailable, "'m' is for Triton's backend 'python'"),
        (b'platform: "tensorrt_plan"', EngineUnavailable, "tensorrt_plan"),
        (b"max_batch_sice: 4", InvalidSource, "cannot be read: .*max_batch_sice"),
        (b"max_batch_size: 4 max_batch_size: 5", InvalidSource, "cannot be read"),
        (b"\xff", InvalidSource, "cannot be read"),
        (b"ensemble_scheduling { step { model_name: 'a' } }", InvalidSource, "one of platform 'ensemble' and"),
        (b'platform: "ensemble"', InvalidSource, "one of platform 'ensemble' and"),
        (
            b"platform: 'ensemble' ensemble_scheduling { step { model_name: 'a' model_namespace: 'b' } }",
            InvalidSource,
            "models have one name",
        ),
        (b"sequence_batching { iterative_sequence: true }", InvalidSource, "iterative_sequence: no engine"),
        (b"model_transaction_policy { decoupled: true }", InvalidSource, "decoupled: a request has one answer"),
        (b'input { name: "x" allow_ragged_batch: true }', InvalidSource, "allow_ragged_batch"),
        (b'model_operations { op_library_filename: "evil.so" }', InvalidSource, "no library from outside"),
        (b'model_repository_agents { agents { name: "checksum" } }', InvalidSource, "agents"),
    ],
)
def test_what_would_change_answers_is_refused(text: bytes, error: type[SeatrialError], words: str) -> None:
    with pytest.raises(error, match=words):
        parse(text, model="m")


def test_what_changes_no_answer_is_named() -> None:
    config = parse(
        b"""
        name: "m" platform: "onnxruntime_onnx" model_transaction_policy { decoupled: false }
        optimization { graph { level: 1 } execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }
        parameters { key: "execution_mode" value { string_value: "1" } }
        parameters { key: "seatrial.digest" value { string_value: "sha256:0" } }
        response_cache { enable: true }
        instance_group { kind: KIND_GPU gpus: [0] }
        """,
        model="m",
    )
    assert sorted(left_out(config)) == [
        "instance_group.gpus", "instance_group.kind", "optimization.execution_accelerators", "optimization.graph",
        "parameters.execution_mode", "response_cache",
    ]  # fmt: skip


def test_every_place_is_one_of_a_field_that_triton_has() -> None:
    def paths(message: Descriptor, prefix: str = "") -> set[str]:
        here = {prefix + field.name for field in message.fields}
        below = [
            paths(field.message_type, f"{prefix}{field.name}.")
            for field in message.fields
            if prefix + field.name in GROUPS - {"parameters"}
        ]
        return here.union(*below)

    there = paths(model_config_pb2.ModelConfig.DESCRIPTOR)
    assert {path for path in {*CARRIED, *REFUSED, *GROUPS} if not path.startswith("parameters.")} <= there
    assert not CARRIED & REFUSED.keys()


@given(some.binary(max_size=200) | some.text(max_size=200).map(str.encode))
def test_whatever_the_file_holds_it_is_read_or_refused(text: bytes) -> None:
    with suppress(InvalidSource, EngineUnavailable):
        whole(text)


def messages_of(kind: Descriptor, depth: int = 0) -> some.SearchStrategy[str]:
    """Texts of a message: fields that Triton has, with values of their types, which may make no sense together."""

    def value(field: FieldDescriptor) -> some.SearchStrategy[str]:
        if field.message_type is not None:
            inner = messages_of(field.message_type, depth + 1) if depth < 4 else some.just("")
            return inner.map(lambda text: f"{field.name} {{ {text} }}")
        if field.enum_type is not None:
            values = some.sampled_from([each.name for each in field.enum_type.values])
        elif field.cpp_type == field.CPPTYPE_STRING:
            values = some.sampled_from(['""', '"m"', '"onnxruntime"', '"../x"', '"9"'])
        elif field.cpp_type == field.CPPTYPE_BOOL:
            values = some.sampled_from(["true", "false"])
        else:
            values = some.integers(0, 2**31 - 1).map(str)
        return values.map(lambda text: f"{field.name}: {text}")

    if not kind.fields:
        return some.just("")
    fields = some.sampled_from(list(kind.fields))
    return some.lists(fields.flatmap(value), max_size=3).map(" ".join)


@given(messages_of(model_config_pb2.ModelConfig.DESCRIPTOR))
def test_what_triton_would_read_is_read_with_a_place_for_every_field(text: str) -> None:
    try:
        triton = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError:
        with pytest.raises(InvalidSource, match="cannot be read"):
            parse(text.encode(), model="m")
        return
    with suppress(EngineUnavailable):
        try:
            config = parse(text.encode(), model="m")
        except InvalidSource as refusal:
            if "cannot be read" in str(refusal):
                raise
        else:
            assert config.SerializeToString(deterministic=True) == triton.SerializeToString(deterministic=True)
            assert {field.name for field, _ in triton.ListFields()} <= {*CARRIED, *GROUPS, *left_out(config)}
