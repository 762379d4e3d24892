"""Data sets: small ones that the test makes, the real ones where they are, and files that nobody should train on."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from seatrial.errors import DataMissing, InvalidRecipe
from seatrial.settings import Settings
from seatrial_training.data import DATASETS, PADDING_ID, UNKNOWN_ID, Dataset, Split, cifar10, clinc150, load_dataset
from seatrial_training.data.files import DataFile, read
from seatrial_training.data.split import stratified
from seatrial_training.data.tokens import encode, trained_tokenizer

CONTENT = b"what it should hold"
FILE = DataFile(name="some.bin", sha256=hashlib.sha256(CONTENT).hexdigest(), origin="the file of example.org/some")
ON_THIS_MACHINE = os.environ.get("SEATRIAL_DATA")
"""Read here because no test sees the variable: `tests/conftest.py` takes it away."""


def real_data(name: str) -> Settings:
    """Settings that point at the folder with the file `name`; skips where it is absent, in CI too: it is not ours to give."""
    if ON_THIS_MACHINE is None or not (Path(ON_THIS_MACHINE) / name).exists():
        pytest.skip(f"SEATRIAL_DATA names no folder with {name}")
    return Settings(data=Path(ON_THIS_MACHINE))


# Files


def test_a_file_that_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(CONTENT)
    assert read(FILE, tmp_path) == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"\n", b"", CONTENT.replace(b"s", b"S")])
def test_a_truncated_or_changed_file_is_refused_and_left_for_its_owner(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE.name).write_bytes(content)
    with pytest.raises(DataMissing) as refused:
        read(FILE, tmp_path)
    assert f"it has {len(content):,} bytes and SHA-256 {hashlib.sha256(content).hexdigest()}" in str(refused.value)
    assert f"expected {FILE.sha256}" in str(refused.value)
    assert (tmp_path / FILE.name).read_bytes() == content


def test_an_absent_file_without_an_address_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as refused:
        read(FILE, tmp_path)
    says = str(refused.value)
    assert f"put the file of example.org/some (SHA-256 {FILE.sha256}) at {tmp_path / 'some.bin'}" in says
    assert "let SEATRIAL_DATA name the folder that holds some.bin" in says


def test_an_absent_file_is_fetched_once(tmp_path: Path) -> None:
    with publishing(CONTENT) as (address, asked):
        published = dataclasses.replace(FILE, home=f"{address}/some.bin")
        assert read(published, tmp_path / "data") == CONTENT
        assert read(published, tmp_path / "data") == CONTENT
    assert asked == ["/some.bin"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["some.bin"]


def test_what_is_fetched_is_checked_before_it_is_kept(tmp_path: Path) -> None:
    with publishing(b"an error page") as (address, _), pytest.raises(DataMissing, match="gives now has SHA-256"):
        read(dataclasses.replace(FILE, home=f"{address}/some.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    with publishing(CONTENT) as (address, _):
        pass
    with pytest.raises(DataMissing, match=r"cannot be fetched from .* put the file of example\.org/some"):
        read(dataclasses.replace(FILE, home=f"{address}/some.bin"), tmp_path)


@contextmanager
def publishing(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A web server that gives `content` at every path, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


# Splits


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200))
def test_every_row_goes_to_one_part(labels: list[int]) -> None:
    parts = stratified(np.array(labels), (0.7, 0.1, 0.2))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_every_class_is_shared_out_alike_and_always_the_same() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    train, rest = stratified(labels, (0.9, 0.1))
    assert np.bincount(labels[train]).tolist() == [90, 45, 9]
    assert np.bincount(labels[rest]).tolist() == [10, 5, 1]
    assert train.tolist() == stratified(labels, (0.9, 0.1))[0].tolist()


def test_rows_are_taken_with_their_labels() -> None:
    split = Split(inputs={"x": np.arange(8).reshape(4, 2)}, labels=np.array([4, 5, 6, 7]))
    taken = split.take(np.array([2, 0]))
    assert taken.inputs["x"].tolist() == [[4, 5], [0, 1]]
    assert taken.labels.tolist() == [6, 4]


# Digits


def test_digits() -> None:
    digits = load_dataset("digits", Settings())
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [1258, 180, 359]
    assert digits.labels == tuple("0123456789")
    pixels = digits.train.inputs["pixels"]
    assert (pixels.shape[1:], pixels.min(), pixels.max()) == ((1, 8, 8), -1, 1)
    assert pixels.dtype == np.float32
    assert digits.digest == load_dataset("digits", Settings()).digest


def test_no_row_of_digits_is_in_two_splits() -> None:
    digits = load_dataset("digits", Settings())
    rows = [
        image.tobytes() for split in (digits.train, digits.validation, digits.test) for image in split.inputs["pixels"]
    ]
    assert len(set(rows)) == len(rows) == 1797


# CIFAR-10


def photographs(colours: Sequence[tuple[int, int, int]]) -> bytes:
    """A Parquet file as CIFAR-10's, of images of one colour each, whose class is their number modulo ten."""
    return parquet([jpeg(Image.new("RGB", (32, 32), colour)) for colour in colours])


