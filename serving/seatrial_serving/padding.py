"""Rows of different lengths in one batch: how long they are, how the short ones are made longer, how answers are cut back.

Knows what a signature says of padding. Knows no queue: which lengths come together is `batching`'s business.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from seatrial.errors import EngineFailed
from seatrial.tensors import Array, Signature
from seatrial_serving.engines import TEXT

BYTES_A_TOKEN = 4
"""How long a text will be is guessed from its bytes; its tokens are counted in the engine process only."""


class Pad(NamedTuple):
    """What makes the short ones of several pieces as long as the longest, along `axis`."""

    axis: int
    value: float


def pads(signature: Signature) -> list[Pad | None]:
    """For each input of `signature`."""
    axis, padding = signature.sequence, signature.padding
    if axis is None or padding is None:
        return [None] * len(signature.inputs)
    return [
        Pad(axis.at[spec.name], padding.values[spec.name]) if spec.name in axis.at else None
        for spec in signature.inputs
    ]


def likeness(graph: str, signature: Signature, inputs: Sequence[Array]) -> tuple[Hashable, int]:
    """What requests must have in common to share a batch, and how long this one's rows are.

    The length is 0 where it does not matter, or where requests share a batch only if theirs is the same.
    """
    axis = signature.sequence
    if axis is None:
        return (graph, *[array.shape[1:] for array in inputs]), _guessed_length(inputs[0]) if graph == TEXT else 0
    length = 0
    shapes = []
    for spec, array in zip(signature.inputs, inputs, strict=True):
        shape = list(array.shape)
        if spec.name in axis.at:
            length = shape[axis.at[spec.name]]
            shape[axis.at[spec.name]] = -1
        shapes.append(tuple(shape[1:]))
    return (graph, *shapes), length


def _guessed_length(texts: Array) -> int:
    return 1 + max(map(len, texts), default=0) // BYTES_A_TOKEN


def together(pieces: Sequence[Array], pad: Pad | None) -> Array:
    """One array of all rows; the piece itself where there is only one."""
    if len(pieces) == 1:
        return pieces[0]
    if pad is None:
        return np.concatenate(pieces)
    whole = np.empty(shape_together(pieces, pad), pieces[0].dtype)
    lay_together(whole, pieces, pad)
    return whole


def shape_together(pieces: Sequence[Array], pad: Pad | None) -> tuple[int, ...]:
    """The shape of `pieces` put together along the first axis."""
    first = pieces[0].shape
    if len(pieces) == 1:
        return first
    shape = [sum([piece.shape[0] for piece in pieces]), *first[1:]]
    if pad is not None:
        shape[pad.axis] = max([piece.shape[pad.axis] for piece in pieces])
    return tuple(shape)


def lay_together(whole: Array, pieces: Sequence[Array], pad: Pad) -> None:
    """Write `pieces` into `whole`, which has their `shape_together`, and the padding beside them."""
    whole[...] = pad.value
    start = 0
    for piece in pieces:
        whole[_place(start, piece.shape[0], pad.axis, piece.shape[pad.axis])] = piece
        start += piece.shape[0]


def cut_back(whole: Array, *, axis: int, lengths: Sequence[tuple[int, int]], name: str) -> list[Array]:
    """The inverse of `lay_together`, as copies, for pieces of which the number of rows and the length are known.

    Raises `EngineFailed` where `whole`, which messages call `name`, is not as long as the longest of them.
    """
    longest = max([length for _, length in lengths])
    if whole.shape[axis] != longest:
        raise EngineFailed(f"output '{name}' is {whole.shape[axis]} long for a batch that is {longest} long")
    pieces = []
    start = 0
    for rows, length in lengths:
        pieces.append(whole[_place(start, rows, axis, length)].copy())
        start += rows
    return pieces


def _place(start: int, rows: int, axis: int, length: int) -> tuple[slice, ...]:
    """So many rows from `start` on, and of each the first `length` places along `axis`."""
    return slice(start, start + rows), *[slice(None)] * (axis - 1), slice(length)
