"""An answer comes from the cache only where the question is the same in everything that decides the answer."""

from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis.extra import numpy as arrays

from seatrial.protocol import Tensor
from seatrial.tensors import Array, DataType
from seatrial_serving.cache import OVERHEAD_BYTES, ResponseCache, fingerprint
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear, linear_onnx

SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)
NUMBERS = arrays.arrays(st.sampled_from([np.float32, np.int64]), SHAPES)
TEXTS = arrays.arrays(np.object_, SHAPES, elements=st.binary(max_size=4))
MODEL = "sha256:1"


def tensor(array: Array, name: str = "x") -> Tensor:
    return Tensor(name, DataType.of(array.dtype), array)


def same(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tolist() == other.tolist() if one.dtype.hasobject else one.tobytes() == other.tobytes()


@given(st.one_of(NUMBERS, TEXTS), st.one_of(NUMBERS, TEXTS))
def test_questions_are_the_same_where_every_byte_is(one: Array, other: Array) -> None:
    asked, again, else_ = (fingerprint(MODEL, "main", [tensor(each)]) for each in (one, one.copy(), other))
    assert asked == again
    assert (asked == else_) == same(one, other)


@given(NUMBERS)
def test_a_question_is_one_of_a_model_a_graph_and_names(x: Array) -> None:
    ways = {
        fingerprint(digest, graph, [tensor(x, name)])
        for digest in (MODEL, "sha256:2")
        for graph in ("main", "text")
        for name in ("x", "y")
    }
    assert len(ways) == 8


def test_strings_cannot_be_shifted_from_one_element_to_the_next() -> None:
    one, other = (np.array(texts, object) for texts in ([b"ab", b"c"], [b"a", b"bc"]))
    assert fingerprint(MODEL, "main", [tensor(one)]) != fingerprint(MODEL, "main", [tensor(other)])


def outputs(values: int, mark: int) -> tuple[Tensor, ...]:
    return (tensor(np.full(values, mark, np.int64)),)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 60)), max_size=60))
def test_the_bound_holds_and_the_least_recently_used_go_first(steps: list[tuple[bool, int, int]]) -> None:
    cache = ResponseCache(3 * OVERHEAD_BYTES)
    model: list[tuple[int, int]] = []  # question and size, the least recently used first
    for keep, number, values in steps:
        question, size = bytes([number]), OVERHEAD_BYTES + 8 * values
        known = [each for each in model if each[0] == number]
        if keep and not known:
            cache.keep(question, outputs(values, number))
            model.append((number, size))
            while sum(size for _, size in model) > cache.max_bytes:
                model.pop(0)
        else:
            found = cache.find(question)
            assert (found is not None) == bool(known)
            assert found is None or (found[0].array == number).all()
            model = [each for each in model if each not in known] + known
        assert (len(cache), cache.size_bytes) == (len(model), sum(size for _, size in model))


def test_what_is_larger_than_the_cache_pushes_nobody_out() -> None:
    cache = ResponseCache(2 * OVERHEAD_BYTES)
    cache.keep(b"small", outputs(1, 1))
    cache.keep(b"large", outputs(OVERHEAD_BYTES, 2))
    assert cache.find(b"small") is not None
    assert cache.find(b"large") is None


def test_a_kept_answer_is_its_own_and_cannot_be_written_to() -> None:
    batch = np.arange(6.0).reshape(3, 2)
    cache = ResponseCache(10_000)
    cache.keep(b"q", (tensor(batch[1:2]),))
    batch[:] = -1
    found = cache.find(b"q")
    assert found is not None
    assert found[0].array.tolist() == [[2.0, 3.0]]
    with pytest.raises(ValueError, match="read-only"):
        found[0].array[0, 0] = 7


# On a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("cache")
    bundle = LinearBundle(labels=("a", "b", "c")).write(place / "store")
    environment = {"SEATRIAL_SERVING__CACHE_BYTES": "1000000", "SEATRIAL_SERVING__ENGINES__COUNT": "1"}
    with serving(bundle.path, linear_onnx(place / "spare.onnx"), place=place, environment=environment) as running:
        yield running


def hits(server: Server, model: str = "linear") -> tuple[float, float]:
    return (
        server.total("seatrial_cache_hits_total", model=model),
        server.total("seatrial_cache_misses_total", model=model),
    )


def ask(server: Server, x: Array, *, model: str = "linear", binary: bool = True, classes: int = 0) -> Array:
    with triton_http.InferenceServerClient(server.http) as client:
        given = triton_http.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x, binary_data=binary)
        wanted = triton_http.InferRequestedOutput("y", binary_data=binary, class_count=classes)
        answer: Array = client.infer(model, [given], outputs=[wanted]).as_numpy("y")
        return answer


def test_the_same_question_is_computed_once_however_it_is_asked(server: Server) -> None:
    x = np.array([[1, 0, 3, 0], [2, 0, 5, 0]], np.float32)
    had, missed = hits(server)
    assert ask(server, x).tolist() == ask(server, x, binary=False).tolist() == linear(x).tolist()
    assert [text.split(b":")[-1] for text in ask(server, x, classes=1).ravel()] == [b"a", b"a"]
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        given = triton_grpc.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        assert client.infer("linear", [given]).as_numpy("y").tolist() == linear(x).tolist()
        told = client.get_inference_statistics("linear", as_json=True)["model_stats"][0]
    assert hits(server) == (had + 3, missed + 1)
    counted = told["inference_stats"]
    assert int(counted["cache_hit"]["count"]) == had + 3
    assert int(counted["cache_hit"]["ns"]) > 0
    assert int(counted["cache_miss"]["count"]) == missed + 1
    assert int(told["execution_count"]) == missed + 1
    assert server.total("nv_cache_num_hits_per_model", model="linear") == had + 3
    until(lambda: [each.get("cached", False) for each in server.log()[-4:]] == [False, True, True, True])


def test_another_question_is_computed(server: Server) -> None:
    x = np.array([[9, 9, 9, 9]], np.float32)
    had, missed = hits(server)
    assert ask(server, x).tolist() == linear(x).tolist()
    assert ask(server, -x).tolist() == linear(-x).tolist()
    assert hits(server) == (had, missed + 2)


def test_what_nobody_vouches_for_is_not_cached(server: Server) -> None:
    x = np.array([[1, 0, 0, 0]], np.float32)
    assert ask(server, x, model="spare").tolist() == ask(server, x, model="spare").tolist()
    assert hits(server, "spare") == (0, 0)


def test_a_wrong_question_is_refused_and_not_remembered(server: Server) -> None:
    had, missed = hits(server)
    for _ in range(2):
        with pytest.raises(Exception, match="shape"):
            ask(server, np.ones((1, 3), np.float32))
    assert hits(server) == (had, missed)


def test_the_configuration_says_so(server: Server) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        for model, enabled in (("linear", True), ("spare", False)):
            config = client.get_model_config(model, as_json=True)["config"]
            assert config.get("response_cache", {}).get("enable", False) is enabled
