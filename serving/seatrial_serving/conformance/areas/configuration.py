"""The model's configuration, in Triton's form."""

from seatrial_serving.conformance.check import Kind, check
from seatrial_serving.conformance.expectations import expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Wire

EXTENSION = "model_configuration"


@check("config.tensors", extension=EXTENSION)
def it_names_the_tensors_of_the_metadata(wire: Wire, subject: Subject) -> str:
    configuration = wire.configuration(subject.model)
    expect(configuration.name, subject.model, of="name")
    for found, expected in (
        (configuration.input, subject.metadata.inputs), (configuration.output, subject.metadata.outputs)
    ):  # fmt: skip
        types = {tensor.name: tensor.data_type for tensor in found}
        expect(types, {tensor.name: _type(tensor.datatype) for tensor in expected}, of="data types")
    return f"max_batch_size {configuration.max_batch_size}"


def _type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


@check("config.unknown", extension=EXTENSION)
def an_unknown_model_has_no_configuration(wire: Wire, subject: Subject) -> str:
    return subject.refused(wire, lambda: wire.configuration(f"no-{subject.model}"))


@check("config.same", extension=EXTENSION, on=(Kind.GRPC,))
def both_wires_say_the_same_configuration(wire: Wire, subject: Subject) -> None:
    expect(wire.configuration(subject.model), subject.rest.configuration(subject.model), of="configuration")
