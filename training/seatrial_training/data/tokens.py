"""From texts to rows of token ids, by a tokenizer that is data: the JSON of a `tokenizers` tokenizer.

The JSON says everything, how to cut, where to end and what to pad with, so whoever serves the model needs it and no code.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import BpeTrainer

from seatrial_training.data import PADDING_ID

PADDING, UNKNOWN = "[PAD]", "[UNK]"
"""Learned first and in this order, which gives them `PADDING_ID` and `UNKNOWN_ID`."""


def trained_tokenizer(texts: Iterable[str], *, vocabulary: int, max_tokens: int) -> str:
    """The JSON of a tokenizer with at most `vocabulary` pieces, learned from `texts`.

    NOTE: byte-pair encoding, because the library learns it alike every time; its WordPiece differs from run to run.
    """
    tokenizer = Tokenizer(BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = [PADDING, UNKNOWN]
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False))
    return _bounded(tokenizer, max_tokens)


def published_tokenizer(content: str, *, max_tokens: int) -> str:
    """The JSON of the tokenizer that `content` is the JSON of, but for where it cuts and how it pads."""
    return _bounded(Tokenizer.from_str(content), max_tokens)


def _bounded(tokenizer: Tokenizer, max_tokens: int) -> str:
    tokenizer.enable_truncation(max_length=max_tokens)
    tokenizer.enable_padding(pad_id=PADDING_ID, pad_token=PADDING)
    return str(tokenizer.to_str())


def encode(texts: Sequence[str], tokenizer: str) -> NDArray[np.int64]:
    """One row of ids for each text, all as long as the longest."""
    encodings = Tokenizer.from_str(tokenizer).encode_batch(list(texts))
    return np.array([encoding.ids for encoding in encodings], np.int64)
