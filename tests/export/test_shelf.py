"""What conversions made is made once, until something that decides about it changes."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from seatrial.errors import ConversionFailed
from seatrial.files import kept_in, tree_bytes
from seatrial_export import convert, quantize, sensitivity
from seatrial_export.child import ANSWER, Limits
from seatrial_export.samples import write_arrays
from seatrial_export.shelf import REMEMBERED, Shelf
from tests.export.models import some_rows
from tests.serving.models import linear_onnx

LIMITS = Limits(time_s=60, memory_bytes=2**31, threads=1)
NO_TIME = Limits(time_s=0, memory_bytes=2**31, threads=1)
"""Under which no child does its job."""


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(place=tmp_path / "shelf", most_bytes=10**6, known={})


@pytest.fixture
def run(shelf: Shelf, tmp_path: Path) -> Callable[..., convert.Converted]:
    job = convert.Job(
        program=str(linear_onnx(tmp_path / "linear.onnx")), inputs=("x",), outputs=("y",), axes={}, smallest={"batch": 1}
    )  # fmt: skip

    def run(name: str, limits: Limits, *, on: Shelf = shelf, **changes: object) -> convert.Converted:
        return on.run(
            convert.__name__, msgspec.structs.replace(job, **changes), folder=tmp_path / name, answer=convert.Converted,
            limits=limits, given_up=threading.Event(),
        )  # fmt: skip

    return run


def test_what_was_made_is_not_made_again_until_something_else_is_asked(
    run: Callable[..., convert.Converted], shelf: Shelf, tmp_path: Path
) -> None:
    made = run("first", LIMITS)
    assert made.operators == ("Gemm",)
    assert run("second", NO_TIME) == made
    first, second = ((tmp_path / name / convert.MODEL).read_bytes() for name in ("first", "second"))
    assert first == second

    def is_made_anew(name: str, **changes: object) -> None:
        with pytest.raises(ConversionFailed, match="did not finish within 0 s"):
            run(name, NO_TIME, **changes)

    is_made_anew("other-job", smallest={"batch": 2})
    (tmp_path / "with-a-file").mkdir()
    (tmp_path / "with-a-file" / "calibration.npz").write_bytes(b"rows")
    is_made_anew("with-a-file")
    linear_onnx(tmp_path / "linear.onnx", scale=2)  # at the same path
    is_made_anew("other-content")
    assert len(kept_in(shelf.place)) == 1, "what failed is not kept"
    is_made_anew("nothing-kept", on=Shelf(place=shelf.place, most_bytes=0, known={}))


def test_what_was_broken_is_made_anew_and_kept_again(run: Callable[..., convert.Converted], shelf: Shelf) -> None:
    made = run("first", LIMITS)
    [kept] = kept_in(shelf.place)
    (kept / ANSWER).write_text('{"answer": {"oper')
    assert run("second", LIMITS) == made
    assert run("third", NO_TIME) == made


@pytest.mark.slow
def test_what_was_cut_short_is_not_kept_but_its_notes_are(shelf: Shelf, tmp_path: Path) -> None:
    """How long a child may take is no part of what is asked."""
    write_arrays(tmp_path / "rows.npz", some_rows(16))
    how = quantize.Job(
        model=str(linear_onnx(tmp_path / "linear.onnx")), mode="static", weight_bits=8, smallest={"batch": 1},
        calibration=str(tmp_path / "rows.npz"),
    )  # fmt: skip
    notes = shelf.notes(sensitivity.__name__, how)

    def ask(name: str, limits: Limits, for_s: float) -> sensitivity.Measured:
        return shelf.run(
            sensitivity.__name__, sensitivity.Job(quantization=how, notes=str(notes), for_s=for_s),
            folder=tmp_path / name, answer=sensitivity.Measured, limits=limits, given_up=threading.Event(),
        )  # fmt: skip

    assert not ask("first", LIMITS, 0).whole
    assert kept_in(shelf.place) == [notes.parent]
    found = ask("second", LIMITS, 60)
    assert found.whole
    assert list(sensitivity.read_notes(notes).values()) == list(found.layers)
    assert ask("third", NO_TIME, 5) == found


def test_where_there_is_no_room_what_was_not_wanted_for_longest_goes(shelf: Shelf, tmp_path: Path) -> None:
    small = Shelf(place=shelf.place, most_bytes=250, known={})
    for number, name in enumerate(("oldest", "old", "new")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model").write_bytes(b"x" * 100)
        small._keep(folder, small.place / name)
        if (small.place / name).exists():
            os.utime(small.place / name, (number, number))
    assert {path.name for path in kept_in(small.place)} == {"old", "new"}
    (tmp_path / "new" / "model").write_bytes(b"x" * 251)
    small._keep(tmp_path / "new", small.place / "huge")
    assert {path.name for path in kept_in(small.place)} == {"old", "new"}
    assert tree_bytes(small.place) == 200


def test_a_place_whose_digest_is_known_is_not_read(shelf: Shelf, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    unread = Shelf(place=shelf.place, most_bytes=1, known={str(home): "sha256:1"})
    asked = {"step": "prune", "home": str(home)}
    folder = tmp_path / "folder"
    assert unread._content(asked, folder) == {"step": "prune", "home": "sha256:1"}
    before = shelf._content(asked, folder)
    (home / "mlflow.db").write_text("changed")
    assert shelf._content(asked, folder) != before
    assert shelf._content(str(folder / "model.pt2"), folder) == "model.pt2"


class Value(msgspec.Struct, frozen=True):
    number: float


def test_what_was_remembered_is_recalled_under_the_same_key_and_while_it_is_whole(shelf: Shelf) -> None:
    key = shelf.key("proof", of="bundle", threads=1)
    assert shelf.recall(key, Value) is None
    shelf.remember(key, Value(0.5))
    assert shelf.recall(key, Value) == Value(0.5)
    assert shelf.recall(shelf.key("proof", of="bundle", threads=2), Value) is None
    (shelf.place / key / REMEMBERED).write_text('{"number": "many"}')
    assert shelf.recall(key, Value) is None
    assert kept_in(shelf.place) == []
    Shelf(place=shelf.place, most_bytes=0, known={}).remember(key, Value(0.5))
    assert kept_in(shelf.place) == []
