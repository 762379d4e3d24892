"""Sequences and streams as clients of Triton ask for them, on a real server; and what becomes of them in a swap and a crash."""

import json
import os
import queue
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear, write_purse

MUST_START = "must specify the START flag on the first request of the sequence"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The purse, which has a memory, and the linear model, which has none."""
    place = tmp_path_factory.mktemp("stateful")
    bundles = [write_purse(place / "purse"), LinearBundle().write(place / "linear")]
    environment = {
        "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true",
        "SEATRIAL_SERVING__CACHE_BYTES": "100000",
        "SEATRIAL_SERVING__SEQUENCES__SWAP_S": "20",
    }
    with serving(*(bundle.path for bundle in bundles), place=place, environment=environment) as running:
        yield running


def ask(server: Server, name: int | str | None, *coins: int, **flags: bool) -> Any:
    """Over REST, in JSON; the totals, or the status and the words of the refusal."""
    parameters = {f"sequence_{flag}": value for flag, value in flags.items()}
    if name is not None:
        parameters["sequence_id"] = name  # type: ignore[assignment] # text or a number
    given = {"name": "coin", "shape": [len(coins), 1], "datatype": "INT64", "data": coins}
    answer = httpx.post(server.url("/v2/models/purse/infer"), json={"inputs": [given], "parameters": parameters})
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]
    return answer.json()["outputs"][0]["data"]


@pytest.mark.parametrize("library", [triton_http, triton_grpc], ids=["rest", "grpc"])
def test_sequences_of_tritons_clients_do_not_mix(server: Server, library: Any) -> None:
    with library.InferenceServerClient(server.http if library is triton_http else server.grpc) as client:

        def put(coin: int, **sequence: Any) -> float:
            given = library.InferInput("coin", (1, 1), "INT64")
            given.set_data_from_numpy(np.array([[coin]]))
            return float(client.infer("purse", [given], **sequence).as_numpy("total").item())

        assert put(1, sequence_id=70, sequence_start=True) == 10
        assert put(2, sequence_id="seventy", sequence_start=True) == 100
        assert put(1, sequence_id=70) == 20
        assert put(1, sequence_id=70) == 30, "no cache stands in for the model"
        assert put(2, sequence_id="seventy", sequence_end=True) == 200
        assert put(3, sequence_id=70, sequence_end=True) == 1030
        with pytest.raises(InferenceServerException, match=MUST_START):
            put(0, sequence_id=70)
        with pytest.raises(InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
            put(0)
        assert put(0, sequence_id=70, sequence_start=True, sequence_end=True) == 1


def test_the_rows_of_a_request_are_steps(server: Server) -> None:
    assert ask(server, "rows", 0, 1, 2, start=True) == [1, 11, 111]
    assert ask(server, "rows", 3, 0, end=True) == [1111, 1112]
    assert ask(server, "rows", 0)[0] == 400


def test_what_is_said_of_a_model_with_a_memory(server: Server) -> None:
    told = httpx.get(server.url("/v2/models/purse")).json()
    assert [each["name"] for each in told["inputs"]] == ["coin"]
    assert [each["name"] for each in told["outputs"]] == ["total"]
    assert {"sequence", "sequence(string_id)"} <= set(httpx.get(server.url("/v2")).json()["extensions"])
    config = httpx.get(server.url("/v2/models/purse/config")).json()
    assert config["sequence_batching"] == {"oldest": {}, "max_sequence_idle_microseconds": 60_000_000}
    assert "dynamic_batching" not in config
    assert httpx.post(server.url("/v1/models/purse:predict"), json={"instances": [[0]]}).status_code == 400


def test_its_examples_are_answered(server: Server) -> None:
    document = httpx.get(server.url("/openapi.json")).json()
    examples = document["components"]["examples"]
    asked = {path: item["post"] for path, item in document["paths"].items() if path.startswith("/v2/models/purse/")}
    assert set(asked) == {f"/v2/models/purse/{end}" for end in ("infer", "generate", "generate_stream")} | {
        f"/v2/models/purse/versions/1/{end}" for end in ("infer", "generate", "generate_stream")
    }
    for path, operation in asked.items():
        shown = operation["requestBody"]["content"]["application/json"]["examples"]["example"]["$ref"]
        answer = httpx.post(server.url(path), json=examples[shown.rpartition("/")[2]]["value"])
        assert answer.status_code == 200, (path, answer.text)
    assert not [path for path in document["paths"] if "/v1/models/purse" in path and path.endswith("predict")]


@pytest.mark.parametrize("flags", [{"start": "yes"}, {"end": 1}])
def test_flags_are_true_or_false(server: Server, flags: dict[str, Any]) -> None:
    status, words = ask(server, 3, 0, **flags)
    assert status == 400
    assert "expected true or false" in words


# Streams


class Stream:
    """A stream of tritonclient's; answers and errors in the order in which they come."""

    def __init__(self, client: triton_grpc.InferenceServerClient) -> None:
        self._client = client
        self._came: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self._came.put((result, error)))

    def put(self, *coins: int, **sequence: Any) -> None:
        given = triton_grpc.InferInput("coin", (len(coins), 1), "INT64")
        given.set_data_from_numpy(np.array(coins)[:, None])
        self._client.async_stream_infer("purse", [given], **sequence)

    def next(self) -> tuple[list[float], bool]:
        """The total, and whether it is the last of its request."""
        result, error = self._came.get(timeout=20)
        if error is not None:
            raise error
        final = result.get_response().parameters["triton_final_response"].bool_param
        return [float(total) for total in result.as_numpy("total").ravel()], final


