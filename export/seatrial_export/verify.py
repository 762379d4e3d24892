"""Does a candidate answer what the source model answers, whatever it is asked and beside whom?

A float candidate must be equal within rounding. A lossy one may differ, by as much as its quality allows: here its
distance is measured, and only nonsense, a fixed batch, and answers that depend on neighbours are refused.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import numpy as np

from seatrial.bundle import Bound
from seatrial.bundle.evidence import Agreement
from seatrial.errors import EngineFailed, WrongInput
from seatrial.tensors import Array
from seatrial_export.candidate import Candidate
from seatrial_export.exam import ROWS_AT_ONCE, Case, Exam
from seatrial_export.samples import Outputs, Predict, answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """For answers of one precision: absolute for outputs of magnitude 1, plus relative."""

    equal: float
    """How far two that ought to be the same may lie apart."""
    rerun: float
    """What another CPU's float kernels may do."""


TOLERANCES: Mapping[str, Tolerance] = {
    "fp64": Tolerance(equal=1e-9, rerun=1e-10),
    "fp32": Tolerance(equal=1e-4, rerun=1e-5),
    "fp16": Tolerance(equal=1e-2, rerun=5e-3),
    "bf16": Tolerance(equal=8e-2, rerun=4e-2),
}
"""README.md says why so much and no more."""
TOGETHER = 10.0
"""How many times `equal` all rows together may lie from the source's, in proportion to how large those are."""
INT8_STEPS = 4
"""Quantization steps of the output by which another CPU's INT8 kernels may round differently."""
EQUALLY_NEAR = 1e-6
"""Cosines that differ by no more are the same."""
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


class Unanswered(Unfaithful):
    """A refusal, which may be chance, or something of another type or shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounding:
    """What rounding may do to one output, whose magnitude is `scale`."""

    tolerance: Tolerance
    scale: float

    @property
    def absolute(self) -> float:
        return self.tolerance.equal * self.scale


def verify(candidate: Candidate, predict: Predict, exam: Exam, *, program: Predict | None = None) -> Proof:
    """Put `candidate` through the exam. `program` is what it was converted from, if that is not the source itself.

    Raises `Unfaithful` with the first thing that is wrong.
    """
    rounding = {
        name: _Rounding(tolerance=_tolerance(candidate, array), scale=exam.scale[name])
        for name, array in exam.source.items()
    }
    cases = exam.cases if candidate.lossy else exam.cases + exam.tables
    asked = [(case, _answer(case, predict, exam)) for case in cases]
    for case, answer in asked:
        if program is not None:
            _check_equal(case.name, answer, program(case.inputs), rounding)
        if not candidate.lossy:
            _check_equal(case.name, answer, case.source, rounding)
    ordinary = [(case, answer) for case, answer in asked if case.ordinary]
    alone = _distance([(case, answer) for case, answer in ordinary if case.alone], exam)
    with _asking("rows in company"):
        _check_company(predict, exam, rounding, _allowed_in_company(candidate, alone, rounding))
    with _asking("real rows"):
        rows = answers(predict, exam.signature, exam.rows, size=ROWS_AT_ONCE)
    _check_formed("real rows", rows, exam.source)
    if not candidate.lossy:
        _check_equal("real rows", rows, exam.source, rounding)
        _check_together(rows, exam.source, rounding)
    on_rows = Case(name="real rows", inputs=exam.rows, source=exam.source)
    distance = _distance([*ordinary, (on_rows, rows)], exam)
    rerun = {name: _rerun_bound(candidate, rows[name], distance[name], rounding[name]) for name in exam.source}
    if exam.embeds:
        rerun = {name: msgspec.structs.replace(bound, top1=False) for name, bound in rerun.items()}
    return Proof(
        agreement=agreement(
            exam.source, rows, cases=len(asked), distance=distance, scale=exam.scale, embeds=exam.embeds
        ),
        source={name: _source_bound(candidate, distance[name], rerun[name], rounding[name]) for name in exam.source},
        rerun=rerun,
    )


def _tolerance(candidate: Candidate, source: Array) -> Tolerance:
    """That of the answers' precision, or of a lossy candidate's own where that is coarser.

    Doubles that are all single-precision numbers were computed in single precision.
    """
    precision = {2: "fp16", 4: "fp32", 8: "fp64"}[source.dtype.itemsize] if source.dtype.kind == "f" else "fp32"
    with np.errstate(over="ignore"):
        if precision == "fp64" and (source == source.astype(np.float32)).all():
            precision = "fp32"
    found = TOLERANCES[precision]
    own = TOLERANCES.get(candidate.precision, found) if candidate.lossy else found
    return max(found, own, key=lambda each: each.equal)


def _answer(case: Case, predict: Predict, exam: Exam) -> Outputs:
    """What the candidate answers, if it has the form of the source's answer and is without NaN."""
    try:
        return _formed_answer(case, predict)
    except Unanswered as why:
        along = [each for each in exam.cases if each.axis and each.axis == case.axis]
        answered = [each.size for each in along if _is_answered(each, predict)]
        if len(answered) != 1:
            raise
        others = ", ".join(str(each.size) for each in along if each.size not in answered)
        raise Unfaithful(
            f"the axis '{case.axis}' became fixed at {answered[0]}: {others} are not answered ({why})"
        ) from why


