"""Which code each error gets: one table for HTTP, one for gRPC. The nearest ancestor in the error tree decides."""

from collections.abc import Mapping

import grpc

from seatrial import errors
from seatrial.errors import SeatrialError

HTTP: Mapping[type[SeatrialError], int] = {
    errors.BadRequest: 400,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.TooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.Refused: 503,
    errors.DeadlinePassed: 504,
    SeatrialError: 500,
}

GRPC: Mapping[type[SeatrialError], grpc.StatusCode] = {
    errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnsupportedEncoding: grpc.StatusCode.UNIMPLEMENTED,
    errors.Refused: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    SeatrialError: grpc.StatusCode.INTERNAL,
}


def http_status(error: SeatrialError) -> int:
    return next(HTTP[kind] for kind in type(error).__mro__ if kind in HTTP)


def grpc_status(error: SeatrialError) -> grpc.StatusCode:
    return next(GRPC[kind] for kind in type(error).__mro__ if kind in GRPC)
