"""From candidates to files: each conversion in a child of its own, two at a time where they do not wait for each other.

What cannot be built is `Lost`, with the reason, and costs nothing but itself.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeAlias, TypeVar

import msgspec

from seatrial import engines
from seatrial.errors import ConversionFailed
from seatrial.machine import Machine, cores, this_machine
from seatrial.settings import Settings
from seatrial.tensors import Signature
from seatrial_export import convert, nncf, package, prune, quantize, sensitivity, sparsity, study, tensorrt, web
from seatrial_export.candidate import (
    ONNX_WEB,
    TENSORRT,
    Calibration,
    Candidate,
    Compression,
    Lost,
    Precision,
    Pruning,
    PruningKind,
    Verdict,
)
from seatrial_export.child import AT_ONCE, Bounded, Limits
from seatrial_export.contest import Sizes
from seatrial_export.elsewhere import GONE, Elsewhere
from seatrial_export.program import TORCH_PROGRAM
from seatrial_export.samples import calls, count, joined, write_arrays
from seatrial_export.sensitivity import Layer
from seatrial_export.shelf import Shelf
from seatrial_export.source import Source
from seatrial_export.workplace import undisturbed
from seatrial_models.program import dynamic_axes
from seatrial_training.retrainable import NotRetrainable

Tell: TypeAlias = Callable[[str, str], None]
"""Called with a subject, often a candidate's name, and what is being done about it; from any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A file, not yet proved. `program` is what it was converted from, where that is not the source's own.

    `name` is what its bundle calls it, if not "model"; `beside` are files that belong into the bundle too, by their names
    there. `recorded` says how its compression was really done here; `quantization` is the job of the child that quantized it.
    `note` is a clause for the report, of what was not done as it was meant.
    """

    candidate: Candidate
    model: Path
    name: str = ""
    beside: Mapping[str, Path] = field(default_factory=dict)
    program: Path | None = None
    recorded: tuple[str, ...] = ()
    quantization: quantize.Job | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Float:
    """What both float and INT8 candidates start from."""

    model: Path
    program: Path | None
    operators: tuple[str, ...]
    note: str = ""


class _NotApplicable(Exception):
    """The message is the reason, for the report."""


@contextmanager
def building(
    candidates: Sequence[Candidate], workshop: "Workshop"
) -> "Iterator[Mapping[Candidate, Future[Built | Lost]]]":
    """Build while the block runs: a result for each candidate, in the order in which they are begun.

    What takes long to build is begun last. An error in the block ends the children that still run.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        underway: dict[Candidate, Future[Built | Lost]] = {}
        floats: dict[Pruning | None, Future[_Float]] = {}
        try:
            for _, some in groupby(sorted(candidates, key=_effort), key=_effort):
                alike = list(some)
                # Their float models come first in the queue: nothing that waits for one can keep it from being built.
                onnx = [each for each in alike if not each.of_torch and workshop.obstacle_to_building(each) is None]
                simplest = {candidate.pruning: candidate for candidate in reversed(onnx)}
                new = {pruning: each for pruning, each in simplest.items() if pruning not in floats}
                alone = len(new) == 1 and None not in new
                floats |= {
                    pruning: pool.submit(workshop.build_float, each, alone=alone) for pruning, each in new.items()
                }
                underway |= {each: pool.submit(workshop.finish, each, floats.get(each.pruning)) for each in alike}
            yield underway
        except BaseException:
            workshop.given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _effort(candidate: Candidate) -> int:
    return candidate.effort


Answer = TypeVar("Answer", bound=msgspec.Struct)

