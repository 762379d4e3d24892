"""The best classes in place of scores: Triton's classification extension.

A row of scores becomes `value:index` for each of the highest, or `value:index:label` where the model has labels.
"""

from collections.abc import Sequence

import numpy as np

from seatrial.errors import WrongInput
from seatrial.protocol import Tensor
from seatrial.tensors import DataType


def classify(scores: Tensor, classes: int, *, labels: Sequence[str], batched: bool) -> Tensor:
    """The `classes` highest of each row of `scores`, or of all of it where it is not `batched`; equals in their order, and
    what is not a number last.

    `labels` are used where there is one for each class. Raises `WrongInput` for what has no order.
    """
    name, datatype, array = scores
    if datatype is DataType.BF16 or array.dtype.kind not in "iuf":
        raise WrongInput(f"output '{name}' is {datatype}, which cannot be ranked; ask for it without 'classification'")
    rows = array.reshape(len(array) if batched else 1, -1)
    named = labels if len(labels) == rows.shape[1] else ()
    # Turned round, because the stable sort is upwards; ~ and not - for whole numbers, because the smallest has no opposite.
    turned = -rows if rows.dtype.kind == "f" else ~rows
    best = np.argsort(turned, axis=1, kind="stable")[:, :classes]
    texts = np.empty(best.shape, dtype=object)
    for at, index in np.ndenumerate(best):
        texts[at] = _text(rows[at[0], index], int(index), named).encode()
    return Tensor(name, DataType.BYTES, texts if batched else texts[0])


def _text(value: np.generic, index: int, labels: Sequence[str]) -> str:
    number = f"{value:f}" if isinstance(value, np.floating) else str(value)
    return f"{number}:{index}:{labels[index]}" if labels else f"{number}:{index}"
