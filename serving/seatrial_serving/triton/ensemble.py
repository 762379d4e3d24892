"""An ensemble of a Triton repository as one of ours: its steps, and what its configuration declares of them.

Source: Triton's ensemble models documentation and its `model_config.proto`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from seatrial.errors import InvalidSource
from seatrial.tensors import BATCH, DynamicAxis, Signature, TensorSpec
from seatrial_serving.ensemble import Ensemble, Find, Plan, Step
from seatrial_serving.open_inference.open_inference_pb2 import ModelConfig, ModelInput, ModelOutput
from seatrial_serving.triton.folder import TritonModel
from seatrial_serving.triton.model_config import DATATYPES

ROWS = "rows"
"""What the batch axis of the models is called in an ensemble that has none: nobody else's rows come with them."""


def plan(model: TritonModel, find: Find) -> Plan:
    """Raises `InvalidSource` where the models do not fit together or what is declared does not fit them, else what `find`
    raises."""
    config = model.config()
    outputs = tuple(output.name for output in config.output)
    made = Plan.of(Ensemble(name=model.path.name, steps=tuple(_steps(config, find)), outputs=outputs), find)
    return replace(made, signature=_declared(config, made.signature))


def _steps(config: ModelConfig, find: Find) -> Iterator[Step]:
    """An output that a step does not map is nobody's, whatever else is called like it."""
    for number, each in enumerate(config.ensemble_scheduling.step):
        step = Step(model=f"{each.model_name}/{each.model_version}" if each.model_version > 0 else each.model_name)
        member = find(*step.asked).signature
        if missing := [spec.name for spec in member.inputs if spec.name not in each.input_map]:
            raise InvalidSource(f"the step '{step.model}' maps nothing to the inputs {missing} of its model")
        unmapped = {spec.name: f"{number}/{spec.name}" for spec in member.outputs}
        yield Step(model=step.model, inputs=dict(each.input_map), outputs=unmapped | dict(each.output_map))


def _declared(config: ModelConfig, found: Signature) -> Signature:
    """`found` as far as the configuration says more. Raises `InvalidSource` where it says something else."""
    if config.max_batch_size and found.batch is None:
        raise InvalidSource(f"max_batch_size is {config.max_batch_size}, but not all of its models have batches")
    axes = [_axis(axis, config.max_batch_size) if axis is found.batch else axis for axis in found.dynamic_axes]
    return Signature(
        inputs=_specs(config.input, found.inputs, batched=config.max_batch_size > 0),
        outputs=_specs(config.output, found.outputs, batched=config.max_batch_size > 0),
        dynamic_axes=tuple(axes),
    )


def _axis(batch: DynamicAxis, most_rows: int) -> DynamicAxis:
    if not most_rows:
        return msgspec.structs.replace(batch, name=ROWS)
    return msgspec.structs.replace(batch, name=BATCH, max=min(batch.max, most_rows))


def _specs(
    declared: Sequence[ModelInput] | Sequence[ModelOutput], found: Sequence[TensorSpec], *, batched: bool
) -> tuple[TensorSpec, ...]:
    names, has = [each.name for each in declared], {spec.name: spec for spec in found}
    if sorted(names) != sorted(has):
        raise InvalidSource(f"the ensemble declares {sorted(names)}; its steps leave {sorted(has)}")
    return tuple(_spec(each, has[each.name], batched=batched) for each in declared)


def _spec(declared: ModelInput | ModelOutput, found: TensorSpec, *, batched: bool) -> TensorSpec:
    dims = ((-1,) if batched else ()) + tuple(declared.dims)
    fits = len(dims) == len(found.shape) and all(
        -1 in sizes or sizes[0] == sizes[1] for sizes in zip(dims, found.shape, strict=True)
    )
    if DATATYPES.get(declared.data_type) is not found.datatype or not fits or declared.HasField("reshape"):
        said = DATATYPES.get(declared.data_type, "nothing")
        raise InvalidSource(
            f"the ensemble says that '{found.name}' is {said} {list(dims)}; for its models it is {found.datatype} "
            f"{list(found.shape)}, and nothing is reshaped on the way"
        )
    return TensorSpec(
        name=found.name, datatype=found.datatype, shape=tuple(map(max, zip(dims, found.shape, strict=True)))
    )
