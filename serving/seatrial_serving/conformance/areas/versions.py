"""Versions of a model, by name."""

from seatrial_serving.conformance.check import Failed, NotApplicable, check
from seatrial_serving.conformance.expectations import expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Wire


@check("versions.named", clause="Model Metadata: versions may be requested")
def every_version_that_is_named_answers(wire: Wire, subject: Subject) -> None:
    subject.version()
    for version in subject.metadata.versions:
        expect(wire.infer(subject.ask(version=version)).version, version, of="model_version")


@check("versions.answered", clause="Inference Response: model_version")
def the_version_that_answers_is_one_of_them(wire: Wire, subject: Subject) -> None:
    answered = wire.infer(subject.ask()).version
    if not answered and not subject.metadata.versions:
        raise NotApplicable("the server has no versions")
    if answered not in subject.metadata.versions:
        raise Failed(found=f"model_version '{answered}'", expected=f"one of {list(subject.metadata.versions)}")


@check("versions.unknown", clause="Inference, error object")
def an_unknown_version_is_refused(wire: Wire, subject: Subject) -> str:
    return subject.refused(wire, lambda: wire.infer(subject.ask(version="987654321")))