def _formed_answer(case: Case, predict: Predict) -> Outputs:
    with _asking(case.name):
        answer = predict(case.inputs)
    _check_formed(case.name, answer, case.source)
    return answer


def _is_answered(case: Case, predict: Predict) -> bool:
    try:
        _formed_answer(case, predict)
    except Unfaithful:
        return False
    return True


@contextmanager
def _asking(where: str) -> Iterator[None]:
    try:
        yield
    except (EngineFailed, WrongInput) as error:
        raise Unanswered(f"{where}: the engine refused inputs that the source takes: {error}") from error


def agreement(
    source: Outputs,
    found: Outputs,
    *,
    cases: int,
    distance: dict[str, float],
    scale: dict[str, float],
    embeds: bool = False,
) -> Agreement:
    """Over rows: how often the largest element is the same, or of embeddings the nearest other row, and the mean cosine; of
    several outputs the worst."""
    same = same_neighbour if embeds else same_top1
    return Agreement(
        cases=cases,
        max_absolute=max(distance.values()),
        max_relative=max(distance[name] / scale[name] for name in distance),
        top1=min(float(np.mean(same(found[name], source[name]))) for name in source),
        cosine=min(float(np.mean(_cosine(found[name], source[name]))) for name in source),
    )


def same_top1(one: Array, other: Array) -> Array:
    """For each row, whether the largest element along the last axis is the same everywhere in it. NaN is never."""
    if one.ndim < 2:
        return np.asarray(one == other)
    same = (one.argmax(-1) == other.argmax(-1)) & (one == one).all(-1) & (other == other).all(-1)
    return np.asarray(same.reshape(len(one), -1).all(axis=-1))


def same_neighbour(one: Array, other: Array) -> Array:
    """For each row, whether the row that lies nearest to it is nearest by both. Rows that are equally near are one."""
    nearness = []
    for rows in (one, other):
        unit = _unit(rows.reshape(len(rows), -1).astype(np.float64))
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -np.inf)
        nearness.append(cosines)
    found, wanted = nearness
    chosen = np.take_along_axis(wanted, found.argmax(-1)[:, None], axis=-1)[:, 0]
    return np.asarray(chosen >= wanted.max(-1) - EQUALLY_NEAR)


def _cosine(one: Array, other: Array) -> Array:
    """Of each row; 0 where either is NaN, infinite or all zeros, unless the two are equal."""
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
    cosine = (_unit(a) * _unit(b)).sum(axis=-1)
    return np.where((a == b).all(axis=-1), 1.0, np.nan_to_num(cosine, nan=0.0))


def _unit(rows: Array) -> Array:
    """Each row at length 1, by way of a largest element of 1, so that no square is too large or too small."""
    with np.errstate(invalid="ignore", over="ignore"):
        for length in (np.max, np.linalg.norm):
            lengths = length(np.abs(rows), axis=-1, keepdims=True) if rows.shape[-1] else 1.0
            rows = rows / np.where(lengths > 0, lengths, 1.0)
    return rows


