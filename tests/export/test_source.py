"""What a model version is asked and judged by."""

import numpy as np

from seatrial_export.source import _from_dataset
from seatrial_training.data import About, Dataset, Split


def texts(*, length: int, rows: int = 4) -> Split:
    ids = np.arange(1, rows * length + 1).reshape(rows, length)
    return Split(inputs={"token_ids": ids}, labels=np.zeros(rows, np.int64))


def test_texts_of_validation_and_test_judge_together_though_one_has_longer_ones() -> None:
    """As CLINC150's: each split is as long as its longest text."""
    dataset = Dataset(
        name="texts",
        train=texts(length=9),
        validation=texts(length=5),
        test=texts(length=7),
        labels=("only",),
        digest="",
        about=About(title="", source="", licence="", preparation=""),
    )
    found = _from_dataset(dataset, rows=4).held_out
    assert found is not None
    assert found.inputs["token_ids"].shape == (8, 7)
    assert found.inputs["token_ids"][3].tolist() == [16, 17, 18, 19, 20, 0, 0]
    assert (found.inputs["token_ids"][4:] == dataset.test.inputs["token_ids"]).all()
