"""The index of models. Nothing is loaded or unloaded: the server may be somebody's."""

from seatrial_serving.conformance.check import Failed, check
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Wire

EXTENSION = "model_repository"


@check("repository.index", extension=EXTENSION)
def the_index_names_the_model_as_ready(wire: Wire, subject: Subject) -> None:
    _see_ready(wire, subject, ready=False)


@check("repository.ready", extension=EXTENSION)
def the_index_can_be_of_models_that_are_ready(wire: Wire, subject: Subject) -> None:
    _see_ready(wire, subject, ready=True)
    states = {model.state for model in wire.index(ready=True)}
    if states - {"READY", ""}:
        raise Failed(found=f"states {sorted(states)}", expected="READY only")


def _see_ready(wire: Wire, subject: Subject, *, ready: bool) -> None:
    listed = [model for model in wire.index(ready=ready) if model.name == subject.model]
    if not any(model.state in ("READY", "") for model in listed):
        raise Failed(found=f"{subject.model} {[model.state for model in listed]}", expected=f"{subject.model} READY")
