"""What header blocks say. Knows the compression of headers (RFC 7541, HPACK), and nothing of streams.

A client sends the same header block over and over. As long as decoding changes nothing in the compression state, the
same bytes mean the same, and are read once.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from hpack import Decoder, HPACKError, OversizedHeaderListError

from seatrial_serving.doors.http2_frames import ConnectionFault, Fault

MOST_HEADS, LONGEST_HEAD = 64, 4096
"""Bounds of what is remembered."""
PATIENCE = 4
"""A header block of so many times the limit ends the connection; a smaller one is the service's to refuse."""

Headers = Sequence[tuple[bytes, bytes]]
H = TypeVar("H")


class MalformedHead(Exception):
    """The headers are no request: its stream is reset."""


class Heads(dict[bytes, H]):
    """What the header blocks of one connection say; a block that is not remembered is read.

    Each block that a client sends must go through here, once and in order: the next may refer to it.
    """

    def __init__(self, read: Callable[[Headers], H], most_bytes: int) -> None:
        """`read` may raise `MalformedHead`."""
        self._read = read
        self.longest = PATIENCE * most_bytes
        self._decoder = Decoder(max_header_list_size=self.longest)

    def __missing__(self, block: bytes) -> H:
        headers, unchanged = self._decode(block)
        head = self._read(headers)
        if unchanged and len(block) <= LONGEST_HEAD:
            if len(self) >= MOST_HEADS:
                del self[next(iter(self))]
            self[block] = head
        return head

    def pass_over(self, block: bytes) -> None:
        """What `block` says is of no interest, but those after it may refer to it."""
        self._decode(block)

    def _decode(self, block: bytes) -> tuple[Headers, bool]:
        """What it says, and whether the compression state is as before; where it is not, nothing is remembered any more."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        size, count, first = table.maxsize, len(entries), entries[0] if entries else None
        try:
            headers = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, str(error)) from error
        except HPACKError as error:
            raise ConnectionFault(Fault.COMPRESSION_ERROR, f"the header block cannot be read: {error}") from error
        unchanged = table.maxsize == size and len(entries) == count and (not entries or entries[0] is first)
        if not unchanged:
            self.clear()
        return headers, unchanged  # type: ignore[return-value] # raw: bytes, not str
