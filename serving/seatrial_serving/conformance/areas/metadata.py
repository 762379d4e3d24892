"""What the server and the model say of themselves."""

from seatrial.tensors import DataType
from seatrial_serving.conformance.check import Failed, Kind, check
from seatrial_serving.conformance.expectations import expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Wire


@check("metadata.server", clause="Server Metadata")
def the_server_says_its_name_version_and_extensions(wire: Wire, _: Subject) -> str:
    server = wire.server()
    if not server.name:
        raise Failed(found="an empty name", expected="the server's name")
    return f"extensions {', '.join(sorted(server.extensions)) or 'none'}" if wire.kind is Kind.REST else ""


@check("metadata.model", clause="Model Metadata")
def the_model_says_its_tensors(wire: Wire, subject: Subject) -> None:
    metadata = wire.metadata(subject.model)
    expect(metadata.name, subject.model, of="name")
    if not metadata.outputs:
        raise Failed(found="no outputs", expected="the outputs that the model produces")


@check("metadata.datatypes", clause="Tensor Data Types")
def its_datatypes_are_those_of_the_protocol(wire: Wire, subject: Subject) -> None:
    metadata = wire.metadata(subject.model)
    for tensor in (*metadata.inputs, *metadata.outputs):
        if tensor.datatype not in list(DataType):
            raise Failed(found=f"'{tensor.name}' has datatype {tensor.datatype!r}", expected=", ".join(DataType))
        if any(size < -1 for size in tensor.shape):
            raise Failed(found=f"'{tensor.name}' has shape {list(tensor.shape)}", expected="sizes, or -1 for any")


@check("metadata.version", clause="Model Metadata, of a version")
def a_version_has_its_own_metadata(wire: Wire, subject: Subject) -> None:
    version = subject.version()
    metadata = wire.metadata(subject.model, version)
    expect(metadata.name, subject.model, of="name")
    if metadata.versions and version not in metadata.versions:
        raise Failed(found=f"versions {list(metadata.versions)}", expected=f"{version} among them")


@check("metadata.unknown", clause="Model Metadata, error object")
def an_unknown_model_has_no_metadata(wire: Wire, subject: Subject) -> str:
    return subject.refused(wire, lambda: wire.metadata(f"no-{subject.model}"))


@check("metadata.same", clause="gRPC closely follows HTTP/REST", on=(Kind.GRPC,))
def both_wires_say_the_same_metadata(wire: Wire, subject: Subject) -> None:
    expect(wire.metadata(subject.model), subject.metadata, of="metadata")
    expect(frozenset(wire.server().extensions), subject.extensions, of="extensions")
