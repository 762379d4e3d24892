"""What header blocks say, as HPACK writes them: `0x40` adds a header to the table, `0xbe` is the one that was added last."""

from seatrial_serving.doors.http2_heads import Headers, Heads

ALICE, BOB, LATEST = b"\x40\x01k\x05alice", b"\x40\x01k\x03bob", b"\xbe"


def heads() -> Heads[Headers]:
    return Heads(tuple, 4096)


def test_what_is_remembered_is_forgotten_when_a_block_changes_what_the_same_bytes_mean() -> None:
    known = heads()
    assert known[ALICE] == known[LATEST] == ((b"k", b"alice"),)
    assert list(known) == [LATEST]
    assert known[BOB] == known[LATEST] == ((b"k", b"bob"),)


def test_a_block_that_is_passed_over_may_change_what_others_mean_too() -> None:
    known = heads()
    assert known[ALICE] == known[LATEST] == ((b"k", b"alice"),)
    known.pass_over(BOB)
    assert known[LATEST] == ((b"k", b"bob"),)


def test_a_block_that_resizes_the_table_is_read_each_time() -> None:
    known = heads()
    none, some = b"\x20\x83", b"\x3f\xe1\x1f\x83"  # a table of 0 bytes, and of 4096; `:method: POST`
    for block in (some, none, some):
        assert known[block] == ((b":method", b"POST"),)
    assert known[ALICE] == known[LATEST] == ((b"k", b"alice"),)
