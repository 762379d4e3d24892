"""gzip and deflate, in both directions. No extension names it; where a server has it, the answers are the same."""

import gzip
import zlib

from seatrial_serving.conformance.check import Kind, NotOffered, check
from seatrial_serving.conformance.expectations import agree
from seatrial_serving.conformance.rest import Rest, path, read_answer, write
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Ask, Refusal

ON = (Kind.REST,)
CLAUSE = "HTTP: Content-Encoding"
ROWS = 64


@check("compression.request", clause=CLAUSE, required=False, on=ON)
def a_compressed_request_is_read(rest: Rest, subject: Subject) -> str:
    body, headers = write(subject.ask())
    read = []
    for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        try:
            answer = rest.post(subject.ask(), compress(body), headers | {"Content-Encoding": encoding})
        except Refusal as refusal:
            if not refusal.blames_caller:
                raise
            continue
        agree(answer.outputs, subject.reference.outputs, of=f"to a body in {encoding}")
        read.append(encoding)
    if not read:
        raise NotOffered("compressed bodies are refused")
    return ", ".join(read)


@check("compression.answer", clause="HTTP: Accept-Encoding", required=False, on=ON)
def an_answer_may_be_compressed(rest: Rest, subject: Subject) -> str:
    """httpx undoes the compression that the answer says that it has."""
    subject.see_comparable()
    ask = _large(rest, subject)
    plain = rest.infer(ask)
    used = set()
    for encoding in ("gzip", "deflate"):
        body, headers = write(ask)
        response = rest.send("POST", f"{path(ask.model)}/infer", body, headers | {"Accept-Encoding": encoding})
        agree(read_answer(response).outputs, plain.outputs, of=f"asked for in {encoding}")
        used.add(response.headers.get("content-encoding", "identity"))
    if used == {"identity"}:
        raise NotOffered("answers are not compressed")
    return ", ".join(sorted(used))


def _large(rest: Rest, subject: Subject) -> Ask:
    """A request whose answer is worth compressing, where the model takes so many rows."""
    large = subject.ask(rows=ROWS)
    try:
        rest.infer(large)
    except Refusal:
        return subject.ask()
    return large
