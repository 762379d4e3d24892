"""Which code each error gets: one table for HTTP, one for gRPC. The nearest ancestor in the error tree decides."""

from collections.abc import Mapping
from enum import IntEnum

from seatrial import errors
from seatrial.errors import SeatrialError


class Code(IntEnum):
    """The status codes of gRPC that we use."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


HTTP: Mapping[type[SeatrialError], int] = {
    errors.BadRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.TooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.QuotaExceeded: 429,
    errors.Refused: 503,
    errors.DeadlinePassed: 504,
    SeatrialError: 500,
}

GRPC: Mapping[type[SeatrialError], Code] = {
    errors.BadRequest: Code.INVALID_ARGUMENT,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.Forbidden: Code.PERMISSION_DENIED,
    errors.UnknownModel: Code.NOT_FOUND,
    errors.TooLarge: Code.RESOURCE_EXHAUSTED,
    errors.UnsupportedEncoding: Code.UNIMPLEMENTED,
    errors.QuotaExceeded: Code.RESOURCE_EXHAUSTED,
    errors.Refused: Code.UNAVAILABLE,
    errors.DeadlinePassed: Code.DEADLINE_EXCEEDED,
    SeatrialError: Code.INTERNAL,
}


def http_status(error: SeatrialError) -> int:
    return next(HTTP[kind] for kind in type(error).__mro__ if kind in HTTP)


def grpc_code(error: SeatrialError) -> Code:
    return next(GRPC[kind] for kind in type(error).__mro__ if kind in GRPC)
