"""ModelStreamInfer: many requests and answers on one stream. Two message types are in use; either will do."""

from seatrial_serving.conformance.check import Failed, Kind, check
from seatrial_serving.conformance.expectations import agree, expect
from seatrial_serving.conformance.grpc import Grpc
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Refusal

ON = (Kind.GRPC,)
CLAUSE = "rpc ModelStreamInfer (Triton)"
REQUESTS = 4


@check("stream.answers", clause=CLAUSE, required=False, on=ON)
def every_request_is_answered_as_alone(grpc: Grpc, subject: Subject) -> str:
    asks = [subject.ask(seed=number, id=f"s{number}") for number in range(REQUESTS)]
    came = list(grpc.stream(asks))
    answers = {each.answer.id: each.answer for each in came if each.answer}
    expect(sorted(answers), [ask.id for ask in asks], of="ids")
    for ask in asks:
        agree(answers[ask.id].outputs, grpc.infer(ask).outputs, of=f"request {ask.id}")
    return came[0].form


@check("stream.mistake", clause=CLAUSE, required=False, on=ON)
def a_mistake_on_a_stream_is_said(grpc: Grpc, subject: Subject) -> str:
    """In a message of its own, as Triton does, and the next request is answered; or, as MLServer does, it ends the stream."""
    wrong = subject.ask(id="wrong").with_first(name="no_such_input")
    try:
        came = list(grpc.stream([wrong, subject.ask(id="right")]))
    except Refusal as refusal:
        if not refusal.blames_caller or refusal.status == "UNIMPLEMENTED":
            raise
        return f"ends the stream with {refusal.status}"
    if not any(each.error for each in came):
        raise Failed(found=f"no error in {len(came)} messages", expected="a message with error_message")
    if not any(each.answer and each.answer.id == "right" for each in came):
        raise Failed(found="no answer to the request behind it", expected="an answer")
    return came[0].form