def test_a_stream_of_many_sequences(server: Server) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        for step in range(3):
            for number in range(4):
                stream.put(
                    number, sequence_id=100 + number, sequence_start=step == 0, sequence_end=step == 2, request_id="r"
                )
        came = [stream.next() for _ in range(12)]
    assert came == [([float(10**number * (step + 1))], True) for step in range(3) for number in range(4)]


def test_each_step_of_a_streamed_request_is_an_answer(server: Server) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        stream = Stream(client)
        stream.put(0, 1, 2, sequence_id="steps", sequence_start=True)
        stream.put(3, sequence_id="steps")
        stream.put(0, 0, 9, 0, sequence_id="steps")
        stream.put(0, sequence_id="steps")
        assert [stream.next() for _ in range(6)] == [
            *(([1.0], False), ([11.0], False), ([111.0], True)),
            ([1111.0], True),
            *(([1112.0], False), ([1113.0], False)),
        ]
        with pytest.raises(InferenceServerException, match="the model refuses a value"):
            stream.next()
        with pytest.raises(InferenceServerException, match=MUST_START):
            stream.next()


def events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", server.url(path), json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_each_step_is_an_event(server: Server) -> None:
    came = events(server, "/v2/models/purse/versions/1/generate_stream", {"coin": [[0], [1], [3]], "id": "mine"})
    assert came == [
        {"id": "mine", "model_name": "purse", "model_version": "1", "total": total} for total in (1, 11, 1011)
    ]
    begun = {"coin": [[0], [1]], "parameters": {"sequence_id": "s", "sequence_start": True}}
    assert [each["total"] for each in events(server, "/v2/models/purse/generate_stream", begun)] == [1, 11]
    assert ask(server, "s", 2) == [111]
    went_on = {"coin": 0, "sequence_id": "s", "sequence_end": True}
    assert [each["total"] for each in events(server, "/v2/models/purse/generate_stream", went_on)] == [112]
    assert ask(server, "s", 0)[0] == 400


def test_a_model_without_a_memory_answers_in_one_event(server: Server) -> None:
    x = [[1, 2, 3, 4], [5, 6, 7, 8]]
    [event] = events(server, "/v2/models/linear/generate_stream", {"x": x, "temperature": 0.5})
    assert event == {"model_name": "linear", "model_version": "1", "y": linear(x).ravel().tolist()}


