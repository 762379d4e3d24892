"""Models that answer as one, each fed with what the request gives or another of them answers.

Tensors go from one model's answer to the next one's queue, within this process. For everybody else an ensemble is a
generation like any other, with a queue, deadlines and metrics; its engines are pipelines, which compute nothing themselves.
The models are found anew for each batch, so a swap of one of them is a swap of that step.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from seatrial.bundle import MAIN
from seatrial.errors import DeadlinePassed, EngineFailed, InvalidSource, SeatrialError
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import BATCH, Array, DynamicAxis, Signature, TensorSpec
from seatrial_serving.generation import Generation
from seatrial_serving.workers import SLOTS, Batch, Outputs, Owner, slice_outputs

Find: TypeAlias = Callable[[str, str], Generation]
"""`DataPlane.find`: by name, and version or "@alias" or nothing."""
_MODEL = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?:/(?P<version>[^/@]+)|(?P<alias>@[^/@]+))?")

log = logging.getLogger(__name__)


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. `inputs` and `outputs` say by which name the ensemble knows its tensors, where that is another."""

    model: str
    """NAME, NAME/VERSION or NAME@ALIAS."""
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}

    def input(self, spec: TensorSpec) -> str:
        """The ensemble's name of the model's input `spec`."""
        return self.inputs.get(spec.name, spec.name)

    def output(self, spec: TensorSpec) -> str:
        return self.outputs.get(spec.name, spec.name)

    @property
    def asked(self) -> tuple[str, str]:
        """What `Find` is asked for."""
        found = _MODEL.fullmatch(self.model)
        if found is None:
            raise InvalidSource(f"a step's model is {self.model!r}, expected NAME, NAME/VERSION or NAME@ALIAS")
        return found["name"], found["version"] or found["alias"] or ""


