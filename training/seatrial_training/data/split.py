"""Sharing rows out between training, validation and test."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seatrial_training.data import Labels


def stratified(labels: Labels, parts: Sequence[float]) -> list[NDArray[np.intp]]:
    """The rows of each part, in an order that is random but always the same.

    `parts` are proportions that add up to 1; every class is shared out in these.
    """
    generator = np.random.default_rng(0)
    pieces: list[list[NDArray[np.intp]]] = [[] for _ in parts]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        edges = np.round(np.cumsum(parts[:-1]) * len(rows)).astype(np.intp)
        for piece, of_this_class in zip(pieces, np.split(rows, edges), strict=True):
            piece.append(of_this_class)
    return [generator.permutation(np.concatenate(piece)) for piece in pieces]
