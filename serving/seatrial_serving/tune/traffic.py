"""What is asked while a model is tuned: requests that the bundle recorded, or those that somebody recorded for it.

A recording is a file of JSON lines, each a v2 inference request, with `at` (seconds, from any moment on) or without: then
the requests are due evenly. With it, they are due in the rhythm in which they came, faster or slower as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from seatrial.bundle import MAIN, Bundle
from seatrial.errors import BadRequest, InvalidSource
from seatrial.protocol import InferRequest, decode_request
from seatrial.tensors import Signature

MOST_REQUESTS = 10_000
MOST_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Asked in turn, over and over; `due` is as in `bench.Plan`. Without requests: rows of zeros, as the server states them."""

    words: str
    requests: tuple[InferRequest, ...] = ()
    rows: int = 1
    due: tuple[float, ...] = (0.0,)


class _At(msgspec.Struct):
    at: float | None = None


_decode_at = msgspec.json.Decoder(_At).decode


def generate(bundle: Bundle | None, *, rows: int) -> Traffic:
    """`rows` of each golden request, over and over where it has fewer; zeros where there is none that fits.

    Raises `InvalidSource` where the model takes no so many.
    """
    if bundle is None:
        return Traffic(words=f"{_rows(rows)} of zeros a request", rows=rows)
    signature = bundle.manifest.signature
    most = signature.batch.max if signature.batch else 1
    if rows > most:
        raise InvalidSource(f"{bundle.manifest.model.name} takes {_rows(most)} a request, --rows {rows} were asked for")
    recorded = [golden.request for golden in bundle.golden() if golden.graph == MAIN]
    requests = [request for each in recorded if (request := _of_rows(each, signature, rows))]
    if not requests:
        return Traffic(words=f"{_rows(rows)} of zeros a request: no golden request fits", rows=rows)
    return Traffic(words=f"{_rows(rows)} a request, of {len(requests)} golden requests", requests=tuple(requests))


def _of_rows(request: InferRequest, signature: Signature, rows: int) -> InferRequest | None:
    inputs = request.inputs
    if signature.batch is not None:
        if any(not len(tensor.array) for tensor in inputs):
            return None
        inputs = tuple(tensor._replace(array=tensor.array[np.arange(rows) % len(tensor.array)]) for tensor in inputs)
    try:
        signature.check(inputs)
    except BadRequest:
        return None
    return InferRequest(inputs)


def _rows(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows} rows"


def read_recording(path: Path, signature: Signature | None) -> Traffic:
    """Raises `InvalidSource`, naming the line, for what is no recording or does not fit the model."""
    requests: list[InferRequest] = []
    moments: list[float | None] = []
    for place, line in _lines(path):
        try:
            request, at = decode_request(line), _decode_at(line).at
            if signature is not None:
                signature.check(request.inputs)
        except (BadRequest, msgspec.MsgspecError) as error:
            raise InvalidSource(f"{place}: {error}") from error
        if moments and (at is None) != (moments[0] is None):
            raise InvalidSource(f"{place}: either every request says when it came ('at') or none does")
        before = (moments[-1] if moments else None) or 0.0
        if at is not None and at < before:
            raise InvalidSource(f"{place}: it came at {at:g} s, which is before the start or the line above")
        requests.append(request)
        moments.append(at)
    if not requests:
        raise InvalidSource(f"{path} holds no request; one v2 inference request a line is expected")
    return Traffic(words=f"{len(requests)} requests of {path.name}", requests=tuple(requests), due=_rhythm(moments))


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Those that are not empty, with their place."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidSource(f"{path} is larger than {MOST_BYTES >> 20} MiB; take a part of it")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidSource(f"{path} cannot be read: {error.strerror}") from error
    if len(lines) > MOST_REQUESTS:
        raise InvalidSource(f"{path} has {len(lines)} lines, at most {MOST_REQUESTS} are taken; take a part of it")
    yield from ((f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def _rhythm(moments: Sequence[float | None]) -> tuple[float, ...]:
    """When in a round each is due, 0 to 1; the gap from the last to the first of the next round is the mean of the others."""
    known = [at for at in moments if at is not None]
    if len(known) < 2 or known[0] == known[-1]:
        return (0.0,)
    whole = (known[-1] - known[0]) * len(known) / (len(known) - 1)
    return tuple((at - known[0]) / whole for at in known)
