"""Handwritten digits of 8x8 pixels that come with scikit-learn: no file, no network."""

import hashlib

import numpy as np

from seatrial.settings import Settings
from seatrial_training.data import About, Dataset, Split
from seatrial_training.data.split import stratified

ABOUT = About(
    title="Optical recognition of handwritten digits: 1,797 images of 8x8 pixels, from 43 people",
    source="scikit-learn's `load_digits`: the test set of Alpaydin and Kaynak, UCI Machine Learning Repository (1998)",
    licence="CC BY 4.0",
    preparation="grey values from 0 to 16, divided by 8 and moved by -1, so that they lie between -1 and 1",
)
PARTS = (0.7, 0.1, 0.2)
"""Of every class: for training, validation and test."""


def load(settings: Settings) -> Dataset:  # noqa: ARG001 - as all data sets are loaded
    from sklearn.datasets import load_digits

    raw = load_digits()
    images, labels = raw.images.astype(np.float32), raw.target.astype(np.int64)
    pixels = (images / 8 - 1)[:, None]
    parts = stratified(labels, PARTS)
    train, validation, test = (Split(inputs={"pixels": pixels[rows]}, labels=labels[rows]) for rows in parts)
    return Dataset(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        labels=tuple(str(digit) for digit in range(10)),
        digest=hashlib.sha256(b"digits 1" + images.tobytes() + labels.tobytes()).hexdigest(),
        about=ABOUT,
    )
