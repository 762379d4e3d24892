"""What is counted is what is exposed, under the names and labels of the one list."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from seatrial.errors import SeatrialError
from seatrial.settings import Serving
from seatrial_monitoring import series
from seatrial_monitoring.metrics import AliasFacts, Counted, GenerationFacts, Histogram, ServerFacts, ServingMetrics
from seatrial_monitoring.series import Outcome, Protocol, latency_edges_s, le
from seatrial_serving.data_plane import DataPlane

ENDED = st.lists(st.tuples(st.sampled_from(Protocol), st.sampled_from(Outcome)), max_size=60)
SECONDS = st.lists(st.floats(0, 20), max_size=60)
FACTS = GenerationFacts(
    model="m", version="1", variant="fp32", digest="sha256:0", alias="champion", verified=True,
    engines=2, queue_depth=3, in_flight=4, load_s=0.5, resident_bytes=1000,
)  # fmt: skip


def metrics(facts: ServerFacts | None = None) -> ServingMetrics:
    return ServingMetrics(CollectorRegistry(), 0.15, facts=lambda: facts or ServerFacts())


def exposed(counted: ServingMetrics) -> list[Sample]:
    """Through the text that Prometheus reads, and back."""
    text = generate_latest(counted.registry).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(samples: Sequence[Sample], name: str, **labels: str) -> float:
    [found] = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
    return found


@given(ENDED)
def test_requests_are_counted_as_they_ended(ended: list[tuple[Protocol, Outcome]]) -> None:
    counted = metrics()
    model = counted.model("m", "1", "fp32")
    for protocol, outcome in ended:
        model.requests[protocol][outcome] += 1
    samples = exposed(counted)
    expected = Counter(ended)
    for protocol in Protocol:
        for outcome in Outcome:
            found = value(samples, "seatrial_requests_total", model="m", protocol=protocol, outcome=outcome)
            assert found == expected[protocol, outcome]
    failures = [each.value for each in samples if each.name == "nv_inference_request_failure"]
    well = value(samples, "nv_inference_request_success", model="m", version="1")
    assert well + sum(failures) == len(ended)


@given(SECONDS, st.floats(1e-4, 30))
def test_buckets_hold_what_is_not_above_their_edge_and_never_shrink(seconds: list[float], budget_s: float) -> None:
    edges = latency_edges_s(budget_s)
    histogram = Histogram(edges)
    for each in seconds:
        histogram.observe(each)
    buckets = dict(histogram.buckets())
    assert [buckets[le(edge)] for edge in edges] == [sum(each <= edge for each in seconds) for edge in edges]
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets["+Inf"] == histogram.count == len(seconds)
    assert abs(histogram.total - sum(seconds)) < 1e-6
    assert le(budget_s) in buckets, "the promise can be counted"


@given(SECONDS, st.integers(1, 8))
def test_a_batch_counts_once_for_us_and_once_a_request_for_triton(seconds: list[float], requests: int) -> None:
    counted = metrics()
    model = counted.model("m", "1", "fp32")
    for each in seconds:
        model.computed(each, rows=3 * requests, requests=requests)
    samples = exposed(counted)
    assert value(samples, "seatrial_compute_duration_seconds_count", model="m") == len(seconds)
    assert value(samples, "seatrial_batch_size_sum", model="m") == 3 * requests * len(seconds)
    assert value(samples, "nv_inference_exec_count", model="m", version="1") == len(seconds)
    shared = value(samples, "nv_inference_compute_infer_duration_us", model="m", version="1")
    assert abs(shared - 1e6 * requests * sum(seconds)) <= 1 + 1e-9 * shared


def test_variants_of_a_version_are_apart_for_us_and_one_for_triton() -> None:
    counted = metrics()
    for variant, times in (("fp32", 2), ("int8", 5)):
        counted.model("m", "1", variant).requests[Protocol.REST][Outcome.OK] += times
    samples = exposed(counted)
    assert value(samples, "seatrial_requests_total", variant="int8", protocol="rest", outcome="ok") == 5
    assert value(samples, "nv_inference_request_success", model="m", version="1") == 7


def test_two_aliases_of_a_version_are_one_sample_of_each_series() -> None:
    other = replace(FACTS, alias="stable", engines=1, queue_depth=5, load_s=0.2)
    samples = exposed(metrics(ServerFacts(generations=[FACTS, other, FACTS])))
    names = [(each.name, tuple(sorted(each.labels.items()))) for each in samples]
    assert len(names) == len(set(names))
    assert value(samples, "seatrial_engines", model="m", version="1") == 2 + 1 + 2
    assert value(samples, "seatrial_queue_depth", model="m") == 3 + 5 + 3
    assert value(samples, "seatrial_model_load_duration_seconds", model="m") == 0.5
    assert value(samples, "seatrial_model_loaded_info", alias="stable") == 1


def test_every_series_is_there_from_the_start_with_every_label_value() -> None:
    counted = metrics(ServerFacts(generations=[FACTS], aliases=[AliasFacts(model="m", alias="champion", drift_s=0)]))
    counted.expect("m")
    counted.model("m", "1", "fp32")
    samples = exposed(counted)
    labels = {each.name: set(each.labels) - {"le"} for each in samples}
    for each in series.ALL:
        for name in each.exposed:
            assert labels.get(name) == set(each.labels), name
    zero = [each for each in samples if each.name == "seatrial_requests_total" and each.labels["version"]]
    assert len(zero) == len(Protocol) * len(Outcome)
    assert {each.value for each in zero} == {0}


def test_nothing_is_exposed_that_the_list_does_not_have() -> None:
    counted = metrics(ServerFacts(generations=[FACTS], aliases=[AliasFacts(model="m", alias="champion", drift_s=0)]))
    counted.model("m", "1", "fp32")
    ours = {each.name for each in exposed(counted) if each.name.startswith("seatrial_")}
    assert ours == {name for each in series.ALL for name in each.exposed}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=12))
def test_any_name_of_a_model_comes_through_the_exposition(name: str) -> None:
    counted = metrics()
    counted.model(name, "1", "fp32").engine_deaths = 7
    assert value(exposed(counted), "seatrial_engine_deaths_total", model=name) == 7


def test_requests_before_a_model_is_loaded_are_refusals_of_that_model() -> None:
    counted = metrics()
    counted.expect("late")
    counted.not_loaded["late"][Protocol.GRPC] += 3
    samples = exposed(counted)
    assert value(samples, "seatrial_requests_total", model="late", protocol="grpc", outcome="refused") == 3
    assert value(samples, "seatrial_requests_total", model="late", protocol="rest", outcome="refused") == 0


def test_a_swap_back_goes_on_counting_where_the_version_stopped() -> None:
    counted = metrics()
    counted.model("m", "1", "fp32").retried += 2
    counted.model("m", "2", "fp32").retried += 5
    assert counted.model("m", "1", "fp32").retried == 2


def test_edges_are_sorted_and_the_budget_is_one_of_them_once() -> None:
    assert latency_edges_s(0.1) == series.LATENCY_EDGES_S
    assert latency_edges_s(0.15)[bisect_left(series.LATENCY_EDGES_S, 0.15)] == 0.15
    assert le(1) == "1.0", "as Prometheus 3 normalizes it, so that a rule finds it in every version"


def test_a_request_for_a_model_that_is_still_to_come_counts_against_that_model() -> None:
    counted = metrics()
    plane = DataPlane(Serving(), counted)
    plane.expect("late")
    for name in ("late", "nobody"):
        exchange = plane.begin(Protocol.REST, name)
        with pytest.raises(SeatrialError) as refused:
            plane.locate(exchange)
        plane.fail(exchange, refused.value)
        plane.end(exchange)
    samples = exposed(counted)
    assert value(samples, "seatrial_requests_total", model="late", protocol="rest", outcome="refused") == 1
    assert value(samples, "seatrial_unknown_model_requests_total", protocol="rest") == 1


# Several gateways


def test_what_gateways_counted_is_added_up_but_the_death_of_an_engine_which_all_of_them_saw() -> None:
    gateways = [metrics(ServerFacts(generations=[FACTS], log_written=5)) for _ in range(3)]
    for number, counted in enumerate(gateways, 1):
        model = counted.model("m", "1", "fp32")
        model.requests[Protocol.REST][Outcome.OK] += number
        model.computed(0.5, rows=number, requests=1)
        model.engine_deaths += 1
        counted.unknown_model[Protocol.GRPC] += number
        counted.expect("late")
        counted.not_loaded["late"][Protocol.REST] += number
    first, *others = gateways
    told = [msgspec.msgpack.decode(msgspec.msgpack.encode(each.counted()), type=Counted) for each in others]
    first.elsewhere = lambda: [Counted(), *told]
    samples = exposed(first)
    found = {
        "requests": value(samples, "seatrial_requests_total", model="m", protocol="rest", outcome="ok"),
        "refused": value(samples, "seatrial_requests_total", model="late", protocol="rest", outcome="refused"),
        "unknown": value(samples, "seatrial_unknown_model_requests_total", protocol="grpc"),
        "batches": value(samples, "seatrial_compute_duration_seconds_count", model="m"),
        "seconds": value(samples, "seatrial_compute_duration_seconds_sum", model="m"),
        "rows": value(samples, "nv_inference_count", model="m"),
        "waiting": value(samples, "seatrial_queue_depth", model="m"),
        "engines": value(samples, "seatrial_engines", model="m"),
        "deaths": value(samples, "seatrial_engine_deaths_total", model="m"),
        "logged": value(samples, "seatrial_request_log_written_total"),
    }
    assert found == {
        "requests": 6,
        "refused": 6,
        "unknown": 6,
        "batches": 3,
        "seconds": 1.5,
        "rows": 6,
        "waiting": 9,
        "engines": 2,
        "deaths": 1,
        "logged": 15,
    }
    assert first.model("m", "1", "fp32").requests[Protocol.REST][Outcome.OK] == 1, "its own are untouched"
