"""A graph with a memory as an engine: it keeps the states of sequences, and gives each row the state of its own.

Knows numpy and the engine below. Which sequences there are and when they end is the gateway's business; it names them by
numbers of its own, and says with each batch whose turn it is. The states are as many and as large as it lets them be.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from seatrial.bundle import MAIN
from seatrial.errors import EngineFailed, WrongInput
from seatrial.tensors import Array, DataType, Signature, TensorSpec
from seatrial_serving.engines import Engine


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """The rows of a batch that belong to one sequence, a step each. One without rows has ended and is forgotten."""

    sequence: int
    rows: int = 0
    first: bool = False
    last: bool = False
    id: int | str = 0
    """What its client calls it, for graphs that want to know."""


class Kind(Enum):
    START, END, READY, ID = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """An input in which the graph is told where in its sequence a row stands; `values` stand for no and yes."""

    spec: TensorSpec
    kind: Kind
    values: tuple[Any, Any] = (0, 1)

    def fill(self, steps: Sequence[tuple[Turn, int]]) -> Array:
        """The tensor for rows that are step so and so of a turn. Raises `WrongInput` for an id that has no place in it."""
        values = [self._value(turn, number) for turn, number in steps]
        shape = [len(steps) if size < 0 else size for size in self.spec.shape]
        try:
            return np.array(values, self.spec.datatype.numpy).reshape(shape)
        except OverflowError as error:
            raise WrongInput(f"the sequence id does not fit '{self.spec.name}', {self.spec.datatype}") from error

    def _value(self, turn: Turn, number: int) -> Any:
        match self.kind:
            case Kind.START:
                return self.values[turn.first and number == 0]
            case Kind.END:
                return self.values[turn.last and number == turn.rows - 1]
            case Kind.READY:
                return self.values[True]
            case Kind.ID:
                if self.spec.datatype is DataType.BYTES:
                    return str(turn.id).encode()
                if isinstance(turn.id, str):
                    raise WrongInput(f"the sequence id is {turn.id!r}; this model takes numbers")
                return turn.id


class Stateful:
    on_cpu = False
    """It does compute on cores, but another of its kind would not have the states."""

    def __init__(
        self,
        engine: Engine,
        *,
        controls: Sequence[Control] = (),
        shown: Container[str] = (),
        initial: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        """Callers get the outputs `shown` although they are states. `initial` has what is not zeros at the first step, by
        the name of the input, shaped like one row."""
        whole = engine.signature
        hidden = {control.spec.name for control in controls}
        for state in whole.states:
            hidden |= {state.input} if state.output in shown else {state.input, state.output}
        self.signature: Signature = whole.without(hidden)
        self.graphs: Mapping[str, Signature] = {MAIN: self.signature}
        self._engine, self._controls, self._states = engine, controls, whole.states
        self._batched = whole.batch is not None
        specs = {spec.name: spec for spec in whole.inputs}
        self._initial = tuple(
            initial[state.input] if state.input in initial else self._zeros(specs[state.input])
            for state in self._states
        )
        self._kept: dict[int, tuple[Array, ...]] = {}

    @property
    def state_bytes(self) -> int:
        """What one sequence takes."""
        return sum(array.nbytes for array in self._initial)

    def predict(self, inputs: Mapping[str, Array], *, graph: str = MAIN) -> dict[str, Array]:  # noqa: ARG002 - there is one
        """Each row as a sequence of its own, of one step."""
        rows = self._rows(inputs)
        steps = [(Turn(0, 1, first=True, last=True), 0)] * rows
        return self._run(inputs, steps, [self._initial] * rows)

    def whole(self, inputs: Mapping[str, Array]) -> Turn:
        """All rows as one sequence, from its first step to its last."""
        return Turn(0, self._rows(inputs), first=True, last=True)

    def advance(self, inputs: Mapping[str, Array], turns: Sequence[Turn]) -> dict[str, Array]:
        """Let sequences take their steps; the rows lie in `inputs` in the order of the turns, each sequence's together.

        Where it raises, no sequence has taken any.
        """
        for turn in turns:
            if not turn.rows:
                self._kept.pop(turn.sequence, None)
        going = [turn for turn in turns if turn.rows]
        states = [self._initial if turn.first else self._state(turn) for turn in going]
        outputs = self._take_steps(inputs, going, states)
        for turn, state in zip(going, states, strict=True):
            if turn.last:
                self._kept.pop(turn.sequence, None)
            else:
                self._kept[turn.sequence] = state
        return outputs

    def close(self) -> None:
        self._engine.close()

    def _take_steps(
        self, inputs: Mapping[str, Array], going: Sequence[Turn], states: list[tuple[Array, ...]]
    ) -> dict[str, Array]:
        """The n-th steps of all sequences at once, one n after the other; `states` becomes what they are left in."""
        begins = list(accumulate((turn.rows for turn in going), initial=0))
        whole: dict[str, Array] = {}
        longest = max(turn.rows for turn in going)
        for number in range(longest):
            among = [place for place, turn in enumerate(going) if number < turn.rows]
            rows = [begins[place] + number for place in among]
            given = inputs if longest == 1 else {name: array[rows] for name, array in inputs.items()}
            answer = self._run(given, [(going[place], number) for place in among], states, among)
            if longest == 1:
                return answer
            for name, array in answer.items():
                _put(name, array, rows, whole.setdefault(name, np.empty((begins[-1], *array.shape[1:]), array.dtype)))
        return whole

    def _run(
        self,
        inputs: Mapping[str, Array],
        steps: Sequence[tuple[Turn, int]],
        states: list[tuple[Array, ...]],
        among: Sequence[int] | None = None,
    ) -> dict[str, Array]:
        """One call of the graph; row n is given the state `among[n]` of `states`, and leaves there what it came to."""
        places = range(len(steps)) if among is None else among
        given = dict(inputs)
        for index, state in enumerate(self._states):
            pieces = [states[place][index] for place in places]
            given[state.input] = np.stack(pieces) if self._batched else pieces[0]
        for control in self._controls:
            given[control.spec.name] = control.fill(steps)
        answer = self._engine.predict(given)
        kept = [self._check(answer[state.output], index, len(steps)) for index, state in enumerate(self._states)]
        for row, place in enumerate(places):
            states[place] = tuple(array[row].copy() if self._batched else array for array in kept)
        return {spec.name: answer[spec.name] for spec in self.signature.outputs}

    def _check(self, state: Array, index: int, rows: int) -> Array:
        expected = (rows, *self._initial[index].shape) if self._batched else self._initial[index].shape
        if state.shape != expected:
            raise EngineFailed(f"the state '{self._states[index].output}' has shape {state.shape}, expected {expected}")
        return state

    def _state(self, turn: Turn) -> tuple[Array, ...]:
        if turn.sequence not in self._kept:
            raise EngineFailed(f"the state of sequence {turn.id!r} is not here: this is a bug")
        return self._kept[turn.sequence]

    def _rows(self, inputs: Mapping[str, Array]) -> int:
        return next(iter(inputs.values())).shape[0] if self._batched else 1

    def _zeros(self, spec: TensorSpec) -> Array:
        return np.zeros(spec.shape[1:] if self._batched else spec.shape, spec.datatype.numpy)


def _put(name: str, array: Array, rows: Sequence[int], whole: Array) -> None:
    if array.shape[1:] != whole.shape[1:]:
        raise EngineFailed(f"output '{name}' has shape {array.shape} at one step and {whole.shape} at another")
    whole[rows] = array


def compute(engine: Engine, inputs: Mapping[str, Array], *, graph: str, turns: Sequence[Turn]) -> dict[str, Array]:
    """A batch on whatever engine there is; `turns` are those of its sequences, none where it has no memory."""
    if not turns:
        return engine.predict(inputs, graph=graph)
    assert isinstance(engine, Stateful), "turns for an engine that has no memory: this is a bug"
    return engine.advance(inputs, turns)


def state_bytes(engine: Engine) -> int | None:
    """What one sequence takes; None where the engine has no memory."""
    return engine.state_bytes if isinstance(engine, Stateful) else None
