"""What a bundle says to do before and after its graph, done around the engine that runs it.

A bundle with `tokenize` embeds, with `pool` or where its graph answers with one vector a row. It has, beside `main`, the
graph `tokens`, from token ids to embeddings, and the graph `text`, from texts to embeddings. Both answer how many tokens
each row had. Texts are padded to the longest of the batch that they are in, so a short one pays only for its company; a
text that is too long is refused, never cut.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from seatrial.bundle import MAIN, Bundle, Normalize, Pool, Tokenize
from seatrial.errors import BundleCorrupt, EngineFailed, MissingExtra, WrongInput
from seatrial.tensors import Array, DataType, Padding, Signature, TensorSpec
from seatrial_serving.engines import EMBEDDING, TEXT, TOKEN_COUNT, TOKENS, Engine

# ids and mask are [batch, tokens], states [batch, tokens, features], embeddings [batch, features]
MOST_BYTES_A_TOKEN = 512
"""A text with more bytes than this for each token that it may have is refused unread."""


class Embedding:
    """An engine around `engine`; `main` stays as it was."""

    def __init__(self, engine: Engine, bundle: Bundle) -> None:
        """Raises `BundleCorrupt` where what the manifest wants does not fit its signature, and `MissingExtra`."""
        self._pool: Pool | None
        match bundle.manifest.preprocessing, bundle.manifest.postprocessing:
            case [tokenize], [Pool() as pool, *rest] if rest in ([], [Normalize()]):
                self._pool, self._normalize = pool, bool(rest)
            case [tokenize], []:
                self._pool, self._normalize = None, False
            case _:
                raise BundleCorrupt(
                    f"{bundle.path} wants a processing that there is none of: tokenize, pool, normalize"
                )
        self._tokenize, self._tokenizer = tokenize, _open_tokenizer(bundle, tokenize)
        self._padding = _padding_id(engine.signature, self._tokenizer, tokenize)
        try:
            embedding = _graphs(engine.signature, tokenize, self._pool, padding=self._padding)
        except (KeyError, ValueError) as error:
            raise BundleCorrupt(f"the processing of {bundle.path} does not fit its signature: {error}") from error
        self.graphs = {MAIN: engine.signature, **embedding}
        self.signature, self.on_cpu = engine.signature, engine.on_cpu
        self._engine = engine
        self._vocabulary = self._tokenizer.get_vocab_size()
        self._least = self.graphs[TOKENS].dynamic_axes[1].min
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def predict(self, inputs: Mapping[str, Array], *, graph: str = MAIN) -> dict[str, Array]:
        match graph:
            case "text":
                return self._embed(self._encode([item.decode() for item in inputs[TEXT]]))
            case "tokens":
                return self._embed(inputs)
            case _:
                return self._engine.predict(inputs, graph=graph)

    def close(self) -> None:
        self._engine.close()

    def _encode(self, texts: Sequence[str]) -> dict[str, Array]:
        most = self._tokenize.max_tokens
        for number, text in enumerate(texts):
            if len(text) > MOST_BYTES_A_TOKEN * most:
                raise WrongInput(f"text {number} has {len(text)} characters; this model takes {most} tokens")
        try:
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        except Exception as error:
            raise EngineFailed(f"the tokenizer refused the batch: {error}") from error
        lengths = [len(ids) for ids in encoded]
        for number, length in enumerate(lengths):
            if not 0 < length <= most:
                raise WrongInput(f"text {number} has {length} tokens; this model takes 1 to {most}")
        width = max(*lengths, self._least)
        ids = np.full((len(texts), width), self._padding, np.int64)
        mask = np.arange(width) < np.array(lengths)[:, None]
        ids[mask] = list(chain.from_iterable(encoded))
        return {self._tokenize.ids: ids, self._tokenize.mask: mask}

    def _embed(self, given: Mapping[str, Array]) -> dict[str, Array]:
        ids, mask = given[self._tokenize.ids], given[self._tokenize.mask].astype(bool)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise WrongInput(f"a token id is not within the vocabulary of {self._vocabulary}")
        rows = {self._tokenize.ids: ids, self._tokenize.mask: mask}
        inputs = {
            spec.name: rows.get(spec.name, np.zeros_like(ids)).astype(spec.datatype.numpy)
            for spec in self.signature.inputs
        }
        answer = self._engine.predict(inputs)
        embedding = _pooled(answer[self._pool.output], mask, self._pool) if self._pool else next(iter(answer.values()))
        if self._normalize:
            embedding = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
        return {EMBEDDING: embedding.astype(np.float32), TOKEN_COUNT: mask.sum(1, dtype=np.int64)}


def _pooled(states: Array, mask: Array, pool: Pool) -> Array:
    if pool.method == "first":
        first: Array = states[:, 0]
        return first
    weight = mask.astype(states.dtype)
    sums = np.einsum("btd,bt->bd", states, weight)
    mean: Array = sums / np.maximum(weight.sum(1, keepdims=True), 1)
    return mean


def _padding_id(main: Signature, tokenizer: Any, tokenize: Tokenize) -> int:
    """What was verified; else what the tokenizer says of itself."""
    if main.padding is not None and tokenize.ids in main.padding.values:
        return int(main.padding.values[tokenize.ids])
    return int((tokenizer.padding or {}).get("pad_id", 0))


def _graphs(main: Signature, tokenize: Tokenize, pool: Pool | None, *, padding: int) -> dict[str, Signature]:
    """`padding` is the id that fills the end of a short row.

    Raises `KeyError` or `ValueError` where the transforms do not fit `main`.
    """
    inputs = {spec.name: spec for spec in main.inputs}
    ids, mask = inputs[tokenize.ids], inputs[tokenize.mask]
    answer = {spec.name: spec for spec in main.outputs}[pool.output] if pool else main.outputs[0]
    batch = main.batch
    if batch is None:
        raise ValueError("there is no batch axis")
    if any(len(spec.shape) != 2 or spec.datatype.numpy.kind not in "iu" for spec in main.inputs):
        raise ValueError("an input does not take one whole number for each token")
    if len(answer.shape) != (3 if pool else 2) or answer.shape[-1] < 0 or (not pool and len(main.outputs) > 1):
        raise ValueError(f"the output '{answer.name}' is not one vector for each {'token' if pool else 'row'}")
    outputs = (
        TensorSpec(name=EMBEDDING, datatype=DataType.FP32, shape=(-1, answer.shape[-1])),
        TensorSpec(name=TOKEN_COUNT, datatype=DataType.INT64, shape=(-1,)),
    )
    answered = {EMBEDDING: 0, TOKEN_COUNT: 0}
    [length] = [axis for axis in main.dynamic_axes if axis.at.get(ids.name) == 1]
    if length.max < tokenize.max_tokens:
        raise ValueError(f"it was verified for {length.max} tokens, and tokenize makes up to {tokenize.max_tokens}")
    return {
        TOKENS: Signature(
            inputs=(ids, mask),
            outputs=outputs,
            dynamic_axes=(
                msgspec.structs.replace(batch, at={ids.name: 0, mask.name: 0, **answered}),
                msgspec.structs.replace(length, at={ids.name: 1, mask.name: 1}, max=tokenize.max_tokens),
            ),
            padding=Padding(axis=length.name, values={ids.name: padding, mask.name: 0}),
        ),
        TEXT: Signature(
            inputs=(TensorSpec(name=TEXT, datatype=DataType.BYTES, shape=(-1,)),),
            outputs=outputs,
            dynamic_axes=(msgspec.structs.replace(batch, at={TEXT: 0, **answered}),),
        ),
    }


def _open_tokenizer(bundle: Bundle, tokenize: Tokenize) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as missing:
        raise MissingExtra("tokenizers", extra="text") from missing
    try:
        return Tokenizer.from_file(str(bundle.file(tokenize.file)))
    except Exception as error:
        raise BundleCorrupt(f"{bundle.file(tokenize.file)} is no tokenizer: {error}") from error
