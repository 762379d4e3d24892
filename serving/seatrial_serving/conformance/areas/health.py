"""Live, ready, and ready for each model. Copies of the protocol differ in the body and in how a no is said: any will do."""

from seatrial_serving.conformance.check import Failed, check
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import State, Wire


@check("health.live", clause="Health, Server Live")
def the_server_is_live(wire: Wire, _: Subject) -> str:
    return _yes(wire.live(), "live")


@check("health.ready", clause="Health, Server Ready")
def the_server_is_ready(wire: Wire, _: Subject) -> str:
    return _yes(wire.ready(), "ready")


@check("health.model", clause="Health, Model Ready")
def the_model_is_ready(wire: Wire, subject: Subject) -> str:
    return _yes(wire.model_ready(subject.model), "ready")


@check("health.version", clause="Health, Model Ready, of a version")
def its_version_is_ready(wire: Wire, subject: Subject) -> str:
    return _yes(wire.model_ready(subject.model, subject.version()), "ready")


@check("health.unknown", clause="Health, Model Ready, of a model that is not there")
def an_unknown_model_is_not_ready(wire: Wire, subject: Subject) -> str:
    state = wire.model_ready(f"no-{subject.model}")
    if state.holds:
        raise Failed(found="ready", expected="not ready, or an error")
    return state.form


def _yes(state: State, word: str) -> str:
    if not state.holds:
        raise Failed(found=f"not {word} {state.form}".rstrip(), expected=word)
    return state.form
