"""What `sequence_batching` of a configuration says of a graph with a memory: its states, and the inputs that tell it where in a
sequence it is.

Source: Triton's documentation of implicit states and of control inputs, and its `sequence_batch_scheduler.cc`.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from seatrial.errors import InvalidSource, MalformedRequest, SeatrialError
from seatrial.protocol import read_tensor
from seatrial.tensors import Array, State
from seatrial_serving.engines import Engine
from seatrial_serving.engines.stateful import Control, Kind, Stateful
from seatrial_serving.open_inference import messages
from seatrial_serving.open_inference.open_inference_pb2 import (
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelSequenceBatching,
)
from seatrial_serving.triton.folder import TritonModel
from seatrial_serving.triton.model_config import DATATYPES

Told: TypeAlias = tuple[Kind, tuple[Any, Any]]
"""What a control input tells, and what stands for no and yes in it."""
KINDS: Mapping[int, Kind] = {
    ModelSequenceBatching.Control.CONTROL_SEQUENCE_START: Kind.START,
    ModelSequenceBatching.Control.CONTROL_SEQUENCE_END: Kind.END,
    ModelSequenceBatching.Control.CONTROL_SEQUENCE_READY: Kind.READY,
    ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID: Kind.ID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Tensors of the graph that are the server's, not the callers'."""

    states: tuple[State, ...]
    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...]
    controls: tuple[ModelInput, ...]
    told: tuple[Told, ...]
    initial: Mapping[str, Array]

    @classmethod
    def of(cls, config: ModelConfig, model: TritonModel) -> "Memory":
        """Raises `InvalidSource`."""
        states, controls = config.sequence_batching.state, config.sequence_batching.control_input
        dims = {state.input_name: _state_dims(state) for state in states}
        return cls(
            states=tuple(State(input=state.input_name, output=state.output_name) for state in states),
            inputs=tuple(
                ModelInput(name=state.input_name, data_type=state.data_type, dims=dims[state.input_name])
                for state in states
            ),
            outputs=tuple(
                ModelOutput(name=state.output_name, data_type=state.data_type, dims=dims[state.input_name])
                for state in states
            ),
            controls=tuple(ModelInput(name=each.name, data_type=_told(each)[1], dims=[1]) for each in controls),
            told=tuple(_told(each)[0] for each in controls),
            initial={
                state.input_name: _initial(model, state)
                for state in states
                if any(each.data_file for each in state.initial_state)
            },
        )

    def around(self, engine: Engine, *, shown: Container[str]) -> Stateful:
        specs = {spec.name: spec for spec in engine.signature.inputs}
        controls = [
            Control(spec=specs[control.name], kind=kind, values=values)
            for control, (kind, values) in zip(self.controls, self.told, strict=True)
        ]
        return Stateful(engine, controls=controls, shown=shown, initial=self.initial)


def _state_dims(state: ModelSequenceBatching.State) -> tuple[int, ...]:
    if len(state.initial_state) > 1:
        raise InvalidSource(f"the state '{state.input_name}' has more than one initial_state")
    dims = tuple(state.initial_state[0].dims if state.initial_state else state.dims)
    types = {state.data_type, *(each.data_type for each in state.initial_state)}
    if len(dims) != len(state.dims) or min(dims, default=1) < 1 or len(types) > 1:
        raise InvalidSource(
            f"the state '{state.input_name}' begins with dims {list(dims)}; each must be said, and its dims and data_type "
            "be those of the state"
        )
    return dims


def _initial(model: TritonModel, state: ModelSequenceBatching.State) -> Array:
    [initial] = state.initial_state
    file = model.state_file(initial.data_file)
    datatype = DATATYPES.get(state.data_type)
    try:
        if datatype is None:
            raise MalformedRequest("its data_type is none")
        return read_tensor(file.read_bytes(), datatype, tuple(initial.dims), name=state.input_name)
    except (OSError, SeatrialError) as error:
        raise InvalidSource(f"{file} does not hold the state '{state.input_name}': {error}") from error


def _told(control: ModelSequenceBatching.ControlInput) -> tuple[Told, Any]:
    """And its datatype. Raises `InvalidSource`."""
    if len(control.control) != 1:
        raise InvalidSource(f"the control input '{control.name}' tells {len(control.control)} things, expected one")
    [told] = control.control
    kind = KINDS[told.kind]
    if kind is Kind.ID:
        return (kind, (0, 1)), told.data_type
    said = [
        (values, name)
        for values, name in (
            (told.int32_false_true, "INT32"),
            (told.fp32_false_true, "FP32"),
            (told.bool_false_true, "BOOL"),
        )
        if values
    ]
    if len(said) != 1 or len(said[0][0]) != 2:
        raise InvalidSource(f"the control input '{control.name}' does not say in one way what stands for no and yes")
    no, yes = said[0][0]
    return (kind, (no, yes)), messages.DataType.Value(f"TYPE_{said[0][1]}")