class Ensemble(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file declares. Steps may come in any order; their inputs that no step answers are the ensemble's inputs."""

    name: str
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    @property
    def pipelines(self) -> int:
        """How many batches are on their way at once: enough that no step waits for another batch to end."""
        return 2 * len(self.steps)


def read_ensemble(path: Path) -> Ensemble:
    """Raises `InvalidSource`, with what is wrong in the file."""
    try:
        ensemble = msgspec.toml.decode(path.read_bytes(), type=Ensemble)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidSource(f"{path} declares no ensemble: {error}") from error
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", ensemble.name):
        raise InvalidSource(f"{path}: '{ensemble.name}' cannot be a model's name; use letters, digits, '.', '_', '-'")
    if not ensemble.steps or not ensemble.outputs:
        raise InvalidSource(f"{path}: an ensemble has at least one step and one output")
    for step in ensemble.steps:
        if step.asked[0] == ensemble.name:
            raise InvalidSource(f"{path}: the ensemble '{ensemble.name}' is a step of itself")
    return ensemble


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An ensemble whose steps were found to fit together. `members` are the signatures of the models, in the steps' order."""

    ensemble: Ensemble
    members: tuple[Signature, ...]
    signature: Signature

    @classmethod
    def of(cls, ensemble: Ensemble, find: Find) -> "Plan":
        """From the models that the steps mean now.

        Raises `InvalidSource` where they do not fit together, else what `find` raises.
        """
        generations = [find(*step.asked) for step in ensemble.steps]
        if stateful := [str(each.identity) for each in generations if each.stateful]:
            raise InvalidSource(
                f"{stateful} have a memory, and the steps of '{ensemble.name}' cannot: ask them themselves"
            )
        members = tuple(generation.signature for generation in generations)
        return cls(ensemble=ensemble, members=members, signature=_signature(ensemble, members))

    @property
    def steps(self) -> Iterator[tuple[Step, Signature]]:
        return zip(self.ensemble.steps, self.members, strict=True)


class Pipeline:
    """A worker that takes a batch through the models of an ensemble."""

    wide = False
    load_s = 0.0
    golden = 0
    state_bytes: int | None = None
    pid = 0
    """It has no process of its own."""

    def __init__(self, plan: Plan, find: Find) -> None:
        self.graphs: Mapping[str, Signature] = {MAIN: plan.signature}
        self.plan, self._find = plan, find
        self._owner: Owner | None = None
        self._running: dict[asyncio.Task[tuple[list[Outputs], float]], Batch] = {}

    @property
    def held(self) -> Sequence[Batch]:
        return list(self._running.values())

    def attach(self, owner: Owner) -> None:
        self._owner = owner

    def run(self, batch: Batch) -> bool:
        assert len(self._running) < SLOTS, "a batch more than there are slots: this is a bug"
        task = asyncio.get_running_loop().create_task(self._compute(batch))
        self._running[task] = batch
        task.add_done_callback(self._report)
        return True

    def kill(self) -> None:
        """Leave the queues of the models, and report what was held as died."""
        held = self.held
        self._cancel()
        if self._owner is not None:
            self._owner.died(self, held, "a step gave no answer")

    async def close(self) -> None:
        await asyncio.gather(*self._cancel(), return_exceptions=True)

    def _cancel(self) -> list[asyncio.Task[tuple[list[Outputs], float]]]:
        tasks = list(self._running)
        self._running.clear()
        for task in tasks:
            task.cancel()
        return tasks

    def _report(self, task: asyncio.Task[tuple[list[Outputs], float]]) -> None:
        batch = self._running.pop(task, None)
        if batch is None or self._owner is None:
            return
        match task.exception():
            case None:
                self._owner.answered(self, batch, *task.result())
            case SeatrialError() as error:
                self._owner.failed(self, batch, error)
            case unexpected:
                log.critical("ensemble '%s' failed; this is a bug", self.plan.ensemble.name, exc_info=unexpected)
                self._owner.failed(self, batch, EngineFailed("internal error"))

    async def _compute(self, batch: Batch) -> tuple[list[Outputs], float]:
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        tensors: dict[str, asyncio.Future[Array]] = {
            step.output(spec): loop.create_future() for step, member in self.plan.steps for spec in member.outputs
        }
        for index, spec in enumerate(self.plan.signature.inputs):
            tensors[spec.name] = loop.create_future()
            tensors[spec.name].set_result(_together([request.item[index] for request in batch.requests]))
        try:
            async with asyncio.TaskGroup() as steps:
                for step, member in self.plan.steps:
                    steps.create_task(self._take(step, member, batch, tensors))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        outputs = self.plan.signature.outputs
        answers = [Tensor(spec.name, spec.datatype, tensors[spec.name].result()) for spec in outputs]
        return slice_outputs(answers, batch.requests), time.perf_counter() - began

    async def _take(
        self, step: Step, member: Signature, batch: Batch, tensors: Mapping[str, "asyncio.Future[Array]"]
    ) -> None:
        given = [Tensor(spec.name, spec.datatype, await tensors[step.input(spec)]) for spec in member.inputs]
        if all(request.answer.done() for request in batch.requests):
            raise DeadlinePassed("nobody waits for the answer any more")
        generation = self._find(*step.asked)
        if generation.signature != member:
            raise EngineFailed(
                f"'{step.model}' takes or answers something else since '{self.plan.ensemble.name}' was put together; "
                "load the ensemble again"
            )
        answer = generation.admit(
            InferRequest(tuple(given)),
            arrived=time.monotonic(),
            deadline=max(request.deadline for request in batch.requests),
            priority=min(request.level for request in batch.requests),
        ).answer
        for spec, (_, _, array) in zip(member.outputs, await answer, strict=True):
            tensors[step.output(spec)].set_result(array)


def _together(pieces: Sequence[Array]) -> Array:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


# Whether steps fit together


def _signature(ensemble: Ensemble, members: Sequence[Signature]) -> Signature:
    given: dict[str, list[TensorSpec]] = {}
    made: dict[str, TensorSpec] = {}
    axes: list[_Axis] = []
    for step, member in zip(ensemble.steps, members, strict=True):
        _check_names(step, member)
        for spec in member.inputs:
            given.setdefault(step.input(spec), []).append(spec)
        for spec in member.outputs:
            if step.output(spec) in made:
                raise InvalidSource(f"two steps of '{ensemble.name}' answer '{step.output(spec)}'; rename one of them")
            made[step.output(spec)] = spec
        axes += [_Axis.of(axis, step) for axis in member.dynamic_axes]
    _check_order(ensemble, members, made)
    if missing := [name for name in ensemble.outputs if name not in made]:
        raise InvalidSource(f"no step of '{ensemble.name}' answers {missing}; they answer {sorted(made)}")
    specs = {name: _agreed(name, [*users, *filter(None, [made.get(name)])]) for name, users in given.items()}
    inputs = tuple(specs[name] for name in given if name not in made)
    outputs = tuple(
        TensorSpec(name=name, datatype=made[name].datatype, shape=made[name].shape) for name in ensemble.outputs
    )
    return Signature(inputs=inputs, outputs=outputs, dynamic_axes=_shared(axes, [*inputs, *outputs]))


class _Axis(msgspec.Struct):
    """A dynamic axis by where the ensemble's tensors have it."""

    name: str
    places: set[tuple[str, int]]
    min: int
    max: int

    @classmethod
    def of(cls, axis: DynamicAxis, step: Step) -> "_Axis":
        names = {**step.inputs, **step.outputs}
        places = {(names.get(name, name), index) for name, index in axis.at.items()}
        return cls(name=axis.name, places=places, min=axis.min, max=axis.max)

    def meets(self, other: "_Axis") -> bool:
        return bool(self.places & other.places) or self.name == other.name == BATCH

    def join(self, other: "_Axis") -> None:
        self.places |= other.places
        self.min, self.max = max(self.min, other.min), min(self.max, other.max)
        self.name = BATCH if BATCH in (self.name, other.name) else self.name


def _shared(axes: Sequence[_Axis], specs: Sequence[TensorSpec]) -> tuple[DynamicAxis, ...]:
    """The axes of all models, those that share a tensor joined, at the ensemble's own inputs and outputs."""
    joined: list[_Axis] = []
    for axis in axes:
        meeting = [each for each in joined if each.meets(axis)]
        for each in meeting:
            axis.join(each)
            joined.remove(each)
        joined.append(axis)
    own = {spec.name for spec in specs}
    found = []
    for number, axis in enumerate(joined):
        if at := {name: index for name, index in sorted(axis.places) if name in own}:
            name = axis.name if sum(each.name == axis.name for each in joined) == 1 else f"{axis.name}_{number}"
            found.append(DynamicAxis(name=name, at=at, min=axis.min, max=axis.max))
    return tuple(found)


def _check_names(step: Step, member: Signature) -> None:
    for kind, named, specs in (("input", step.inputs, member.inputs), ("output", step.outputs, member.outputs)):
        have = [spec.name for spec in specs]
        if unknown := sorted(named.keys() - set(have)):
            raise InvalidSource(f"the model '{step.model}' has no {kind} {unknown}; it has {have}")


def _check_order(ensemble: Ensemble, members: Sequence[Signature], made: Mapping[str, TensorSpec]) -> None:
    """Raise `InvalidSource` where steps wait for each other."""
    missing = set(made)
    left = list(zip(ensemble.steps, members, strict=True))
    while left:
        able = [each for each in left if not any(each[0].input(spec) in missing for spec in each[1].inputs)]
        if not able:
            raise InvalidSource(f"steps of '{ensemble.name}' wait for each other: {[step.model for step, _ in left]}")
        for step, member in able:
            missing -= {step.output(spec) for spec in member.outputs}
        left = [each for each in left if each not in able]


def _agreed(name: str, specs: Sequence[TensorSpec]) -> TensorSpec:
    """What fits all of `specs`: an axis is fixed where one of them fixes it. Raises `InvalidSource` where nothing does."""
    first = specs[0]
    shape = list(first.shape)
    for spec in specs[1:]:
        if spec.datatype is not first.datatype or len(spec.shape) != len(shape):
            raise _apart(name, first, spec)
        for index, size in enumerate(spec.shape):
            if -1 not in (size, shape[index]) and size != shape[index]:
                raise _apart(name, first, spec)
            shape[index] = max(shape[index], size)
    return TensorSpec(name=name, datatype=first.datatype, shape=tuple(shape))


def _apart(name: str, one: TensorSpec, other: TensorSpec) -> InvalidSource:
    return InvalidSource(
        f"'{name}' is {one.datatype} {list(one.shape)} for one step and {other.datatype} {list(other.shape)} for another"
    )
