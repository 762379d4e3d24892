"""Whether verification finds what is wrong: faults are planted into exported graphs, and the exam says which it refuses.

An oracle that knows nothing of the exam decides which mutants answer differently: it asks many more inputs, at random sizes
and in random company, in ONNX Runtime without optimizations, and compares in double precision. Honest exports of the same
architectures (other seeds, sizes, versions of ONNX, optimized files, threads) must all pass.
"""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.bench import Bench
from benchmarks.faults import Mutant, mutants
from benchmarks.specimens import TASKS, Specimen, exported, make
from benchmarks.tables import table
from seatrial.errors import SeatrialError
from seatrial.tensors import Array
from seatrial_export.candidate import CANDIDATES, Candidate
from seatrial_export.choose import Budget
from seatrial_export.exam import Exam, set_exam
from seatrial_export.onnx_file import name_axes
from seatrial_export.program import reference
from seatrial_export.quality import by_agreement, least_cosine
from seatrial_export.samples import Inputs, Outputs, count
from seatrial_export.verify import Unfaithful, verify
from seatrial_models.program import dynamic_axes
from seatrial_serving.engines.onnxruntime import REFUSALS, OnnxRuntime

FLOAT, INT8 = (next(each for each in CANDIDATES if each.name == f"onnx-cpu-{name}") for name in ("fp32", "int8-static"))
EXAM_ROWS = 256
SEEDS = (0, 1, 2)
"""Of the first the float graph is mutated, of the first whose INT8 graph is as good as asked that one; all are exported
honestly."""
OPSETS = (18, 19, 21)
"""One for each seed, beside the one that export writes."""
MOST_FLOAT, MOST_INT8 = 2, 1
"""Mutants of a kind for each graph."""


# The oracle

CALLS = 60
ROUNDING, TOLERATED = 1e-5, 1e-4
"""How far float answers may lie apart, in proportion: what rounding does, and what verification promises to find."""
SAME_LARGEST, COSINE = 0.99, 0.999
"""What is asked of an INT8 variant without labels."""


class Change(StrEnum):
    NONE = "equal"
    LITTLE = "less than the tolerance"
    """Of a float graph: beyond rounding, but not beyond 1e-4. Of an INT8 graph: another answer, and still as near the float
    model as an INT8 variant must be."""
    REAL = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """`right` are the answers of the graph before the fault; `exact` those of the float graph."""

    calls: tuple[Inputs, ...]
    right: tuple[Outputs, ...]
    exact: tuple[Outputs, ...]
    quantized: bool

    def judge(self, graph: ModelProto) -> tuple[Change, float]:
        """And by how much its answers move, in proportion: infinity where it does not answer, or not with numbers."""
        found = _ask(graph, self.calls)
        if found is None or any(not _alike(answer, right) for answer, right in zip(found, self.right, strict=True)):
            return Change.REAL, math.inf
        moved = max(self._moved(found, name) for name in self.right[0])
        tolerated = self._as_good_as_asked(found) if self.quantized else moved <= TOLERATED
        return Change.NONE if moved <= ROUNDING else Change.LITTLE if tolerated else Change.REAL, moved

    def _moved(self, found: Sequence[Outputs], name: str) -> float:
        """By how much, in proportion to how large the answers are, and to 1."""
        scale = max(1.0, *(float(np.abs(right[name]).max()) for right in self.right))
        apart = (
            (_wide(answer[name]) - _wide(right[name]), _wide(right[name]))
            for answer, right in zip(found, self.right, strict=True)
        )
        return max(float((np.abs(distance) / (scale + np.abs(right))).max()) for distance, right in apart)

    def _as_good_as_asked(self, found: Sequence[Outputs]) -> bool:
        for name in self.exact[0]:
            answer = np.concatenate([_wide(each[name]) for each in found])
            exact = np.concatenate([_wide(each[name]) for each in self.exact])
            same = (answer.argmax(-1) == exact.argmax(-1)).reshape(len(exact), -1).all(-1).mean()
            a, b = answer.reshape(len(exact), -1), exact.reshape(len(exact), -1)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            if same < SAME_LARGEST or ((a * b).sum(1) / np.maximum(lengths, 1e-30)).mean() < COSINE:
                return False
        return True


def consult(specimen: Specimen, graph: Path, *, seed: int) -> Oracle:
    """The oracle for mutants of `graph`."""
    quantized = graph == specimen.quantized
    calls = tuple(_calls(specimen, np.random.default_rng(seed), in_range=quantized))
    right, exact = (_ask(onnx.load(each), calls) for each in (graph, specimen.graph))
    assert right is not None, "a graph that answers before anything was planted: this is a bug"
    assert exact is not None, "a graph that answers before anything was planted: this is a bug"
    return Oracle(calls=calls, right=tuple(right), exact=tuple(exact), quantized=quantized)


