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