def parquet(files: Sequence[bytes]) -> bytes:
    rows = {
        "img": [{"bytes": file, "path": f"{number}.jpg"} for number, file in enumerate(files)],
        "label": pa.array([number % 10 for number in range(len(files))], pa.int64()),
    }
    written = io.BytesIO()
    pq.write_table(pa.table(rows), written)
    return written.getvalue()


def jpeg(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=100, subsampling=0)
    return written.getvalue()


def test_photographs_become_normalised_pixels_channels_first() -> None:
    small = cifar10.from_parquet(photographs([(200, 100, 0)] * 200), photographs([(0, 0, 255)] * 10))
    expected = [(200 / 255 - 0.4914) / 0.2470, (100 / 255 - 0.4822) / 0.2435, -0.4465 / 0.2616]
    pixels = small.train.inputs["pixels"]
    assert pixels.shape == (190, 3, 32, 32)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels.mean(axis=(0, 2, 3)), expected, atol=0.02)
    assert np.allclose(small.test.inputs["pixels"][0, 2], (1 - 0.4465) / 0.2616, atol=0.02)


def test_the_test_images_choose_nothing() -> None:
    training = photographs([(number, 0, 0) for number in range(200)])
    one, other = (cifar10.from_parquet(training, photographs([(0, blue, 0)] * 10)) for blue in (0, 250))
    assert np.array_equal(one.validation.inputs["pixels"], other.validation.inputs["pixels"])
    assert np.bincount(one.validation.labels).tolist() == [1] * 10
    assert len(one.train) + len(one.validation) == 200
    assert one.digest != other.digest


@pytest.mark.parametrize("file", [cifar10.TRAIN, cifar10.TEST])
def test_photographs_that_are_not_cifar10_are_refused(tmp_path: Path, file: DataFile) -> None:
    (tmp_path / file.name).write_bytes(photographs([(1, 2, 3)] * 10))
    with pytest.raises(DataMissing, match="is not the file that recipes were measured on"):
        read(file, tmp_path)


def test_cifar10_that_is_absent_says_which_columns_to_make(tmp_path: Path) -> None:
    with pytest.raises(
        DataMissing, match=r"cifar10-train\.parquet: put the 50,000 training images .* `img` .* `label`"
    ):
        load_dataset("cifar10", Settings(data=tmp_path))


