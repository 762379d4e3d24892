"""Run the checks against a server, one after another, and say what each found."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import grpc
import httpx

from seatrial.credentials import Credentials
from seatrial.errors import InvalidSource, NotReady
from seatrial_serving.conformance import areas  # noqa: F401 - it registers the checks
from seatrial_serving.conformance.check import CHECKS, Check, Failed, Finding, NotApplicable, NotOffered, Verdict
from seatrial_serving.conformance.grpc import Grpc
from seatrial_serving.conformance.report import Report, Row
from seatrial_serving.conformance.rest import Rest
from seatrial_serving.conformance.subject import Subject, read_samples
from seatrial_serving.conformance.wire import NO_ANSWER, TIMEOUT_S, Refusal, Wire
from seatrial_serving.open_inference.ends import grpc_end

OPTIONS = [("grpc.max_receive_message_length", -1)]
GONE = "the server no longer answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to judge. Without a `model`, the one that the repository's index names first; without `grpc`, REST alone.

    `only` is a pattern of ids; `hostile` checks, which may hurt a server, are for those who ask for them.
    """

    url: str
    grpc: str = ""
    model: str = ""
    samples: Path | None = None
    only: str = "*"
    hostile: bool = False
    credentials: Credentials = field(default_factory=Credentials)


def judge(plan: Plan) -> Report:
    """Raises `NotReady` where the server does not answer at all, `InvalidSource` where it is not known what to ask."""
    chosen = chosen_checks(plan)
    samples = read_samples(plan.samples) if plan.samples else ()
    with ExitStack() as stack:
        rest = Rest(stack.enter_context(_client(plan)))
        wires: list[Wire] = [rest]
        if plan.grpc:
            wires.append(Grpc(stack.enter_context(_channel(plan)), tuple(plan.credentials.headers.items())))
        for wire, address in zip(wires, (plan.url, plan.grpc), strict=False):
            if not _answers(wire):
                raise NotReady(f"{address} does not answer over {wire.kind}; is it the server's address?")
        subject = Subject(rest, plan.model or _first_model(rest), samples)
        server = _name(rest)
        rows = tuple(_rows(chosen, wires, subject))
        return Report(url=plan.url, grpc=plan.grpc, server=server, model=subject.model, rows=rows)


def chosen_checks(plan: Plan) -> Sequence[Check]:
    """Raises `InvalidSource` where there is no such check."""
    allowed = [check for check in CHECKS.values() if plan.hostile or not check.hostile]
    chosen = [check for check in allowed if fnmatchcase(check.id, plan.only)]
    if not chosen:
        areas_there = sorted({check.id.partition(".")[0] for check in allowed})
        raise InvalidSource(
            f"no check is called {plan.only!r}; patterns match ids such as 'infer.nested'; the areas are {areas_there}"
        )
    return chosen


def _rows(chosen: Sequence[Check], wires: Sequence[Wire], subject: Subject) -> Iterator[Row]:
    gone = False
    for check in chosen:
        if gone:
            findings = {wire.kind: Finding(verdict=Verdict.NOT_APPLICABLE, note=GONE) for wire in wires}
        else:
            findings = {wire.kind: _judge(check, wire, subject) for wire in wires}
        row = Row(check=check, findings=findings)
        gone = gone or (row.fails and not all(map(_answers, wires)))
        yield row


def _judge(check: Check, wire: Wire, subject: Subject) -> Finding:
    if wire.kind not in check.on:
        return Finding(verdict=Verdict.NOT_APPLICABLE)
    if check.extension and check.extension not in subject.extensions:
        return Finding(verdict=Verdict.NOT_OFFERED)
    try:
        note = check.body(wire, subject)
    except NotApplicable as reason:
        return Finding(verdict=Verdict.NOT_APPLICABLE, note=str(reason))
    except NotOffered as reason:
        return Finding(verdict=Verdict.NOT_OFFERED, note=str(reason))
    except Failed as failed:
        return Finding(verdict=Verdict.FAILS, found=failed.found, expected=failed.expected)
    except Refusal as refusal:
        if not check.required and refusal.status == grpc.StatusCode.UNIMPLEMENTED.name:
            return Finding(verdict=Verdict.NOT_OFFERED)
        return Finding(verdict=Verdict.FAILS, found=str(refusal), expected="an answer")
    return Finding(verdict=Verdict.HOLDS, note=note or "")


def _answers(wire: Wire) -> bool:
    """Whether anything is said at all; what it says is judged elsewhere."""
    try:
        wire.live()
    except Refusal as refusal:
        return refusal.status not in (NO_ANSWER, grpc.StatusCode.UNAVAILABLE.name)
    except Failed:
        pass
    return True


def _first_model(rest: Rest) -> str:
    try:
        models = rest.index()
    except (Refusal, Failed) as error:
        raise InvalidSource(f"say which model to ask, with --model: {rest.address} keeps no index ({error})") from error
    ready = [model.name for model in models if model.state in ("READY", "")]
    if not ready:
        raise InvalidSource(f"{rest.address} says that it has no model that is ready")
    return ready[0]


def _name(rest: Rest) -> str:
    try:
        server = rest.server()
    except (Refusal, Failed):
        return "a server without metadata"
    return f"{server.name} {server.version}"


def _client(plan: Plan) -> httpx.Client:
    base = plan.url if "://" in plan.url else f"http://{plan.url}"
    shown = plan.credentials
    try:
        return httpx.Client(base_url=base, timeout=TIMEOUT_S, headers=shown.headers, verify=shown.trusting())
    except httpx.InvalidURL as error:
        raise InvalidSource(f"{plan.url!r} is no URL: {error}; one looks like http://localhost:8000") from error


def _channel(plan: Plan) -> grpc.Channel:
    address, tls = grpc_end(plan.grpc, plan.credentials)
    if tls is not None:
        return grpc.secure_channel(address, tls, options=OPTIONS)
    return grpc.insecure_channel(address, options=OPTIONS)
