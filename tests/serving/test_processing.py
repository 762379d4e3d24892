"""Texts to embeddings around an engine, without a server."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from msgspec.structs import replace

from seatrial.bundle import Bundle, Normalize, Pool, open_bundle
from seatrial.errors import BundleCorrupt, GoldenMismatch, WrongInput
from seatrial.tensors import Array
from seatrial_serving.engines import Engine, open_engine
from seatrial_serving.engines.processing import MOST_BYTES_A_TOKEN
from seatrial_serving.engines.proof import prove
from seatrial_serving.remote import EngineProcess
from tests.serving.conftest import load
from tests.serving.models import (
    MAX_TOKENS,
    MEAN,
    STATES,
    TOKENIZE,
    VOCABULARY,
    EncoderBundle,
    embedder_onnx,
    embedding,
    token_ids,
)

TEXTS = st.lists(st.sampled_from(VOCABULARY[4:]), min_size=1, max_size=MAX_TOKENS - 2).map(" ".join)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return EncoderBundle().write(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    opened = open_engine(bundle, threads=1)
    yield opened
    opened.close()


def embed(engine: Engine, *texts: str) -> tuple[Array, list[int]]:
    given_ = np.empty(len(texts), object)
    given_[:] = [text.encode() for text in texts]
    answer = engine.predict({"text": given_}, graph="text")
    return answer["embedding"], answer["token_count"].tolist()


@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_each_text_is_embedded_as_if_it_were_alone(engine: Engine, texts: list[str]) -> None:
    together, counts = embed(engine, *texts)
    assert counts == [len(token_ids(text)) for text in texts]
    for row, text in zip(together, texts, strict=True):
        assert np.allclose(row, embedding(text), atol=1e-6)
        assert np.allclose(row, embed(engine, text)[0][0], atol=1e-6)


def test_token_ids_are_embedded_as_their_text_is_and_main_stays_raw(engine: Engine) -> None:
    ids = np.array([token_ids("a ship at sea")])
    rows = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    assert np.allclose(engine.predict(rows, graph="tokens")["embedding"], [embedding("a ship at sea")], atol=1e-6)
    raw = engine.predict(rows | {"token_type_ids": np.zeros_like(ids)})["last_hidden_state"]
    assert raw.tolist() == STATES[ids].tolist()


def test_what_the_tokenizer_file_says_of_padding_and_truncation_does_not_hold(engine: Engine) -> None:
    assert embed(engine, "a ship in harbour is safe")[1] == [8]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" ".join(["sea"] * (MAX_TOKENS - 1)), "text 1 has 9 tokens; this model takes 1 to 8"),
        ("x" * (MOST_BYTES_A_TOKEN * MAX_TOKENS + 1), "characters"),
    ],
)
def test_a_text_that_is_too_long_is_refused_and_not_cut(engine: Engine, text: str, words: str) -> None:
    with pytest.raises(WrongInput, match=words):
        embed(engine, "a ship", text)


@pytest.mark.parametrize("token", [-1, len(VOCABULARY)])
def test_a_token_outside_the_vocabulary_is_refused(engine: Engine, token: int) -> None:
    with pytest.raises(WrongInput, match="vocabulary of 12"):
        engine.predict({"input_ids": np.array([[token]]), "attention_mask": np.array([[1]])}, graph="tokens")


def test_the_first_token_can_stand_for_the_text_and_vectors_can_keep_their_length(tmp_path: Path) -> None:
    first = EncoderBundle(postprocessing=(Pool(output="last_hidden_state", method="first"),)).write(tmp_path)
    got, _ = embed(open_engine(first, threads=1), "a ship at sea")
    assert got.tolist() == [STATES[VOCABULARY.index("[CLS]")].tolist()]


def test_a_graph_that_embeds_by_itself_takes_texts_too(tmp_path: Path) -> None:
    engine = open_engine(EncoderBundle(graph=embedder_onnx, postprocessing=()).write(tmp_path), threads=1)
    got, counts = embed(engine, "a ship at sea", "in harbour")
    np.testing.assert_allclose(got, [embedding("a ship at sea"), embedding("in harbour")], atol=1e-6)
    assert counts == [6, 4]
    assert list(engine.graphs) == ["main", "tokens", "text"]
    engine.close()


@pytest.mark.parametrize(
    "made",
    [
        EncoderBundle(tokenize=replace(TOKENIZE, ids="x")),
        EncoderBundle(tokenize=replace(TOKENIZE, mask="x")),
        EncoderBundle(tokenize=replace(TOKENIZE, file="model.onnx")),
        EncoderBundle(tokenize=replace(TOKENIZE, max_tokens=257)),
        EncoderBundle(postprocessing=(Pool(output="x", method="mean"),)),
        EncoderBundle(postprocessing=()),
        EncoderBundle(postprocessing=(Normalize(), MEAN)),
    ],
)
def test_a_processing_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path, made: EncoderBundle) -> None:
    with pytest.raises(BundleCorrupt):
        open_engine(made.write(tmp_path), threads=1)


def test_a_tokenizer_that_is_not_in_the_bundle_is_refused(tmp_path: Path) -> None:
    made = EncoderBundle(tokenize=replace(TOKENIZE, file="none.json"))
    with pytest.raises(BundleCorrupt, match=r"none\.json"):
        made.write(tmp_path)


def test_golden_texts_are_replayed(bundle: Bundle, tmp_path: Path) -> None:
    assert prove(bundle) == 1
    assert open_bundle(bundle.path).golden()[0].graph == "text"
    with pytest.raises(GoldenMismatch, match="embedding"):
        prove(EncoderBundle(golden_text="in harbour").write(tmp_path))


def test_the_processing_is_part_of_the_digest(bundle: Bundle, tmp_path: Path) -> None:
    assert EncoderBundle().write(tmp_path / "same").digest == bundle.digest
    other = EncoderBundle(postprocessing=(MEAN,))
    assert other.write(tmp_path / "other").digest != bundle.digest


@pytest.mark.anyio
async def test_an_engine_process_says_which_graphs_it_has(bundle: Bundle) -> None:
    engine = await EngineProcess.start(load(bundle.path, bundle.digest))
    await engine.close()
    assert list(engine.graphs) == ["main", "tokens", "text"]
    assert engine.graphs["text"].batch is not None
    assert engine.graphs["tokens"].dynamic_axes[1].max == MAX_TOKENS
