"""What checks say of what they see: equal, the same tensors, refused. Each raises `Failed` with what was found instead."""

from collections.abc import Callable, Sequence

import numpy as np

from seatrial.protocol import Tensor
from seatrial.tensors import Array
from seatrial_serving.conformance.check import Failed
from seatrial_serving.conformance.wire import Refusal, shortened

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""How far two answers to the same question may lie apart: batches of other sizes may be summed in another order."""

THEIR_FAULT = "an error that says that the request is wrong, such as 400 or INVALID_ARGUMENT"


def expect(found: object, expected: object, *, of: str) -> None:
    if found != expected:
        raise Failed(found=f"{of} {shortened(repr(found))}", expected=shortened(repr(expected)))


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], *, of: str) -> None:
    """Raise `Failed`, naming the first element that differs, unless the tensors are equal within the tolerance."""
    for got, wanted in zip(_by_name(found), _by_name(expected), strict=False):
        expect((got.name, got.datatype), (wanted.name, wanted.datatype), of=f"{of}: output")
        expect(got.array.shape, wanted.array.shape, of=f"{of}: shape of output '{got.name}'")
        differing = np.argwhere(~_close(got.array, wanted.array))
        if len(differing):
            at = tuple(map(int, differing[0]))
            raise Failed(
                found=f"{of}: {got.array[at]} at {list(at)} of output '{got.name}'", expected=str(wanted.array[at])
            )
    expect(sorted(t.name for t in found), sorted(t.name for t in expected), of=f"{of}: outputs")


def _by_name(tensors: Sequence[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: tensor.name)


def _close(got: Array, wanted: Array) -> Array:
    if got.dtype.kind != "f":
        return np.asarray(got == wanted)
    return np.isclose(got, wanted, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def refused(act: Callable[[], object], *, message: bool = True) -> str:
    """See that `act` is answered with an error that blames the caller and, with `message`, says why; its status."""
    try:
        act()
    except Refusal as refusal:
        if not refusal.blames_caller:
            raise Failed(found=refusal, expected=THEIR_FAULT) from None
        if message and not refusal.message:
            raise Failed(found=refusal, expected='a message: {"error": "what is wrong"}') from None
        return refusal.status
    except Failed as failed:
        raise Failed(found=f"an answer, with {failed.found}", expected=THEIR_FAULT) from None
    raise Failed(found="an answer", expected=THEIR_FAULT)