def test_the_whole_answer_at_once(server: Server) -> None:
    answer = httpx.post(server.url("/v2/models/purse/generate"), json={"coin": [[0], [0], [1]]})
    assert answer.json() == {"model_name": "purse", "model_version": "1", "total": [1, 2, 12]}
    answer = httpx.post(server.url("/v2/models/linear/generate"), json={"parameters": {"x": [1, 2, 3, 4]}})
    assert answer.json()["y"] == linear([[1, 2, 3, 4]]).ravel().tolist()


@pytest.mark.parametrize(
    ("name", "body", "status", "words"),
    [
        ("nobody", {"x": 1}, 404, "no model"),
        ("linear", [1], 400, "expected an object"),
        ("linear", {}, 400, "missing input"),
        ("linear", {"x": [[1, 2], [3]]}, 400, "ragged"),
        ("linear", {"x": [1, 2, 3]}, 400, "has shape [1, 3], expected [-1, 4]"),
        ("linear", {"x": [1, 2, 3, 4], "other": {"deep": 1}}, 400, "'other' is no input"),
        ("linear", {"x": [1, 2, 3, 4], "parameters": 1}, 400, "expected an object"),
        ("linear", {"x": [1, 2, 3, 4], "id": 7}, 400, "expected a text"),
        ("purse", {"coin": 0, "sequence_id": 777}, 400, MUST_START),
        ("purse", {"coin": [[0]] * 17}, 400, "verified for 1 to 16"),
        ("purse", {"coin": 9}, 400, "the model refuses a value"),
    ],
)
@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_what_is_wrong_before_the_first_event_is_a_refusal(
    server: Server, kind: str, name: str, body: Any, status: int, words: str
) -> None:
    answer = httpx.post(server.url(f"/v2/models/{name}/{kind}"), json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert words in answer.json()["error"]


def test_what_goes_wrong_later_is_the_last_event(server: Server) -> None:
    came = events(server, "/v2/models/purse/generate_stream", {"coin": [[1], [2], [9], [0]]})
    assert [event.get("total") for event in came] == [10, 110, None]
    assert "the model refuses a value of the request" in came[-1]["error"]
    assert server.total("seatrial_requests_total", model="purse", outcome="client_error", protocol="rest") > 0


# Swaps and crashes


def loaded_again(server: Server) -> tuple[set[int], set[int]]:
    """Swap the purse for itself; all engines of before, and the new ones."""
    before = {process.pid for process in server.engines()}
    httpx.post(server.url("/v2/repository/models/purse/load"), timeout=60).raise_for_status()
    return before, {process.pid for process in server.engines()} - before


def test_a_swap_leaves_sequences_with_what_they_began_on(server: Server) -> None:
    assert ask(server, "swapped", 1, start=True) == [10]
    before, _ = loaded_again(server)
    assert ask(server, "new", 0, start=True) == [1]
    assert ask(server, "swapped", 1) == [20]
    assert before <= {process.pid for process in server.engines()}, "the old engines are there while it goes on"
    assert ask(server, "swapped", 2, end=True) == [120]
    until(lambda: len(before & {process.pid for process in server.engines()}) == 2)  # those of the other model
    assert ask(server, "new", 0, end=True) == [2]
    assert ask(server, "swapped", 0)[0] == 400


def test_a_crash_ends_the_sequences_of_its_engine_and_says_so(server: Server) -> None:
    _, engines = loaded_again(server)
    names = [f"crashed {number}" for number in range(6)]
    for name in names:
        assert ask(server, name, 0, start=True) == [1]
    deaths = server.total("seatrial_engine_deaths_total", model="purse")
    os.kill(min(engines), signal.SIGKILL)
    until(lambda: server.total("seatrial_engine_deaths_total", model="purse") > deaths)
    came = [ask(server, name, 1) for name in names]
    lost = [answer for answer in came if answer != [11]]
    assert len(lost) == 3, "each of the two engines had half of them"
    for status, words in lost:
        assert status == 400
        assert MUST_START in words
        assert "the engine that had its state died: start it again" in words
    for name in names:
        assert ask(server, name, 2, start=True, end=True) == [100]
