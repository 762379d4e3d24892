"""Golden requests: a few calls whose answers are recorded, for servers to replay on the hardware that they run on.

Real rows where there are any, alone and in batches, and edges. For a quantized variant only those whose largest output
is clear, so that another CPU with the same features cannot make another one the largest by rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from seatrial.bundle import Bound, Golden
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import Array, Signature
from seatrial_export.exam import ROWS_AT_ONCE, Exam
from seatrial_export.samples import Inputs, Outputs, Predict, PredictAll, calls, count, joined, take
from seatrial_export.verify import Proof, same_top1

SIZES = (1, 1, 2, 4)
"""Rows of the requests that are made of real rows."""
CLEAR = 2.0
"""How many times the rerun bound must lie between the largest output and the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Golden requests and the bounds that they keep."""

    golden: tuple[Golden, ...]
    source: dict[str, Bound]
    rerun: dict[str, Bound]


def record(exam: Exam, proof: Proof, *, source: Predict, variant: PredictAll) -> Recording:
    """Ask both models. Where no row has a clear largest output, which one it is goes unchecked."""
    calls_ = [*_real(exam, proof, variant), *(case.inputs for case in exam.cases if case.small)]
    asked = list(zip(calls_, map(source, calls_), variant(calls_), strict=True))
    clear = [each for each in asked if _clear(each[1], each[2], proof.rerun).all()]
    return Recording(
        golden=tuple(_golden(*each, signature=exam.signature) for each in clear or asked),
        source=proof.source if clear else _without_top1(proof.source),
        rerun=proof.rerun if clear else _without_top1(proof.rerun),
    )


def _real(exam: Exam, proof: Proof, variant: PredictAll) -> Iterator[Inputs]:
    """Requests of `SIZES` rows each, of the first rows that are clear, or simply the first where none is."""
    if exam.signature.batch is None:
        yield next(calls(exam.signature, exam.rows, size=1))
        return
    answers = joined(variant(list(calls(exam.signature, exam.rows, size=ROWS_AT_ONCE))))
    clear = np.flatnonzero(_clear(exam.source, answers, proof.rerun))
    chosen = clear if clear.size else np.arange(count(exam.rows))
    start = 0
    for size in SIZES:
        if size <= exam.signature.batch.max:
            yield take(exam.rows, np.take(chosen, np.arange(start, start + size), mode="wrap"))
        start += size


def _clear(source: Outputs, variant: Outputs, rerun: dict[str, Bound]) -> Array:
    """For each row, whether in every output that asks for it both agree on the largest, by a margin."""
    rows = np.ones(len(next(iter(variant.values()))), dtype=bool)
    for name, bound in rerun.items():
        if bound.top1 and variant[name].ndim > 1 and variant[name].shape[-1] > 1:
            top = np.sort(variant[name], axis=-1)
            margin = (top[..., -1] - top[..., -2]).reshape(len(rows), -1).min(axis=-1)
            rows &= same_top1(source[name], variant[name]) & (margin > CLEAR * bound.absolute)
    return rows


def _without_top1(bounds: dict[str, Bound]) -> dict[str, Bound]:
    return {name: msgspec.structs.replace(bound, top1=False) for name, bound in bounds.items()}


def _golden(inputs: Inputs, source: Outputs, variant: Outputs, *, signature: Signature) -> Golden:
    return Golden(
        request=InferRequest(tuple(Tensor(spec.name, spec.datatype, inputs[spec.name]) for spec in signature.inputs)),
        source=_tensors(source, signature),
        rerun=_tensors(variant, signature),
    )


def _tensors(outputs: Outputs, signature: Signature) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.datatype, outputs[spec.name]) for spec in signature.outputs)