def _calls(specimen: Specimen, generator: np.random.Generator, *, in_range: bool) -> Iterator[Inputs]:
    """Batches of any size, every fifth a small one; of texts any length. `in_range`: only rows as they come, which INT8 was
    calibrated for."""
    for number in range(CALLS):
        rows = specimen.task.rows(generator, int(generator.integers(1, 65 if number % 5 else 4)))
        kind = "as they come" if in_range else ("as they come", "louder or quieter", "noise", "company")[number % 4]
        yield {name: _varied(array, kind, generator) for name, array in _cut(specimen, rows, generator).items()}


def _cut(specimen: Specimen, rows: Inputs, generator: np.random.Generator) -> Inputs:
    if (axis := specimen.signature.sequence) is None:
        return rows
    width = int(generator.integers(1, axis.max + 1))
    return {name: array[:, :width] for name, array in rows.items()}


def _varied(array: Array, kind: str, generator: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return generator.integers(0, 48, array.shape) if kind == "noise" else array
    if kind == "noise":
        return generator.uniform(-3, 3, array.shape).astype(array.dtype)
    if kind == "louder or quieter":
        return np.asarray(array * generator.choice([0, 0.01, 0.3, 3]), array.dtype)
    if kind == "company":
        loud = generator.random((len(array), *[1] * (array.ndim - 1))) < 0.5
        return np.where(loud, 10 * array, array)
    return array


def _ask(graph: ModelProto, calls: Sequence[Inputs]) -> list[Outputs] | None:
    """None where it refuses."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(names, dict(inputs)), strict=True)) for inputs in calls]
    except REFUSALS:
        return None


def _alike(answer: Outputs, right: Outputs) -> bool:
    return all(
        (answer[name].shape, answer[name].dtype) == (array.shape, array.dtype) and np.isfinite(answer[name]).all()
        for name, array in right.items()
    )


def _wide(array: Array) -> Array:
    return array.astype(np.float64)


# Verification


def sit(candidate: Candidate, graph: Path, specimen: Specimen, exam: Exam, *, threads: int = 1) -> tuple[str, float]:
    """Why export would not take the graph for a variant within the default budget, empty where it would; and how far it
    lies from the source, in proportion."""
    try:
        engine = OnnxRuntime({"main": graph}, signature=specimen.signature, options={}, threads=threads)
    except SeatrialError as error:
        return f"the engine cannot open it: {error}", math.inf
    try:
        proof = verify(candidate, engine.predict, exam)
    except Unfaithful as why:
        return str(why), math.inf
    finally:
        engine.close()
    quality, found = by_agreement(proof.agreement, rows=count(exam.rows)), proof.agreement
    enough = quality.value >= 1 - Budget().accuracy_drop and found.cosine >= least_cosine(Budget().accuracy_drop)
    reason = "" if enough or not candidate.lossy else f"agreement: {quality.value:.4f}, cosine {found.cosine:.5f}"
    return reason, found.max_relative


def check_of(reason: str) -> str:
    """Which check it was, of a refusal's sentence."""
    if reason.startswith("a row "):
        return "in company"
    if reason.startswith("the axis "):
        return "an axis became fixed"
    return re.sub(r" '.*'| \d+$", "", reason.partition(":")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A mutant, whether and by how much it answers differently, and why it was refused, if it was."""

    of: str
    mutant: Mutant
    change: Change
    moved: float
    reason: str

    def __str__(self) -> str:
        return f"{self.of}: {self.mutant.kind}, {self.mutant.place}, by {self.moved:.2g}"


@dataclass(slots=True, kw_only=True)
class Found:
    cases: list[Case] = field(default_factory=list)
    honest: Counter[str] = field(default_factory=Counter)
    """How many of each kind of honest export there were."""
    farthest: float = 0.0
    """How far any honest float export lies from its source, in proportion."""
    alarms: list[str] = field(default_factory=list)
    not_good_enough: list[str] = field(default_factory=list)
    """Honest INT8 graphs that are too far from the float ones for the budget."""


def measure(bench: Bench) -> str:
    found = Found()
    with tempfile.TemporaryDirectory(prefix="seatrial-mutants-") as folder:
        task = bench.progress.add_task("mutants", total=len(TASKS) * len(SEEDS))
        for name in TASKS:
            quantized = False
            for seed, opset in zip(SEEDS, OPSETS, strict=True):
                specimen = make(name, Path(folder) / f"{name}-{seed}", seed=seed)
                rows = specimen.task.rows(np.random.default_rng([seed, 4]), EXAM_ROWS)
                exam = set_exam(specimen.signature, rows, reference(specimen.program, specimen.signature))
                good = _be_honest(specimen, exam, found, Path(folder) / "honest.onnx", opset=opset)
                if seed == SEEDS[0]:
                    _mutate(specimen, FLOAT, specimen.graph, exam, found)
                if good and not quantized:
                    quantized = True
                    _mutate(specimen, INT8, specimen.quantized, exam, found)
                bench.progress.advance(task)
    return report(found)


def _mutate(specimen: Specimen, candidate: Candidate, graph: Path, exam: Exam, found: Found) -> None:
    oracle = consult(specimen, graph, seed=20)
    most = MOST_INT8 if candidate.quantized else MOST_FLOAT
    place = graph.with_name("mutant.onnx")
    for mutant in mutants(onnx.load(graph), most=most):
        onnx.save(mutant.graph, place)
        reason, _ = sit(candidate, place, specimen, exam)
        change, moved = oracle.judge(mutant.graph)
        of = f"{specimen.name} {candidate.precision}"
        found.cases.append(Case(of=of, mutant=mutant, change=change, moved=moved, reason=reason))


def _be_honest(specimen: Specimen, exam: Exam, found: Found, place: Path, *, opset: int) -> bool:
    """Note what is refused of the honest exports; whether the INT8 one is as good as asked."""
    for kind, graph, threads in _honest(specimen, place, opset=opset):
        found.honest[kind] += 1
        reason, distance = sit(FLOAT, graph, specimen, exam, threads=threads)
        if reason:
            found.alarms.append(f"{specimen.name}, {kind}: {reason}")
        else:
            found.farthest = max(found.farthest, distance)
    reason, _ = sit(INT8, specimen.quantized, specimen, exam)
    found.honest["static INT8"] += 1
    if reason:
        (found.not_good_enough if reason.startswith("agreement") else found.alarms).append(
            f"{specimen.name}, static INT8: {reason}"
        )
    return not reason


def _honest(specimen: Specimen, place: Path, *, opset: int) -> Iterator[tuple[str, Path, int]]:
    """Kinds of the same model, each written to `place` when it is its turn, and the threads to run it with."""
    yield "as exported", specimen.graph, 1
    yield "two threads", specimen.graph, 2
    levels = ort.GraphOptimizationLevel
    for kind, level in (("constants folded", levels.ORT_ENABLE_BASIC), ("fused for this CPU", levels.ORT_ENABLE_ALL)):
        options = ort.SessionOptions()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(place)
        options.log_severity_level = 4
        ort.InferenceSession(specimen.graph, options, providers=["CPUExecutionProvider"])
        yield kind, place, 1
    quant_pre_process(specimen.graph, place, skip_symbolic_shape=True)
    yield "prepared for quantization", place, 1
    model = exported(specimen, opset=opset)
    name_axes(model, dynamic_axes(specimen.signature))
    onnx.save(model, place)
    yield f"version {opset} of ONNX", place, 1


# The report


def report(found: Found) -> str:
    real = [case for case in found.cases if case.change is Change.REAL]
    missed = [case for case in real if not case.reason]
    honest = sum(found.honest.values()) - len(found.not_good_enough)
    rows = [
        [
            f"mutants that answer differently: all of {len(real)} refused",
            f"{len(real) - len(missed)}",
            "does not hold" if missed else "holds",
        ],
        [
            f"honest exports: none of {honest} refused",
            f"{len(found.alarms)}",
            "does not hold" if found.alarms else "holds",
        ],
    ]
    checks = Counter(check_of(case.reason) for case in real if case.reason)
    nearest = min((case.moved for case in real if case.of.endswith(FLOAT.precision)), default=math.nan)
    parts = [
        table(["must hold", "found", ""], rows),
        _by_graph(found.cases),
        table(["refused first by", "mutants"], [[check, str(number)] for check, number in checks.most_common()]),
        table(["kind", "changed", "refused"], _by_kind(real)),
        "Honest exports: " + ", ".join(f"{kind} {number}" for kind, number in found.honest.items()) + ".",
        f"In proportion to the magnitude of the output, no honest float export lies more than {found.farthest:.1g} from its "
        f"source, and no changed float graph less than {nearest:.1g} from the right one.",
        *_listed("Missed", map(str, missed)),
        *_listed("False alarms", found.alarms),
        *_listed(
            "Honest INT8 graphs that the budget does not admit, with reason: they are not counted, nor mutated",
            found.not_good_enough,
        ),
        *_listed(
            "Not refused, because float ones are less than 1e-4 away from the graph before the fault, and INT8 ones as near "
            "the float graph as is asked",
            (str(case) for case in found.cases if case.change is Change.LITTLE and not case.reason),
        ),
    ]
    return "\n\n".join(parts)


def _by_graph(cases: Sequence[Case]) -> str:
    rows = []
    for of in dict.fromkeys(case.of for case in cases):
        mine = [case for case in cases if case.of == of]
        real = [case for case in mine if case.change is Change.REAL]
        little = [case for case in mine if case.change is Change.LITTLE]
        equal = [case for case in mine if case.change is Change.NONE]
        rows.append([of, str(len(mine)), *(f"{len(group)} ({_refused(group)})" for group in (equal, little, real))])
    return table(["graph", "mutants", "equal (refused)", "within tolerance (refused)", "changed (refused)"], rows)


def _refused(cases: Sequence[Case]) -> int:
    return sum(bool(case.reason) for case in cases)


def _by_kind(real: Sequence[Case]) -> list[list[str]]:
    made = Counter(case.mutant.kind for case in real)
    refused = Counter(case.mutant.kind for case in real if case.reason)
    return [[kind, str(number), str(refused[kind])] for kind, number in made.items()]


def _listed(title: str, items: Iterator[str] | Sequence[str]) -> Iterator[str]:
    if found := [f"- {' '.join(item.split())[:240]}" for item in items]:
        yield f"{title}:\n\n" + "\n".join(found)
