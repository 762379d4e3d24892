"""OpenAI's embeddings, asked by OpenAI's own client."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import MAX_TOKENS, VOCABULARY, EncoderBundle, LinearBundle, embedding, token_ids

TEXT, TEXTS = "a ship at sea", ["a ship in harbour is safe", "sea", "a ship at sea"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("openai")
    what = (EncoderBundle().write(place).path, LinearBundle().write(place).path)
    environment = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__LIMITS__BODY_BYTES": "65536"}
    with serving(*what, place=place / "server", environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url("/v1"), api_key="none", max_retries=0) as opened:
        yield opened


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data])


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 4, "user": "somebody"}])
@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (TEXT, [TEXT]),
        (TEXTS, TEXTS),
        (token_ids(TEXT), [TEXT]),
        ([token_ids(text) for text in TEXTS], TEXTS),
    ],
)
def test_texts_and_token_ids_are_embedded(
    client: openai.OpenAI, given: Any, texts: list[str], options: dict[str, Any]
) -> None:
    answer = client.embeddings.create(model="encoder", input=given, **options)
    assert np.allclose(vectors(answer), [embedding(text) for text in texts], atol=1e-6)
    tokens = sum(len(token_ids(text)) for text in texts)
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("encoder", tokens, tokens)


def test_base64_is_the_floats_own_bytes(server: Server) -> None:
    asked = {"model": "encoder", "input": TEXT, "encoding_format": "base64"}
    [item] = httpx.post(server.url("/v1/embeddings"), json=asked).json()["data"]
    assert np.allclose(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), embedding(TEXT), atol=1e-6)


def test_more_texts_than_a_batch_may_have_are_answered_in_their_order(client: openai.OpenAI) -> None:
    texts = [
        " ".join(VOCABULARY[4 + number % 8] for number in range(start, start + 1 + start % 6)) for start in range(150)
    ]
    answer = client.embeddings.create(model="encoder", input=texts)
    assert np.allclose(vectors(answer), [embedding(text) for text in texts], atol=1e-6)
    assert answer.usage.total_tokens == sum(len(token_ids(text)) for text in texts)


def test_models_are_listed_and_looked_up(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["encoder", "linear"]
    assert client.models.retrieve("encoder").id == "encoder"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"input": ""}, "none of them empty"),
        ({"input": []}, "none of them empty"),
        ({"input": ["a", ""]}, "none of them empty"),
        ({"input": [[]]}, "none of them empty"),
        ({"input": ["a", 1]}, "alone"),
        ({"input": [["a"]]}, "alone"),
        ({"input": [True]}, "alone"),
        ({"input": [[1], [2.5]]}, "alone"),
        ({"input": {"text": "a"}}, "must be"),
        ({"input": ["a"] * 2049}, "1 to 2048"),
        ({"input": [[1], [99]]}, "vocabulary"),
        ({"input": [[2**70]]}, "INT64"),
        ({"input": [[1] * (MAX_TOKENS + 1)]}, "verified for 1 to 8"),
        ({"input": " ".join(["sea"] * MAX_TOKENS)}, "has 10 tokens"),
        ({"dimensions": 2}, "cannot give 2"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": "linear"}, "does not embed"),
    ],
)
def test_what_is_wrong_is_said_in_their_form(client: openai.OpenAI, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(**({"model": "encoder", "input": TEXT} | asked))
    body: Any = refused.value.body
    assert words in body["message"]
    assert (body["type"], body["param"], body["code"]) == ("invalid_request_error", None, None)


def test_a_model_that_is_not_there_is_told_by_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.embeddings.create(model="other", input=TEXT)
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"model": 3, "input": "a"}', 400),
        (b"[" * 60_000, 400),
        (b" " * 70_000, 413),
    ],
)
def test_bodies_that_name_no_model_are_refused_and_counted(server: Server, body: bytes, status: int) -> None:
    before = server.total("seatrial_unknown_model_requests_total", protocol="openai")
    answer = httpx.post(server.url("/v1/embeddings"), content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    assert server.total("seatrial_unknown_model_requests_total", protocol="openai") == before + 1


def test_each_request_is_counted_and_logged_under_the_doors_own_name(server: Server, client: openai.OpenAI) -> None:
    def count(outcome: str) -> float:
        return server.total("seatrial_requests_total", model="encoder", protocol="openai", outcome=outcome)

    good, bad = count("ok"), count("client_error")
    client.embeddings.create(model="encoder", input=TEXTS)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="encoder", input="")
    assert (count("ok"), count("client_error")) == (good + 1, bad + 1)
    endings = [("openai", "encoder", "ok", 3), ("openai", "encoder", "client_error", 0)]
    parts = ("protocol", "model", "outcome", "rows")
    until(lambda: [tuple(each[part] for part in parts) for each in server.log()[-2:]] == endings)
