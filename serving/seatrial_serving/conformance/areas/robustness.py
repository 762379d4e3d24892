"""Requests that go astray: the caller is told, by a proxy or framework perhaps, and the next one is answered."""

from dataclasses import replace

from seatrial_serving.conformance.areas.errors import CLAUSE, JSON
from seatrial_serving.conformance.check import Failed, Kind, check
from seatrial_serving.conformance.expectations import THEIR_FAULT, refused
from seatrial_serving.conformance.grpc import Grpc
from seatrial_serving.conformance.grpc import write as write_message
from seatrial_serving.conformance.rest import Rest, path, write
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Form, Refusal, Wire
from seatrial_serving.open_inference import messages


@check("robust.utf8", clause=CLAUSE, on=(Kind.REST,))
def bytes_that_are_not_utf_8_are_refused(rest: Rest, subject: Subject) -> str:
    content = write(replace(subject.json_ask, id="DIJ"))[0].replace(b"DIJ", b"\xff\xfe")
    return subject.refused(rest, lambda: rest.post(subject.ask(), content, JSON))


@check("robust.path", clause=CLAUSE)
def a_model_name_that_is_a_path_is_refused(wire: Wire, subject: Subject) -> str:
    ask = replace(subject.ask(), model="../../../../etc/passwd")
    return subject.refused(wire, lambda: wire.infer(ask), message=False)


@check("robust.method", clause="Inference is a POST", on=(Kind.REST,), required=False)
def an_inference_by_get_is_refused(rest: Rest, subject: Subject) -> str:
    return refused(lambda: rest.ask("GET", f"{path(subject.model)}/infer"), message=False)


@check("robust.elsewhere", clause="the URLs of the protocol", on=(Kind.REST,), required=False)
def a_path_that_is_none_is_refused(rest: Rest, _: Subject) -> str:
    return refused(lambda: rest.ask("GET", "v2/no/such/path"), message=False)


@check("robust.encoding", clause="HTTP: Content-Encoding", on=(Kind.REST,))
def a_body_that_says_gzip_and_is_not_is_refused(rest: Rest, subject: Subject) -> str:
    body, headers = write(subject.ask())
    headers["Content-Encoding"] = "gzip"
    return subject.refused(rest, lambda: rest.post(subject.ask(), body, headers), message=False)


@check("robust.not_a_message", clause="gRPC: a message", on=(Kind.GRPC,))
def bytes_that_are_no_message_are_refused(grpc: Grpc, subject: Subject) -> str:
    """By a framework mostly, with the status that it pleases."""
    with subject.unharmed(grpc):
        try:
            grpc.call("ModelInfer", b"\xff\xff\xff", messages.ModelInferResponse)
        except Refusal as refusal:
            return refusal.status
        raise Failed(found="an answer", expected=THEIR_FAULT)


@check("robust.raw_and_typed", clause="raw_input_contents: not with contents", on=(Kind.GRPC,))
def contents_both_raw_and_typed_are_refused(grpc: Grpc, subject: Subject) -> str:
    message = write_message(subject.ask())
    message.inputs[0].contents.CopyFrom(write_message(subject.ask(form=Form.TYPED)).inputs[0].contents)
    return subject.refused(grpc, lambda: grpc.call("ModelInfer", message, messages.ModelInferResponse))


@check("robust.raw_count", clause="raw_input_contents: one for each input", on=(Kind.GRPC,))
def raw_contents_without_an_input_are_refused(grpc: Grpc, subject: Subject) -> str:
    message = write_message(subject.ask())
    message.raw_input_contents.append(b"1234")
    return subject.refused(grpc, lambda: grpc.call("ModelInfer", message, messages.ModelInferResponse))
