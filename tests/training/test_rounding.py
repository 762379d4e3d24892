"""Training with the rounding of INT8 in the way: the rounding is the one that the export does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from seatrial.settings import Settings
from seatrial_training.data import Dataset, load_dataset
from seatrial_training.fit import Epoch, build_module, fit
from seatrial_training.recipe import Quantization, load_recipe
from seatrial_training.rounding import Rounding

Numbers = NDArray[np.float64]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load_dataset("digits", Settings())
    return dataclasses.replace(whole, train=whole.train.take(slice(256)))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layer(x)
        return answer


def rounded(module: Product, x: Numbers, *, largest: int, low: float, high: float) -> Numbers:
    """As integers: unsigned times signed, one scale for what enters, one for each row of the weights."""
    weight, bias = (value.detach().double().numpy() for value in (module.layer.weight, module.layer.bias))
    scale = (high - low) / 255
    zero = round(-low / scale)
    entering = np.clip(np.round(x / scale) + zero, 0, 255).astype(int)
    scales = np.abs(weight).max(axis=1) / largest
    signed = np.clip(np.round(weight / scales[:, None]), -largest, largest).astype(int)
    answer: Numbers = (entering - zero) @ signed.T * scale * scales + bias
    return answer


@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 127)])
def test_it_answers_as_sums_of_integers_do(bits: int, largest: int) -> None:
    torch.manual_seed(0)
    module = Product().train()
    rounding = Rounding(Quantization.model_validate({"weight_bits": bits}), module)
    x = torch.linspace(-1, 3, 20).view(5, 4)
    rounding.ask(module, {"x": x})
    assert rounding.ends.tolist() == [[-1, 3]]
    got = rounding.ask(module.eval(), {"x": x}).detach().numpy()
    np.testing.assert_allclose(got, rounded(module, x.double().numpy(), largest=largest, low=-1, high=3), atol=1e-5)
    assert np.abs(got - module(x).detach().numpy()).max() > 1e-4, "rounding does something"


def test_a_range_widens_at_once_narrows_slowly_holds_zero_and_stays_where_nothing_is_trained() -> None:
    module = Product().train()
    rounding = Rounding(Quantization(), module)
    seen = []
    for low, high in ((2.0, 4.0), (-1.0, 2.0), (0.0, 2.0)):
        rounding.ask(module, {"x": torch.linspace(low, high, 4).view(1, 4)})
        seen.append(rounding.ends[0].tolist())
    module.eval()
    rounding.ask(module, {"x": torch.full((1, 4), 50.0)})
    assert seen[0] == [0, 4]
    assert seen[1] == pytest.approx([-1, 3.98])
    assert seen[2] == pytest.approx([-0.99, 3.98 - 0.01 * 1.98])
    assert rounding.ends[0].tolist() == seen[2]


def test_gradients_pass_the_rounding_but_not_what_is_cut_off() -> None:
    module = Product().train()
    rounding = Rounding(Quantization(), module)
    rounding.ask(module, {"x": torch.ones(1, 4)})
    module.eval()
    x = torch.tensor([[0.5, 0.2, 0.9, 7.0]], requires_grad=True)
    entering, weight = torch.autograd.grad(rounding.ask(module, {"x": x}).sum(), [x, module.layer.weight])
    assert (entering[0, :3] != 0).all()
    assert entering[0, 3] == 0
    assert (weight[:, :3] != 0).all()


class Stopped(Exception):
    pass


def test_an_interrupted_run_goes_on_with_its_ranges_and_leaves_an_ordinary_module(
    digits: Dataset, tmp_path: Path
) -> None:
    made = load_recipe("digits-cnn-int8", changes=["epochs=3", "start=null", "distillation=null"])
    module = build_module(made, digits)
    whole = fit(module, made, digits).module.state_dict()

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit(build_module(made, digits), made, digits, place=tmp_path, on_epoch=stop)
    cut = fit(build_module(made, digits), made, digits, place=tmp_path).module
    assert all(torch.equal(weight, whole[name]) for name, weight in cut.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in cut.modules())
    plain = fit(build_module(made, digits), made.model_copy(update={"quantization": None}), digits).module.state_dict()
    assert not all(torch.equal(weight, whole[name]) for name, weight in plain.items()), "rounding took part"