KINDS: Mapping[PruningKind, prune.Kind] = {
    PruningKind.CHANNELS: "channels",
    PruningKind.HEADS: "heads",
    PruningKind.GATED: "gated",
    PruningKind.MAGNITUDE: "magnitude",
    PruningKind.TWO_OF_FOUR: "2:4",
}
"""What training calls what is taken out."""
BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})
WORKING_PART = 0.8
"""The part of its time after which a child that can end with what it has does so. In the rest it writes that down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where one model version is built. Each child keeps its files and its log below `folder`.

    Candidates of the targets in `elsewhere` are built for the machine there, and those that are bound to one, on it. `sizes` are
    those that will be timed.
    """

    source: Source
    folder: Path
    settings: Settings
    limits: Limits
    tell: Tell
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    given_up: threading.Event = field(default_factory=threading.Event)

    def finish(self, candidate: Candidate, base: "Future[_Float] | None") -> Built | Lost:
        try:
            if why := self.obstacle_to_building(candidate):
                raise _NotApplicable(why)
            if candidate.of_torch:
                return self._package(candidate)
            assert base is not None, "a candidate that starts from ONNX, and nothing to start from: this is a bug"
            made = self._finish(candidate, base.result())
            return self._plan(made) if candidate.target == TENSORRT else made
        except _NotApplicable as why:
            return Lost(candidate=candidate, verdict=Verdict.NOT_APPLICABLE, reason=str(why))
        except ConversionFailed as error:
            return unbuilt(candidate, error)
        except GONE as why:
            return Lost(candidate=candidate, verdict=Verdict.NOT_BUILT, reason=str(why))

    def obstacle_to_building(self, candidate: Candidate) -> str | None:
        """Why it cannot be built, or cannot run on the other machine where it is to run, in one clause."""
        if candidate.target == ONNX_WEB and (why := web.obstacle_to_building(self.settings)):
            return why
        there = self.elsewhere.get(candidate.target)
        return there.obstacle(candidate.target) if there else engines.obstacle_to_building(candidate.engine)

    def _machine(self, candidate: Candidate) -> Machine:
        there = self.elsewhere.get(candidate.target)
        return there.machine if there else this_machine()

    def _finish(self, candidate: Candidate, base: _Float) -> Built:
        if candidate.precision is Precision.BF16 and not BF16_FEATURES & set(self._machine(candidate).features):
            raise _NotApplicable(f"this CPU has none of {', '.join(sorted(BF16_FEATURES))}")
        if candidate.precision in (Precision.FP32, Precision.BF16):  # it is the engine that computes in BF16
            beside = web.beside(self.settings) if candidate.target == ONNX_WEB else {}
            return Built(candidate=candidate, model=base.model, beside=beside, program=base.program, note=base.note)
        if Compression.NNCF in candidate.compression:
            return self._quantize_for_openvino(candidate, base)
        return self._quantize(candidate, base)

    def build_float(self, candidate: Candidate, *, alone: bool = False) -> _Float:
        """The float model of `candidate`'s structure, which is the source's own unless it is pruned: on all cores, if it is the
        last that is built and `alone`."""
        if candidate.pruning is None:
            return self._convert(candidate)
        return self._prune(candidate, candidate.pruning, threads=cores() if alone else self.limits.threads)

    def _convert(self, candidate: Candidate) -> _Float:
        self.tell(candidate.name, "converting to ONNX")
        folder = self.folder / "convert"
        job = self._conversion(self.source.program)
        converted = self._run(convert, job, folder, convert.Converted, limits=self._patient)
        return _Float(model=folder / convert.MODEL, program=None, operators=converted.operators)

    def obstacle_to_teaching(self) -> str | None:
        """Why nothing can be taken out of the model, in a clause."""
        retrainable = self.source.retrainable
        if isinstance(retrainable, NotRetrainable):
            return retrainable.reason
        return f"the data set '{retrainable.recipe.data}' is not here" if self.source.dataset is None else None

    def sparser(self, *, allowed: float, time_s: float) -> sparsity.Searched:
        """Ask how many channels may go, where nothing keeps them from being taken out. Raises `ConversionFailed`."""
        self.tell("search for a sparsity", f"teaching {sparsity.TRIALS} models a little, each with other parts gone")
        job = sparsity.Job(
            model=str(self.source.files),
            home=str(self.settings.home.absolute()),
            data=str(self.settings.data_folder.absolute()),
            epochs=self.settings.export.fine_tune_part,
            allowed=allowed,
        )
        return self._run_for(
            sparsity, job, self.folder / "sparsity", sparsity.Searched, limits=replace(self.limits, time_s=time_s)
        )

    def _prune(self, candidate: Candidate, pruning: Pruning, *, threads: int) -> _Float:
        if why := self.obstacle_to_teaching():
            raise _NotApplicable(f"pruning retrains, and {why}")
        self.tell(candidate.name, "pruning and teaching")
        folder = self.folder / f"prune-{pruning.name}"
        job = prune.Job(
            model=str(self.source.files),
            kind=KINDS[pruning.kind],
            sparsity=pruning.percent / 100,
            home=str(self.settings.home.absolute()),
            data=str(self.settings.data_folder.absolute()),
            epochs=self.settings.export.fine_tune_part,
            conversion=self._conversion(folder / prune.PROGRAM),
        )
        limits = replace(self.limits, time_s=self.settings.export.fine_tune_s, threads=threads)
        pruned = self._run_for(prune, job, folder, prune.Pruned, limits=limits)
        note = (
            f"the time was short for {candidate.name}: its fine-tuning came to epoch {pruned.epochs} of {pruned.meant}, "
            "and its learning rate fell sooner than was meant"
        )
        return _Float(
            model=folder / convert.MODEL,
            program=folder / prune.PROGRAM,
            operators=pruned.converted.operators,
            note="" if pruned.whole else note,
        )

    def _conversion(self, program: Path) -> convert.Job:
        signature = self.source.signature
        return convert.Job(
            program=str(program),
            inputs=tuple(spec.name for spec in signature.inputs),
            outputs=tuple(spec.name for spec in signature.outputs),
            axes=dynamic_axes(signature),
            smallest=_smallest(signature),
        )

    def _package(self, candidate: Candidate) -> Built:
        if self.source.program.suffix != TORCH_PROGRAM:
            raise _NotApplicable("the model version is an ONNX file, and this is made of torch's programs alone")
        if why := package.obstacle(candidate.engine.name):
            raise _NotApplicable(why)
        self.tell(candidate.name, "compiling" if candidate.bound else "packaging")
        folder = self.folder / f"package-{candidate.name}"
        job = package.Job(
            program=str(self.source.program), engine=candidate.engine.name, signature=self.source.signature
        )
        if candidate.bound and (there := self.elsewhere.get(candidate.target)):
            return Built(candidate=candidate, model=there.package(job, folder=folder, limits=self._patient))
        model = self._run(package, job, folder, package.Packaged, limits=self._patient).model
        of_it = [path for path in (folder / Path(model).parts[0]).rglob("*") if path.is_file()]
        beside = {path.relative_to(folder).as_posix(): path for path in of_it if path != folder / model}
        return Built(candidate=candidate, model=folder / model, name=model, beside=beside)

    def _plan(self, made: Built) -> Built:
        """A plan of what was made for TensorRT, by TensorRT's own builder, where it is to run."""
        candidate, there = made.candidate, self.elsewhere.get(made.candidate.target)
        self.tell(candidate.name, f"building with TensorRT{f' on {there.name}' if there else ''}")
        engine = candidate.engine.name
        hardware = there.hardware(engine) if there else engines.fingerprint(engine)
        folder = self.folder / f"plan-{candidate.name}"
        job = tensorrt.Job(
            model=str(made.model),
            precision=candidate.precision,
            signature=self.source.signature,
            usual=self.sizes.usual(self.source.signature),
            hardware=hardware,
            memory_bytes=there.memory_bytes if there else self.limits.memory_bytes,
            timings=str(self._shelf.kernel_timings(hardware)),
        )
        if there:
            planned = there.plan(job, folder=folder, limits=self.limits)
        else:
            with undisturbed(self.settings.home):  # the builder takes the kernels that it times best
                planned = self._run(tensorrt, job, folder, tensorrt.Planned)
        layers = ", ".join(f"{number} in {precision}" for precision, number in planned.layers.items())
        return replace(
            made,
            model=folder / tensorrt.PLAN,
            recorded=(*made.recorded, *(["fp16-between"] if candidate.quantized else [])),
            note="; ".join(filter(None, (made.note, f"TensorRT's layers of {candidate.name}: {layers}"))),
        )

    def _quantize(self, candidate: Candidate, base: _Float) -> Built:
        mode, smoothed = _mode(candidate), Compression.SMOOTHED in candidate.compression
        able = quantize.PRODUCTS_OF_SEQUENCES if smoothed else quantize.ABLE[mode]
        if able and not able & set(base.operators):
            raise _NotApplicable(f"the graph has none of {', '.join(sorted(able))}")
        self.tell(candidate.name, "quantizing")
        bits = _weight_bits(candidate, self._machine(candidate))
        folder = self.folder / f"quantize-{candidate.name}"
        job = quantize.Job(
            model=str(base.model),
            mode=mode,
            weight_bits=bits,
            smallest=_smallest(self.source.signature),
            method=candidate.calibration,
            smoothed=smoothed,
            steps=_steps(candidate),
        )
        if mode == "static":
            calibration, rows = self._calibration(folder)
            job = msgspec.structs.replace(job, calibration=str(calibration), rows=rows)
        done = self._run(quantize, job, folder, quantize.Quantized)
        if smoothed and not done.smoothed:
            raise _NotApplicable("none of its activations becomes easier to quantize by it")
        return Built(
            candidate=candidate,
            model=folder / quantize.MODEL,
            program=base.program,
            recorded=(f"{bits}-bit-weights",) if candidate.quantized else (),
            quantization=job,
            note=base.note,
        )

    def _quantize_for_openvino(self, candidate: Candidate, base: _Float) -> Built:
        if find_spec(nncf.PACKAGE) is None:
            raise _NotApplicable(
                f"the Python package '{nncf.PACKAGE}' is not installed; pip install 'seatrial[nncf]' brings it"
            )
        if not quantize.QUANTIZABLE & set(base.operators):
            raise _NotApplicable(f"the graph has none of {', '.join(sorted(quantize.QUANTIZABLE))}")
        self.tell(candidate.name, "quantizing")
        bits = quantize.weight_bits(self._machine(candidate))
        folder = self.folder / f"quantize-{candidate.name}"
        calibration, rows = self._calibration(folder)
        job = nncf.Job(
            model=str(base.model),
            weight_bits=bits,
            calibration=str(calibration),
            rows=rows,
            transformer="LayerNormalization" in base.operators,
        )
        self._run(nncf, job, folder, nncf.Quantized)
        return Built(
            candidate=candidate,
            model=folder / nncf.MODEL,
            beside={nncf.WEIGHTS: folder / nncf.WEIGHTS},
            program=base.program,
            recorded=(f"{bits}-bit-weights",),
            note=base.note,
        )

    def _calibration(self, folder: Path) -> tuple[Path, int]:
        """A file in `folder` with rows to calibrate on, and how many of them a call takes."""
        rows = list(calls(self.source.signature, self.source.calibration, size=quantize.CALIBRATION_CALL))
        path = folder / quantize.CALIBRATION
        write_arrays(path, joined(rows))
        return path, count(rows[0])

    def sensitivity(self, candidate: Candidate, base: Built) -> tuple[Layer, ...]:
        """What INT8 costs each layer of `base`, the worst first. Raises `ConversionFailed`."""
        self.tell(candidate.name, "asking which layers INT8 harms")
        assert base.quantization is not None, "the layers of what was not quantized: this is a bug"
        shelf = self._shelf
        notes = shelf.notes(sensitivity.__name__, base.quantization) if shelf.most_bytes else None
        job = sensitivity.Job(quantization=base.quantization, notes=str(notes) if notes else sensitivity.NOTES)
        return self._run_for(sensitivity, job, self.folder / f"layers-{candidate.name}", sensitivity.Measured).layers

    def study(self, target: str, base: Built, *, layers: Sequence[str], rows: study.Rows, trials: int) -> study.Studied:
        """Try `trials` finer forms of `base`, of which the last `layers` are the first to be INT8. Raises `ConversionFailed`."""
        self.tell(f"search for {target}", f"trying {trials} forms of {base.candidate.name}")
        assert base.quantization is not None, "a search among forms of what was not quantized: this is a bug"
        folder = self.folder / f"study-{target}"
        write_arrays(folder / study.ROWS, rows.inputs)
        if rows.labels is not None:
            write_arrays(folder / study.LABELS, {study.LABELS: rows.labels})
        job = study.Job(
            quantization=msgspec.structs.replace(base.quantization, method=Calibration.MIN_MAX),
            layers=tuple(layers),
            trials=trials,
            embeds=self.source.embeds,
        )
        return self._run_for(study, job, folder, study.Studied)

    def refine(self, candidate: Candidate, base: Built, layers: Sequence[str]) -> Built:
        """`base` in the form that `candidate` names, of whose `layers` the worst come first. Raises `ConversionFailed`."""
        self.tell(candidate.name, "quantizing")
        assert base.quantization is not None, "a finer form of what was not quantized: this is a bug"
        folder = self.folder / f"quantize-{candidate.name}"
        job = msgspec.structs.replace(
            base.quantization,
            method=candidate.calibration,
            cut_ppm=candidate.cut_ppm,
            floats=tuple(layers[: candidate.floats]),
        )
        self._run(quantize, job, folder, quantize.Quantized)
        return Built(
            candidate=candidate,
            model=folder / quantize.MODEL,
            program=base.program,
            recorded=base.recorded,
            quantization=job,
        )

    def mix(self, candidate: Candidate, base: Built, floats: Sequence[str]) -> Built:
        """`base` once more, with these of its layers in float. Raises `ConversionFailed`."""
        self.tell(candidate.name, f"keeping {len(floats)} layer{'s' if len(floats) > 1 else ''} in float")
        assert base.quantization is not None, "the layers of what was not quantized: this is a bug"
        folder = self.folder / f"quantize-{candidate.name}-{len(floats)}"
        job = msgspec.structs.replace(base.quantization, floats=tuple(floats))
        self._run(quantize, job, folder, quantize.Quantized)
        smoothed = [Compression.SMOOTHED] if job.smoothed else []
        return Built(
            candidate=candidate,
            model=folder / quantize.MODEL,
            program=base.program,
            recorded=(*base.recorded, *smoothed, f"{len(floats)}-float-layers"),
            quantization=job,
        )

    @property
    def _patient(self) -> Limits:
        """Of what is made without loss: each target has that at least, however little time there is for the whole export."""
        return replace(self.limits, until=math.inf)

    @property
    def _shelf(self) -> Shelf:
        return Shelf.of(self.settings, self.source.dataset)

    def _run(
        self, step: ModuleType, job: msgspec.Struct, folder: Path, answer: type[Answer], *, limits: Limits | None = None
    ) -> Answer:
        return self._shelf.run(
            step.__name__,
            job,
            folder=folder,
            answer=answer,
            limits=limits or self.limits,
            given_up=self.given_up,
        )

    def _run_for(
        self, step: ModuleType, job: Bounded, folder: Path, answer: type[Answer], *, limits: Limits | None = None
    ) -> Answer:
        """As `_run`, of a child that ends with what it has before it would be killed."""
        limits = limits or self.limits
        job = msgspec.structs.replace(job, for_s=WORKING_PART * limits.left_s(time.monotonic()))
        return self._run(step, job, folder, answer, limits=limits)


def unbuilt(candidate: Candidate, error: ConversionFailed) -> Lost:
    return Lost(
        candidate=candidate, verdict=Verdict.NOT_BUILT, reason=error.reason, log=error.log, command=error.command
    )


def _mode(candidate: Candidate) -> quantize.Mode:
    if candidate.precision is Precision.FP16:
        return "half"
    if candidate.static:
        return "static"
    return "weights" if Compression.WEIGHTS in candidate.compression else "dynamic"


def _steps(candidate: Candidate) -> quantize.Steps:
    if candidate.target != TENSORRT:
        return "u8"
    return "e4m3" if candidate.precision is Precision.FP8 else "s8"


def _weight_bits(candidate: Candidate, machine: Machine) -> Literal[4, 7, 8]:
    """Blocks of weights are multiplied with signed numbers, by kernels whose sums do not saturate; a GPU's never do."""
    if candidate.target == TENSORRT:
        return 8
    if candidate.precision is Precision.INT4:
        return 4
    return 8 if Compression.WEIGHTS in candidate.compression else quantize.weight_bits(machine)


def _smallest(signature: Signature) -> dict[str, int]:
    return {axis.name: axis.min for axis in signature.dynamic_axes}