@pytest.mark.slow
def test_the_real_cifar10() -> None:
    real = load_dataset("cifar10", real_data("cifar10-train.parquet"))
    assert [len(split) for split in (real.train, real.validation, real.test)] == [47_500, 2_500, 10_000]
    assert all(
        set(np.bincount(split.labels)) == {len(split) // 10} for split in (real.train, real.validation, real.test)
    )
    pixels = real.train.inputs["pixels"]
    assert np.allclose(pixels.mean(axis=(0, 2, 3)), 0, atol=0.01)
    assert np.allclose(pixels.std(axis=(0, 2, 3)), 1, atol=0.01)


# CLINC150


REQUESTS = {
    "train": [
        ["Set an alarm, please", "alarm"],
        ["set the alarm", "alarm"],
        ["play a song", "music"],
        ["a song!", "music"],
    ],
    "val": [["set a song alarm", "alarm"]],
    "test": [["PLAY the song", "music"], ["an alärm", "alarm"]],
    "oos_train": [["what is the meaning of life", "oos"]],
}


def requests(**change: object) -> Dataset:
    return clinc150.from_json(json.dumps(REQUESTS | change).encode(), vocabulary=60)


def test_requests_become_rows_of_ids_padded_at_the_end() -> None:
    small = requests()
    assert small.labels == ("alarm", "music")
    assert [split.labels.tolist() for split in (small.train, small.validation, small.test)] == [
        [0, 0, 1, 1],
        [0],
        [1, 0],
    ]
    ids = small.train.inputs["token_ids"]
    assert ids.dtype == np.int64
    assert (ids[0] != PADDING_ID).all()
    assert ids[1].tolist() == [*ids[1][ids[1] != PADDING_ID], *[PADDING_ID] * (ids[1] == PADDING_ID).sum()]


def test_case_and_accents_do_not_matter() -> None:
    small = requests()
    assert small.tokenizer is not None
    assert encode(["ALÄRM"], small.tokenizer).tolist() == encode(["alarm"], small.tokenizer).tolist()


def test_only_training_texts_teach_the_tokenizer() -> None:
    assert requests().tokenizer == requests(val=[["zzz quux", "alarm"]], test=[["xyzzy", "music"]]).tokenizer


def test_an_intent_that_no_training_text_has_is_refused() -> None:
    with pytest.raises(DataMissing, match="has intents that no training text has: weather"):
        requests(test=[["is it raining", "weather"]])


def test_clinc150_that_is_tampered_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clinc150.json").write_text(json.dumps(REQUESTS))
    with pytest.raises(DataMissing, match=r"put data/data_full\.json of github\.com/clinc/oos-eval"):
        load_dataset("clinc150", Settings(data=tmp_path))


def test_the_real_clinc150() -> None:
    real = load_dataset("clinc150", real_data("clinc150.json"))
    assert [len(split) for split in (real.train, real.validation, real.test)] == [15_000, 3_000, 4_500]
    assert len(real.labels) == 150
    assert real.tokenizer is not None
    assert Tokenizer.from_str(real.tokenizer).get_vocab_size() == clinc150.VOCABULARY
    assert real.train.inputs["token_ids"].max() == clinc150.VOCABULARY - 1
    assert real.train.inputs["token_ids"].shape[1] == clinc150.MAX_TOKENS


# Tokenizers


TEXTS = [text for text, _ in REQUESTS["train"]]


def test_what_the_tokenizer_does_is_all_in_its_json() -> None:
    served = Tokenizer.from_str(trained_tokenizer(TEXTS, vocabulary=60, max_tokens=4))
    long, short = served.encode_batch(["set the alarm song please", "song"])
    assert len(long.ids) == len(short.ids) == 4
    assert short.ids[-1] == PADDING_ID
    assert short.ids[0] not in (PADDING_ID, UNKNOWN_ID)
    assert served.encode("ж").ids == [UNKNOWN_ID]


def test_a_tokenizer_is_learned_alike_in_every_process() -> None:
    texts = [f"{word} {other}" for word in ("book", "cook", "look", "nook") for other in ("boots", "roots", "hoots")]
    program = (
        "import sys, json; from seatrial_training.data.tokens import trained_tokenizer as train; "
        "print(train(json.loads(sys.argv[1]), vocabulary=30, max_tokens=8))"
    )
    learned = {
        subprocess.run(
            [sys.executable, "-c", program, json.dumps(texts)],
            check=True, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(2)
    }  # fmt: skip
    assert learned == {trained_tokenizer(texts, vocabulary=30, max_tokens=8) + "\n"}


# The list


def test_an_unknown_data_set() -> None:
    with pytest.raises(InvalidRecipe, match="there is no data set 'cifar-10'; did you mean 'cifar10'"):
        load_dataset("cifar-10", Settings())


def test_the_recipes_name_data_sets_that_exist() -> None:
    from seatrial_training.recipe import built_in_recipes

    assert {recipe.data for recipe in built_in_recipes().values()} == set(DATASETS)