def _check_formed(where: str, answer: Outputs, expected: Outputs) -> None:
    """It has the types and shapes of the source's answer and is without NaN."""
    for name, array in expected.items():
        found = answer[name]
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            raise Unanswered(
                f"{where}: '{name}' is {found.dtype}{list(found.shape)}, the source's is {array.dtype}{list(array.shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(found).all():
            raise Unfaithful(f"{where}: '{name}' holds NaN or infinity where the source has numbers")


def _check_equal(where: str, found: Outputs, expected: Outputs, rounding: Mapping[str, _Rounding]) -> None:
    for name, array in expected.items():
        if array.dtype.kind != "f":
            if not np.array_equal(found[name], array):
                raise Unfaithful(f"{where}: '{name}' is not the source's in {np.sum(found[name] != array)} elements")
            continue
        bound = rounding[name].absolute
        apart = np.abs(found[name].astype(np.float64) - array.astype(np.float64))
        if not (apart <= bound + rounding[name].tolerance.equal * np.abs(array)).all():
            raise Unfaithful(f"{where}: '{name}' is {apart.max():.3g} from the source's, {bound:.3g} is allowed")


def _check_together(found: Outputs, expected: Outputs, rounding: Mapping[str, _Rounding]) -> None:
    """Answers that are small all over must be the source's, not only small: over all rows, in proportion to their size.

    What sums of numbers of magnitude 1 may leave, where they cancel out, is nothing.
    """
    for name, array in expected.items():
        if array.dtype.kind == "f":
            equal = rounding[name].tolerance.equal
            apart, size = _mean_size(found[name].astype(np.float64) - array), _mean_size(array)
            if not apart <= max(TOGETHER * equal * size, equal / 100):
                raise Unfaithful(
                    f"real rows: '{name}' is {apart:.3g} from the source's on average, which is {size:.3g} large; "
                    f"{TOGETHER * equal:.2g} of that is allowed"
                )


def _mean_size(array: Array) -> float:
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


def _distance(asked: Sequence[tuple[Case, Outputs]], exam: Exam) -> dict[str, float]:
    """For each output, the largest distance from the source in any of the answers."""
    return {
        name: max((_apart(answer[name], case.source[name]) for case, answer in asked), default=0.0)
        for name in exam.source
    }


def _allowed_in_company(
    candidate: Candidate, distance: Mapping[str, float], rounding: Mapping[str, _Rounding]
) -> dict[str, float]:
    cost = NEIGHBOURS_COST if candidate.quantized else 0.0
    return {name: max(limit.absolute, cost * distance[name]) for name, limit in rounding.items()}


def _check_company(
    predict: Predict, exam: Exam, rounding: Mapping[str, _Rounding], allowed: Mapping[str, float]
) -> None:
    for company in exam.companies:
        for party, alone, together in company.compare(predict):
            _check_formed(f"a row {party}", together, alone)
            for name, array in alone.items():
                moved = _apart(together[name], array)
                if not moved <= allowed[name]:
                    raise Unfaithful(
                        f"a row is answered differently {party}: '{name}' moves by {moved:.3g}, "
                        f"{allowed[name]:.3g} is allowed"
                    )
                if moved <= rounding[name].absolute or exam.embeds:
                    continue
                if not same_top1(together[name], array).all():
                    raise Unfaithful(f"a row is answered differently {party}: the largest of '{name}' is another one")


def _apart(one: Array, other: Array) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)), initial=0.0))


def _rerun_bound(candidate: Candidate, rows: Array, distance: float, rounding: _Rounding) -> Bound:
    if rows.dtype.kind != "f":
        return Bound(absolute=0.0)
    if candidate.quantized:
        step = float(rows.max() - rows.min()) / 255
        return Bound(absolute=round_up(INT8_STEPS * step), top1=True, steps=INT8_STEPS)
    rerun = rounding.tolerance.rerun
    limit = rerun * rounding.scale if candidate.lossy else max(rerun * rounding.scale, 2 * distance)
    return Bound(absolute=round_up(limit), relative=rerun)


def _source_bound(candidate: Candidate, distance: float, rerun: Bound, rounding: _Rounding) -> Bound:
    """What was verified: for a lossy variant its largest distance, and what another CPU may add to it."""
    if not candidate.lossy:
        return Bound(absolute=round_up(rounding.absolute), relative=rounding.tolerance.equal)
    return Bound(absolute=round_up(distance + rerun.absolute), relative=rerun.relative, top1=rerun.top1)


def round_up(number: float) -> float:
    """To two significant digits, so that a bound can be read and does not hang on the last bit of a measurement."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.ceil(number / unit) * unit:.12g}")
