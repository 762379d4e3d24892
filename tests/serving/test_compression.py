import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from seatrial.errors import BadRequest, MalformedRequest, TooLarge, UnsupportedEncoding
from seatrial_serving.doors.compression import FORMATS, SMALLEST, choose, compress, expand

PLENTY = 10**6


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ([], ""),
        ([b""], ""),
        ([b"identity"], ""),
        ([b"br, zstd"], ""),
        ([b"gzip"], "gzip"),
        ([b"deflate"], "deflate"),
        ([b"gzip, deflate, br"], "gzip"),
        ([b"deflate, gzip"], "deflate"),
        ([b"deflate", b"gzip;q=0.5"], "deflate"),
        ([b"gzip;q=0.5, deflate;q=0.8"], "deflate"),
        ([b"GZIP ; q=1"], "gzip"),
        ([b"gzip;q=0"], ""),
        ([b"gzip;q=0.2, identity;q=0.7"], ""),
        ([b"gzip;q=0.7, identity;q=0.7"], "gzip"),
        ([b"*"], "gzip"),
        ([b"*;q=0.3, gzip;q=0"], "deflate"),
        ([b"*;q=0"], ""),
        ([b"gzip;q=much"], ""),
        ([b"\xff;;=,,"], ""),
    ],
)
def test_the_client_s_wish_decides(accepted: list[bytes], chosen: str) -> None:
    assert choose(accepted) == chosen


@given(st.binary(max_size=60))
def test_no_wish_is_worse_than_strange(accepted: bytes) -> None:
    assert choose([accepted]) in ("", *FORMATS)


@given(st.binary(min_size=1, max_size=50), st.integers(1, 200), st.sampled_from(sorted(FORMATS)))
def test_what_was_compressed_expands_to_itself_and_everybody_else_can_read_it(
    piece: bytes, times: int, encoding: str
) -> None:
    body = piece * times
    compressed = compress(body, encoding)
    if compressed is None:
        assert len(body) < SMALLEST or len(zlib.compress(body, 1)) > len(body) - 40
        return
    assert len(compressed) < len(body)
    assert expand(compressed, encoding, max_body=len(body)) == body
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(compressed) == body


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_body_may_expand_to_what_a_body_may_be_and_no_further(pack: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    assert len(expand(pack(b"0" * 5000), encoding, max_body=5000)) == 5000
    bomb = pack(b"0" * 50_000_000)
    with pytest.raises(TooLarge, match="expands to more than 5000 bytes"):
        expand(bomb, encoding, max_body=5000)


@pytest.mark.parametrize(
    ("body", "encoding", "error", "words"),
    [
        (b"{}", "gzip", MalformedRequest, "not gzip"),
        (b"", "gzip", MalformedRequest, "cut off"),
        (gzip.compress(b"abc", mtime=0)[:-1], "gzip", MalformedRequest, "cut off"),
        (gzip.compress(b"abc", mtime=0) + b"x", "gzip", MalformedRequest, "longer than it says"),
        (zlib.compress(b"abc"), "gzip", MalformedRequest, "not gzip"),
        (gzip.compress(b"abc", mtime=0), "deflate", MalformedRequest, "not deflate"),
        (b"abc", "br", UnsupportedEncoding, "encoded as 'br'"),
        (gzip.compress(gzip.compress(b"abc", mtime=0), mtime=0), "gzip, gzip", UnsupportedEncoding, "'gzip, gzip'"),
    ],
)
def test_corrupt_bodies_are_refused(body: bytes, encoding: str, error: type[BadRequest], words: str) -> None:
    with pytest.raises(error, match=words):
        expand(body, encoding, max_body=PLENTY)


@given(st.data())
def test_a_damaged_body_is_read_or_refused_never_worse(data: st.DataObject) -> None:
    damaged = bytearray(gzip.compress(data.draw(st.binary(max_size=300))))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadRequest):
        expand(bytes(damaged), "gzip", max_body=PLENTY)
