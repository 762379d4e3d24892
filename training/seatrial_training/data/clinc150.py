"""CLINC150: short requests to an assistant, each of one of 150 intents.

Only what is in scope: a classifier of 150 intents has no answer for the rest, and none of it is used here.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from seatrial.errors import DataMissing
from seatrial.settings import Settings
from seatrial_training.data import About, Dataset, Split
from seatrial_training.data.files import DataFile, read
from seatrial_training.data.tokens import encode, trained_tokenizer

FILE = DataFile(
    name="clinc150.json",
    sha256="36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    origin="data/data_full.json of github.com/clinc/oos-eval",
    home="https://raw.githubusercontent.com/clinc/oos-eval/master/data/data_full.json",
)
VOCABULARY = 4000
MAX_TOKENS = 32
"""One request in ten thousand has more; the rest of it is not read."""
ABOUT = About(
    title="CLINC150: 22,500 short requests to an assistant, in English, in 150 intents, without those out of scope",
    source="Larson et al., An evaluation dataset for intent classification and out-of-scope prediction (2019)",
    licence="CC BY 3.0",
    preparation="lower case without accents, cut at spaces and punctuation, then into the pieces of a byte-pair encoding "
    f"of {VOCABULARY} pieces that was learned from the training texts; at most {MAX_TOKENS}, padded with 0",
)

Row = Sequence[str]
"""A text and its intent."""


def load(settings: Settings) -> Dataset:
    content = read(FILE, settings.data_folder)
    return from_json(content, vocabulary=VOCABULARY)


def from_json(content: bytes, *, vocabulary: int) -> Dataset:
    """The data set of this file, with its own split. `vocabulary` is the most pieces that the tokenizer may have."""
    texts = [text for text, _ in json.loads(content)["train"]]
    tokenizer = trained_tokenizer(texts, vocabulary=vocabulary, max_tokens=MAX_TOKENS)
    return tokenized(content, tokenizer, name="clinc150", about=ABOUT)


def tokenized(content: bytes, tokenizer: str, *, name: str, about: About) -> Dataset:
    """The data set of this file, with its own split, in the pieces of `tokenizer`."""
    parts: dict[str, list[Row]] = json.loads(content)
    intents = sorted({intent for _, intent in parts["train"]})
    train, validation, test = (_split(parts[part], intents, tokenizer) for part in ("train", "val", "test"))
    return Dataset(
        name=name,
        train=train,
        validation=validation,
        test=test,
        labels=tuple(intents),
        digest=hashlib.sha256(b"clinc150 1" + content + tokenizer.encode()).hexdigest(),
        about=about,
        tokenizer=tokenizer,
    )


def _split(rows: Sequence[Row], intents: Sequence[str], tokenizer: str) -> Split:
    numbers = {intent: number for number, intent in enumerate(intents)}
    if unknown := {intent for _, intent in rows} - numbers.keys():
        raise DataMissing(f"{FILE.name} has intents that no training text has: {', '.join(sorted(unknown))}")
    labels = np.array([numbers[intent] for _, intent in rows], np.int64)
    return Split(inputs={"token_ids": encode([text for text, _ in rows], tokenizer)}, labels=labels)
