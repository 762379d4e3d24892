"""Does a candidate answer what the source model answers, whatever it is asked and beside whom?

A float candidate must be equal within rounding. A lossy one may differ, by as much as its quality allows: here its
distance is measured, and only nonsense, a fixed batch, and answers that depend on neighbours are refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seatrial.bundle import Bound
from seatrial.bundle.evidence import Agreement
from seatrial.errors import EngineFailed, WrongInput
from seatrial.tensors import Array
from seatrial_export.candidate import Candidate
from seatrial_export.exam import ROWS_AT_ONCE, Case, Exam
from seatrial_export.samples import Outputs, Predict, answers

FLOAT_TOLERANCE = 1e-4
"""Absolute, for outputs of magnitude 1, plus relative."""
FLOAT_RERUN = 1e-5
"""What another CPU's float kernels may do."""
INT8_STEPS = 4
"""Quantization steps of the output by which another CPU's INT8 kernels may round differently."""
NEIGHBOURS_COST = 2.0
"""How many times its distance from the source, when alone, a quantized variant's answer may move because of neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How near the source it stays. `source` and `rerun` are the bounds that its golden requests will carry."""

    agreement: Agreement
    source: dict[str, Bound]
    rerun: dict[str, Bound]


class Unfaithful(Exception):
    """It answers differently; the message is the reason, for the report."""


def verify(candidate: Candidate, predict: Predict, exam: Exam, *, program: Predict | None = None) -> Proof:
    """Put `candidate` through the exam. `program` is what it was converted from, if that is not the source itself.

    Raises `Unfaithful` with the first thing that is wrong.
    """
    try:
        asked = [(case, _formed(case.name, predict(case.inputs), case.source)) for case in exam.cases]
        for case, answer in asked:
            if program is not None:
                _check_equal(case.name, answer, program(case.inputs), exam.scale)
            if not candidate.lossy:
                _check_equal(case.name, answer, case.source, exam.scale)
        distance = _distance(asked, exam)
        alone = [(case, answer) for case, answer in asked if case.alone]
        _check_company(predict, exam, _allowed_in_company(candidate, _distance(alone, exam), exam.scale))
        rows = _formed("real rows", answers(predict, exam.signature, exam.rows, size=ROWS_AT_ONCE), exam.source)
    except (EngineFailed, WrongInput) as error:
        raise Unfaithful(f"the engine refused inputs that the source takes: {error}") from error
    rerun = {name: _rerun_bound(candidate, rows[name], distance[name], exam.scale[name]) for name in exam.source}
    return Proof(
        agreement=agreement(exam.source, rows, cases=len(asked), distance=distance, scale=exam.scale),
        source={name: _source_bound(candidate, distance[name], rerun[name], exam.scale[name]) for name in exam.source},
        rerun=rerun,
    )


def agreement(
    source: Outputs, found: Outputs, *, cases: int, distance: dict[str, float], scale: dict[str, float]
) -> Agreement:
    """Over rows: how often the largest element is the same, and the mean cosine; of several outputs the worst."""
    return Agreement(
        cases=cases,
        max_absolute=max(distance.values()),
        max_relative=max(distance[name] / scale[name] for name in distance),
        top1=min(float(np.mean(same_top1(found[name], source[name]))) for name in source),
        cosine=min(float(np.mean(_cosine(found[name], source[name]))) for name in source),
    )


def same_top1(one: Array, other: Array) -> Array:
    """For each row, whether the largest element along the last axis is the same everywhere in it."""
    if one.ndim < 2:
        return np.asarray(one == other)
    return np.asarray((one.argmax(-1) == other.argmax(-1)).reshape(len(one), -1).all(axis=-1))


def _cosine(one: Array, other: Array) -> Array:
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    nonzero = lengths > 0
    return np.asarray(np.where(nonzero, (a * b).sum(axis=-1) / np.where(nonzero, lengths, 1), (a == b).all(axis=-1)))


def _formed(where: str, answer: Outputs, expected: Outputs) -> Outputs:
    """`answer`, if it has the types and shapes of the source's and is without NaN."""
    for name, array in expected.items():
        found = answer[name]
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            raise Unfaithful(
                f"{where}: '{name}' is {found.dtype}{list(found.shape)}, the source's is {array.dtype}{list(array.shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(found).all():
            raise Unfaithful(f"{where}: '{name}' holds NaN or infinity where the source has numbers")
    return answer


def _check_equal(where: str, found: Outputs, expected: Outputs, scale: dict[str, float]) -> None:
    for name, array in expected.items():
        bound = FLOAT_TOLERANCE * scale[name]
        apart = np.abs(found[name].astype(np.float64) - array.astype(np.float64))
        within = apart <= (bound + FLOAT_TOLERANCE * np.abs(array) if array.dtype.kind == "f" else 0)
        if not within.all():
            raise Unfaithful(f"{where}: '{name}' is {apart.max():.3g} from the source's, {bound:.3g} is allowed")


def _distance(asked: Sequence[tuple[Case, Outputs]], exam: Exam) -> dict[str, float]:
    """For each output, the largest distance from the source in any of the answers."""
    return {
        name: max((_apart(answer[name], case.source[name]) for case, answer in asked), default=0.0)
        for name in exam.source
    }


def _allowed_in_company(candidate: Candidate, distance: dict[str, float], scale: dict[str, float]) -> dict[str, float]:
    rounding = {name: FLOAT_TOLERANCE * limit for name, limit in scale.items()}
    if not candidate.quantized:
        return rounding
    return {name: max(limit, NEIGHBOURS_COST * distance[name]) for name, limit in rounding.items()}


def _check_company(predict: Predict, exam: Exam, allowed: dict[str, float]) -> None:
    for company in exam.companies:
        for party, alone, together in company.compare(predict):
            for name, array in alone.items():
                moved = _apart(together[name], array)
                if not moved <= allowed[name]:
                    raise Unfaithful(
                        f"a row is answered differently {party}: '{name}' moves by {moved:.3g}, "
                        f"{allowed[name]:.3g} is allowed"
                    )
                if moved > FLOAT_TOLERANCE * exam.scale[name] and not same_top1(together[name], array).all():
                    raise Unfaithful(f"a row is answered differently {party}: the largest of '{name}' is another one")


def _apart(one: Array, other: Array) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)), initial=0.0))


def _rerun_bound(candidate: Candidate, rows: Array, distance: float, scale: float) -> Bound:
    if rows.dtype.kind != "f":
        return Bound(absolute=0.0)
    if candidate.quantized:
        step = float(rows.max() - rows.min()) / 255
        return Bound(absolute=round_up(INT8_STEPS * step), top1=True, steps=INT8_STEPS)
    rounding = FLOAT_RERUN * scale if candidate.lossy else max(FLOAT_RERUN * scale, 2 * distance)
    return Bound(absolute=round_up(rounding), relative=FLOAT_RERUN)


def _source_bound(candidate: Candidate, distance: float, rerun: Bound, scale: float) -> Bound:
    """What was verified: for a lossy variant its largest distance, and what another CPU may add to it."""
    if not candidate.lossy:
        return Bound(absolute=round_up(FLOAT_TOLERANCE * scale), relative=FLOAT_TOLERANCE)
    return Bound(absolute=round_up(distance + rerun.absolute), relative=rerun.relative, top1=candidate.quantized)


def round_up(number: float) -> float:
    """To two significant digits, so that a bound can be read and does not hang on the last bit of a measurement."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.ceil(number / unit) * unit:.12g}")
