"""Bodies that travel compressed: gzip and deflate, both ways.

Knows nothing of connections or models. What a client sends may expand to no more than a body may be; what it gets is
compressed only where that makes it smaller.
Source: RFC 9110, "Content-Encoding" and "Accept-Encoding"; "deflate" there is the zlib format.
"""

import zlib
from collections.abc import Iterable, Mapping

from seatrial.errors import MalformedRequest, TooLarge, UnsupportedEncoding

FORMATS: Mapping[str, int] = {"gzip": 31, "deflate": 15}
"""What zlib calls them (`wbits`)."""
IDENTITY = "identity"
SMALLEST = 1024
"""Shorter bodies are not worth it."""
FAST = 1


def choose(accepted: Iterable[bytes]) -> str:
    """The encoding of an answer to a request with these `Accept-Encoding` headers; empty where it is sent as it is.

    The highest quality wins; where they are equal, any compression before none, and what was named first, as Triton does it.
    """
    quality = _qualities(b",".join(accepted).decode("latin-1").lower())
    other = quality.get("*", 0.0)
    named = [name for name in quality if name in FORMATS]
    best = max([*named, *FORMATS], key=lambda name: quality.get(name, other))
    wanted = quality.get(best, other)
    return best if wanted > 0 and wanted >= quality.get(IDENTITY, 0.0) else ""


def _qualities(accepted: str) -> dict[str, float]:
    """By encoding; what cannot be read is left out, because a client that says it wrong can still read what is not encoded."""
    qualities = {}
    for each in accepted.split(","):
        name, _, parameter = each.partition(";")
        key, _, value = parameter.partition("=")
        try:
            qualities[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            continue
    return qualities


def compress(body: bytes, encoding: str) -> bytes | None:
    """None where the body would not become smaller."""
    if len(body) < SMALLEST:
        return None
    compressor = zlib.compressobj(FAST, wbits=FORMATS[encoding])
    compressed = compressor.compress(body) + compressor.flush()
    return compressed if len(compressed) < len(body) else None


def expand(body: bytes, encoding: str, *, max_body: int) -> bytes:
    """The inverse of `compress`. Raises `UnsupportedEncoding`, `MalformedRequest`, or `TooLarge` before memory is taken."""
    if encoding not in FORMATS:
        raise UnsupportedEncoding(
            f"the body is encoded as {encoding!r}; send it as it is, or as {' or '.join(FORMATS)}"
        )
    expander = zlib.decompressobj(FORMATS[encoding])
    try:
        expanded = expander.decompress(body, max_body + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the body is not {encoding}: {error}") from error
    if len(expanded) > max_body:
        raise TooLarge(f"the body expands to more than {max_body} bytes (serving.limits.body_bytes)")
    if not expander.eof or expander.unused_data:
        raise MalformedRequest(f"the {encoding} body is {'longer than it says' if expander.eof else 'cut off'}")
    return expanded
