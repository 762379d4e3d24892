"""What every registered architecture must do; registering one enrols it here."""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seatrial.tensors import BATCH, DataType, Signature
from seatrial_models import ARCHITECTURES
from seatrial_models.architecture import Architecture, Inputs
from seatrial_models.program import to_program


class Case(NamedTuple):
    architecture: Architecture[Any]
    config: Any

    @property
    def signature(self) -> Signature:
        return self.architecture.signature(self.config)

    def build(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.architecture.build(self.config)

    def example(self, batch: int) -> Inputs:
        return self.architecture.example(self.config, batch)


CASES = [Case(architecture, config) for architecture in ARCHITECTURES.values() for config in architecture.small]
every_architecture = pytest.mark.parametrize(
    "case", CASES, ids=[f"{case.architecture.name}-{case.architecture.small.index(case.config)}" for case in CASES]
)


@every_architecture
def test_inputs_and_outputs_are_those_of_the_signature(case: Case) -> None:
    inputs = case.example(batch=3)
    case.signature.check([(name, datatype(tensor), tensor.numpy()) for name, tensor in inputs.items()])
    assert list(inputs) == list(inspect.signature(case.build().forward).parameters)


@every_architecture
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_each_row_gets_an_answer_of_the_declared_shape(case: Case, batch: int) -> None:
    [output] = case.signature.outputs
    logits = case.build().eval()(**case.example(batch))
    output.check(logits.detach().numpy(), datatype=datatype(logits))
    assert logits.shape[0] == batch
    assert logits.isfinite().all()


@every_architecture
def test_every_parameter_learns(case: Case) -> None:
    module = case.build().train()
    logits = module(**case.example(batch=16))
    loss = nn.functional.cross_entropy(logits, torch.arange(16) % logits.shape[1])
    torch.autograd.backward(loss)
    learning = {name: weight.grad for name, weight in module.named_parameters() if weight.requires_grad}
    assert [name for name, gradient in learning.items() if gradient is None or not gradient.any()] == []
    assert all(gradient is not None and gradient.isfinite().all() for gradient in learning.values())


@every_architecture
def test_equal_seeds_build_equal_modules(case: Case) -> None:
    inputs = case.example(batch=2)
    first, again, other = (case.build(seed).eval()(**inputs) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@every_architecture
def test_examples_are_the_same_each_time(case: Case) -> None:
    for name, tensor in case.example(batch=4).items():
        assert torch.equal(tensor, case.example(batch=4)[name])


@every_architecture
def test_config_and_weights_are_all_it_takes_to_rebuild(case: Case, tmp_path: Path) -> None:
    original, rebuilt = trained(case), case.build(seed=2).eval()
    save_file(original.state_dict(), tmp_path / "weights.safetensors")
    rebuilt.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    inputs = case.example(batch=2)
    assert torch.equal(original(**inputs), rebuilt(**inputs))


@every_architecture
def test_a_row_is_answered_alike_alone_and_in_company(case: Case) -> None:
    module, inputs = trained(case), case.example(batch=6)
    together = module(**inputs)
    for row in range(6):
        alone = module(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        assert_close(alone, together[row : row + 1])


@every_architecture
def test_what_lies_in_a_row_does_not_touch_the_others(case: Case) -> None:
    module, inputs = trained(case), case.example(batch=4)
    before = module(**inputs)
    for tensor in inputs.values():
        tensor[0] = tensor[1]
    assert_close(module(**inputs)[1:], before[1:])


@every_architecture
def test_zeros_are_answered_with_numbers(case: Case) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in case.example(batch=2).items()}
    assert trained(case)(**zeros).isfinite().all()


@every_architecture
def test_the_exported_program_answers_as_the_module_at_every_size(case: Case) -> None:
    module = trained(case)
    program = to_program(module, case.example(batch=2), case.signature).module()
    for batch in (1, 2, 5):
        for inputs in resized(case, batch):
            assert_close(program(**inputs), module(**inputs))


def resized(case: Case, batch: int) -> list[Inputs]:
    """Inputs of `batch` rows, with every axis beside the batch at its largest, at its smallest and in between."""
    sizes = [inputs := case.example(batch)]
    for axis in case.signature.dynamic_axes:
        if axis.name != BATCH:
            for size in (axis.min, axis.max // 2):
                narrowed = {name: inputs[name].narrow(index, 0, size) for name, index in axis.at.items()}
                sizes.append(inputs | narrowed)
    return sizes


def trained(case: Case) -> nn.Module:
    """As after some steps of training: no running statistic is at its initial value, no two outputs are equal."""
    module = case.build(seed=1).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module(**case.example(batch=16))
    return module.eval()


def datatype(tensor: Tensor) -> DataType:
    return DataType.of(tensor.detach().numpy().dtype)


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES[:1])
def test_a_program_with_a_fixed_batch_axis_is_refused(case: Case) -> None:
    from seatrial.errors import ConversionFailed

    with pytest.raises(ConversionFailed, match="axis 'batch' of input 'pixels' became fixed at 1"):
        to_program(case.build().eval(), case.example(batch=1), case.signature)
