"""Rows that are texts, as ids of tokens: how they are spoiled, and what is left of one when a token is hidden."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from seatrial.tensors import Array, Signature
from seatrial_export.samples import Inputs
from seatrial_training.data import PADDING_ID
from seatrial_training.data.tokens import UNKNOWN

SHARES = (0.1, 0.2, 0.4)
"""Of the tokens of a text that are spoiled."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The input `name`. `special` are ids of the tokenizer's own marks, which nothing is done to."""

    name: str
    unknown: int
    special: tuple[int, ...]
    tokenizer: Tokenizer

    @staticmethod
    def of(signature: Signature, tokenizer: Path | None) -> "Texts | None":
        """None where rows are not one text each, or nobody knows what its ids mean."""
        [first, *others] = signature.inputs
        if tokenizer is None or others or first.datatype.numpy.kind != "i" or len(first.shape) != 2:
            return None
        opened = Tokenizer.from_file(str(tokenizer))
        unknown = opened.token_to_id(UNKNOWN)
        if unknown is None:
            return None
        special = tuple(number for number, token in opened.get_added_tokens_decoder().items() if token.special)
        return Texts(name=first.name, unknown=unknown, special=special, tokenizer=opened)

    def corrupted(self, rows: Inputs) -> Iterator[tuple[str, float, Inputs]]:
        """What was done to the rows, to which part of their tokens, and what became of them."""
        ids_BT = rows[self.name]
        for share in SHARES:
            yield "dropped tokens", share, {self.name: self._without(ids_BT, self._some(ids_BT, share))}
        for share in SHARES:
            yield "unknown tokens", share, {self.name: np.where(self._some(ids_BT, share), self.unknown, ids_BT)}

    def hidden(self, row: Inputs) -> Inputs:
        """The row once for each of its tokens, with that one unknown."""
        ids_T = row[self.name][0]
        places = self.places(row)
        hidden = np.tile(ids_T, (len(places), 1))
        hidden[np.arange(len(places)), places] = self.unknown
        return {self.name: hidden}

    def places(self, row: Inputs) -> NDArray[np.intp]:
        """Where the row has a token that says something."""
        return np.flatnonzero(self._ordinary(row[self.name])[0])

    def words(self, row: Inputs) -> tuple[str, ...]:
        return tuple(self.tokenizer.id_to_token(int(token)) or "" for token in row[self.name][0, self.places(row)])

    def _ordinary(self, ids_BT: Array) -> NDArray[np.bool_]:
        return ~np.isin(ids_BT, (PADDING_ID, *self.special))

    def _some(self, ids_BT: Array, share: float) -> NDArray[np.bool_]:
        """The same ones in every row of the same tokens; those of a smaller share are among those of a larger."""
        drawn = np.random.default_rng(0).random(ids_BT.shape)
        return self._ordinary(ids_BT) & (drawn < share)

    def _without(self, ids_BT: Array, gone: NDArray[np.bool_]) -> Array:
        """What is left moves up."""
        order = np.argsort(gone, axis=1, kind="stable")
        return np.take_along_axis(np.where(gone, PADDING_ID, ids_BT), order, axis=1)
