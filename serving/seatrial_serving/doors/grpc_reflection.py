"""Server reflection: what services there are and what their messages look like, for grpcurl and its like.

Version 1 and version 1alpha have the same messages under two names.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import (
    ErrorResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)

from seatrial.errors import MalformedRequest
from seatrial_serving.doors.calls import Conversation, Methods, Streaming
from seatrial_serving.doors.status import Code

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def reflection(paths: Iterable[str], pool: DescriptorPool) -> Methods:
    """Reflection over the services that own `paths`; their messages are in `pool`, or in protobuf's own."""
    services = {path.split("/")[1] for path in paths} | set(SERVICES)
    mirror = Reflection(sorted(services), (pool, Default()))  # type: ignore[no-untyped-call] # protobuf's own
    return {f"/{service}/ServerReflectionInfo": Streaming(mirror.talk) for service in SERVICES}


class Reflection:
    def __init__(self, services: Sequence[str], pools: Sequence[DescriptorPool]) -> None:
        self._services, self._pools = services, pools

    async def talk(self, call: Conversation) -> None:
        async for message in call.messages():
            await call.drained()
            try:
                asked = ServerReflectionRequest.FromString(message)
            except DecodeError as error:
                raise MalformedRequest(f"the message is no ServerReflectionRequest: {error}") from error
            call.send(self._answer(asked).SerializeToString())

    def _answer(self, asked: ServerReflectionRequest) -> ServerReflectionResponse:
        answer = ServerReflectionResponse(original_request=asked)
        kind = asked.WhichOneof("message_request")
        if kind == "list_services":
            listed = [ServiceResponse(name=name) for name in self._services]
            answer.list_services_response.CopyFrom(ListServiceResponse(service=listed))
        elif (file := self._file(asked, kind)) is not None:
            answer.file_descriptor_response.CopyFrom(FileDescriptorResponse(file_descriptor_proto=_with_imports(file)))
        else:
            wanted = getattr(asked, kind) if kind else "nothing"
            answer.error_response.CopyFrom(
                ErrorResponse(error_code=Code.NOT_FOUND, error_message=f"there is no {kind} {wanted}".strip())
            )
        return answer

    def _file(self, asked: ServerReflectionRequest, kind: str | None) -> FileDescriptor | None:
        for pool in self._pools:
            finders: dict[str | None, Callable[[str], FileDescriptor]] = {
                "file_by_filename": pool.FindFileByName,
                "file_containing_symbol": pool.FindFileContainingSymbol,
            }
            if kind in finders:
                with suppress(KeyError):
                    return finders[kind](getattr(asked, kind or ""))
        return None


def _with_imports(file: FileDescriptor) -> list[bytes]:
    """`file` and every file that it imports, each once, as their serialized descriptors."""
    files: dict[str, FileDescriptor] = {}
    ahead = [file]
    while ahead:
        each = ahead.pop()
        if each.name not in files:
            files[each.name] = each
            ahead += each.dependencies
    return [each.serialized_pb for each in files.values()]
