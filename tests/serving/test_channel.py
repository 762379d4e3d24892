import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from seatrial.errors import EngineFailed, MalformedRequest
from seatrial.tensors import DataType
from seatrial_serving import channel
from seatrial_serving.channel import Laid, Part, Slot
from seatrial_serving.padding import Pad, together


@pytest.fixture
def slot() -> Iterator[Slot]:
    made = Slot.create(100)
    yield made
    made.close()


@st.composite
def batches(draw: st.DrawFn) -> Laid:
    """Some requests' rows of one tensor: the same type and trailing shape, differing numbers of rows."""
    datatype = draw(st.sampled_from(list(DataType)))
    trailing = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    elements = st.binary(max_size=9) if datatype is DataType.BYTES else None
    dtype = object if datatype is DataType.BYTES else datatype.numpy
    rows = st.integers(0, 3).flatmap(lambda n: hnp.arrays(dtype, (n, *trailing), elements=elements))
    return datatype, draw(st.lists(rows, min_size=1, max_size=4)), None


@given(st.lists(batches(), min_size=1, max_size=4))
def test_what_is_placed_by_one_process_is_read_by_another(tensors: list[Laid]) -> None:
    ours = Slot.create(0)
    theirs = Slot(os.dup(ours.descriptor))
    try:
        parts = ours.place(tensors)
        for part, (datatype, pieces, _) in zip(parts, tensors, strict=True):
            read = theirs.read(part, datatype, name="t")
            whole = np.concatenate(pieces)
            assert read.shape == whole.shape
            assert np.array_equal(read, whole, equal_nan=whole.dtype.kind == "f")
            assert part.offset % channel.ALIGNMENT == 0
    finally:
        ours.close()
        theirs.close()


@given(
    st.sampled_from([np.bool_, np.int64, np.float16]),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_short_pieces_are_padded_where_they_are_laid(kind: type[np.generic], sizes: list[tuple[int, int]]) -> None:
    pieces = [np.ones((rows, 2, length), kind) for rows, length in sizes]
    datatype, pad = DataType.of(pieces[0].dtype), Pad(axis=2, value=0)
    slot = Slot.create(0)
    before, part, after = slot.place(
        [(datatype, pieces[:1], None), (datatype, pieces, pad), (datatype, pieces[:1], None)]
    )
    assert slot.read(part, datatype, name="t").tolist() == together(pieces, pad).tolist()
    assert slot.read(before, datatype, name="t").all()
    assert slot.read(after, datatype, name="t").all()
    slot.close()


def test_either_side_may_grow_it_and_arrays_in_it_stay_valid(slot: Slot) -> None:
    theirs = Slot(os.dup(slot.descriptor))
    [part] = slot.place([(DataType.INT32, [np.arange(10, dtype=np.int32)], None)])
    early = theirs.read(part, DataType.INT32, name="early")
    big = np.arange(100_000, dtype=np.int64)
    [big_part] = theirs.place([(DataType.INT64, [big], None)])
    assert slot.read(big_part, DataType.INT64, name="big").tolist() == big.tolist()
    assert early.shape == (10,)
    theirs.close()


def test_nobody_can_shrink_it(slot: Slot) -> None:
    assert fcntl.fcntl(slot.descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(slot.descriptor, 1)


@pytest.mark.parametrize(
    "part",
    [Part(0, 10**9, (10**9,)), Part(10**9, 1, (1,)), Part(-8, 8, (8,)), Part(0, -1, (0,)), Part(4000, 200, (200,))],
)
def test_a_claim_that_leaves_the_memory_is_refused(slot: Slot, part: Part) -> None:
    with pytest.raises(EngineFailed, match="is said to"):
        slot.read(part, DataType.UINT8, name="y")


def test_a_claim_that_does_not_add_up_is_refused(slot: Slot) -> None:
    with pytest.raises(MalformedRequest, match="takes 40 bytes, got 8"):
        slot.read(Part(0, 8, (10,)), DataType.FP32, name="y")


@pytest.mark.parametrize("nonsense", [b"", b"\0", b"\xc1", channel.encode(["Nobody", 1]), channel.encode(["Ran", "x"])])
def test_nonsense_from_an_engine_is_an_error_of_ours(nonsense: bytes) -> None:
    with pytest.raises(EngineFailed, match="nonsense"):
        channel.decode_from_engine(nonsense)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_closing_gives_the_memory_back() -> None:
    before = open_descriptors()
    slots = [Slot.create(1000) for _ in range(10)]
    for each in slots:
        each.close()
        each.close()
    assert open_descriptors() == before
