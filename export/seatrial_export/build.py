"""From candidates to files: each conversion in a child of its own, two at a time where they do not wait for each other.

What cannot be built is `Lost`, with the reason, and costs nothing but itself.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, TypeVar

import msgspec

from seatrial.engines import obstacle
from seatrial.errors import ConversionFailed
from seatrial.machine import this_machine
from seatrial.settings import Settings
from seatrial.tensors import Signature
from seatrial_export import child, convert, package, prune, quantize
from seatrial_export.candidate import Candidate, Compression, Lost, Verdict
from seatrial_export.child import AT_ONCE, Limits
from seatrial_export.program import TORCH_PROGRAM
from seatrial_export.samples import calls, count, joined, write_arrays
from seatrial_export.source import Source
from seatrial_models.program import dynamic_axes
from seatrial_training.retrainable import NotRetrainable

Tell: TypeAlias = Callable[[str, str], None]
"""Called with a subject, often a candidate's name, and what is being done about it; from any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A file, not yet proved. `program` is what it was converted from, where that is not the source's own.

    `recorded` says how its compression was really done here.
    """

    candidate: Candidate
    model: Path
    program: Path | None = None
    recorded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Float:
    """What both float and INT8 candidates start from."""

    model: Path
    program: Path | None
    operators: tuple[str, ...]


class _NotApplicable(Exception):
    """The message is the reason, for the report."""


@contextmanager
def building(
    candidates: Sequence[Candidate], source: Source, *, folder: Path, settings: Settings, limits: Limits, tell: Tell
) -> "Iterator[list[Future[Built | Lost]]]":
    """Build while the block runs: one result for each candidate, in their order.

    Each child keeps its files and its log below `folder`. An error in the block ends the children that still run.
    """
    workshop = _Workshop(source=source, folder=folder, settings=settings, limits=limits, tell=tell)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # The float models come first in the queue: nothing that waits for one can keep it from being built.
        onnx = [each for each in candidates if not each.of_torch and obstacle(each.engine) is None]
        simplest = {candidate.pruned: candidate for candidate in reversed(onnx)}
        floats = {pruned: pool.submit(workshop.build_float, each) for pruned, each in simplest.items()}
        try:
            yield [pool.submit(workshop.finish, candidate, floats.get(candidate.pruned)) for candidate in candidates]
        except BaseException:
            workshop.given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


Answer = TypeVar("Answer", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workshop:
    source: Source
    folder: Path
    settings: Settings
    limits: Limits
    tell: Tell
    given_up: threading.Event = field(default_factory=threading.Event)

    def finish(self, candidate: Candidate, base: "Future[_Float] | None") -> Built | Lost:
        try:
            if why := obstacle(candidate.engine):
                raise _NotApplicable(why)
            if candidate.of_torch:
                return self._package(candidate)
            assert base is not None, "a candidate that starts from ONNX, and nothing to start from: this is a bug"
            return self._finish(candidate, base.result())
        except _NotApplicable as why:
            return Lost(candidate=candidate, verdict=Verdict.NOT_APPLICABLE, reason=str(why))
        except ConversionFailed as error:
            return Lost(
                candidate=candidate,
                verdict=Verdict.NOT_BUILT,
                reason=error.reason,
                log=error.log,
                command=error.command,
            )

    def _finish(self, candidate: Candidate, base: _Float) -> Built:
        if not candidate.quantized:
            return Built(candidate=candidate, model=base.model, program=base.program)
        return self._quantize(candidate, base)

    def build_float(self, candidate: Candidate) -> _Float:
        """The float model of `candidate`'s structure, which is the source's own unless it is pruned."""
        return self._prune(candidate) if candidate.pruned else self._convert(candidate)

    def _convert(self, candidate: Candidate) -> _Float:
        self.tell(candidate.name, "converting to ONNX")
        folder = self.folder / "convert"
        converted = self._run(convert, self._conversion(self.source.program), folder, convert.Converted)
        return _Float(model=folder / convert.MODEL, program=None, operators=converted.operators)

    def _prune(self, candidate: Candidate) -> _Float:
        retrainable = self.source.retrainable
        if isinstance(retrainable, NotRetrainable):
            raise _NotApplicable(f"pruning retrains, and {retrainable.reason}")
        if self.source.dataset is None:
            raise _NotApplicable(f"pruning retrains, and the data set '{retrainable.recipe.data}' is not here")
        self.tell(candidate.name, "pruning and fine-tuning")
        folder = self.folder / "prune"
        job = prune.Job(
            model=str(self.source.files),
            home=str(self.settings.home.absolute()),
            data=str(self.settings.data_folder.absolute()),
            epochs=self.settings.export.fine_tune_part,
            conversion=self._conversion(folder / prune.PROGRAM),
        )
        pruned = self._run(prune, job, folder, prune.Pruned, time_s=self.settings.export.fine_tune_s)
        return _Float(
            model=folder / convert.MODEL, program=folder / prune.PROGRAM, operators=pruned.converted.operators
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
            raise _NotApplicable("the model version is an ONNX file, and torch runs its own programs alone")
        self.tell(candidate.name, "compiling" if candidate.bound else "packaging")
        folder = self.folder / f"package-{candidate.name}"
        job = package.Job(program=str(self.source.program), compiled=candidate.bound)
        self._run(package, job, folder, package.Packaged)
        return Built(candidate=candidate, model=folder / package.MODEL)

    def _quantize(self, candidate: Candidate, base: _Float) -> Built:
        static = Compression.STATIC in candidate.compression
        able = quantize.QUANTIZABLE if static else quantize.MATRIX_PRODUCTS
        if not able & set(base.operators):
            raise _NotApplicable(f"the graph has none of {', '.join(sorted(able))}")
        self.tell(candidate.name, "quantizing")
        bits = quantize.weight_bits(this_machine())
        folder = self.folder / f"quantize-{candidate.name}"
        job = quantize.Job(
            model=str(base.model),
            mode="static" if static else "dynamic",
            weight_bits=bits,
            smallest=_smallest(self.source.signature),
        )
        if static:
            rows = list(calls(self.source.signature, self.source.calibration, size=quantize.CALIBRATION_CALL))
            write_arrays(folder / quantize.CALIBRATION, joined(rows))
            job = msgspec.structs.replace(job, calibration=quantize.CALIBRATION, rows=count(rows[0]))
        self._run(quantize, job, folder, quantize.Quantized)
        return Built(
            candidate=candidate,
            model=folder / quantize.MODEL,
            program=base.program,
            recorded=(f"{bits}-bit-weights",),
        )

    def _run(
        self, step: ModuleType, job: msgspec.Struct, folder: Path, answer: type[Answer], *, time_s: float | None = None
    ) -> Answer:
        limits = self.limits if time_s is None else replace(self.limits, time_s=time_s)
        return child.run(step.__name__, job, folder=folder, answer=answer, limits=limits, given_up=self.given_up)


def _smallest(signature: Signature) -> dict[str, int]:
    return {axis.name: axis.min for axis in signature.dynamic_axes}
