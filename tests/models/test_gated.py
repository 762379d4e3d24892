"""Gates: each row keeps so many channels, its own, and whoever is beside it changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seatrial_models import architecture
from seatrial_models.gated import Gated, add_gates, convolutions, gates
from seatrial_models.narrow import load_narrow
from seatrial_models.program import to_program

IMAGES = [("lenet5", 0), ("resnet9", 0), ("resnet9", 1), ("resnet18", 0), ("resnet18", 1)]


@pytest.fixture
def gated() -> Gated:
    """Of three channels, which choose three of eight."""
    torch.manual_seed(0)
    return Gated(nn.Conv2d(3, 8, kernel_size=3, bias=False), nn.BatchNorm2d(8), kept=3).eval()


def rows(number: int, seed: int = 0) -> Tensor:
    """Of three channels, with means of their own."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(number, 3, 1, 1, generator=generator)
    return means + torch.randn(number, 3, 6, 6, generator=generator)


def small(name: str, which: int = 0) -> tuple[Any, dict[str, Tensor]]:
    chosen = architecture(name)
    torch.manual_seed(0)
    return chosen.build(chosen.small[which]).eval(), chosen.example(chosen.small[which], 4)


def half_gated(name: str, which: int = 0) -> tuple[Any, dict[str, Tensor]]:
    module, example = small(name, which)
    widths = {name: layer.out_channels for name, layer in convolutions(module).items()}
    add_gates(module, {name: width // 2 for name, width in widths.items()})
    return module, example


def test_a_row_keeps_so_many_channels_and_the_others_are_zero_everywhere(gated: Gated) -> None:
    answers = gated(rows(64))
    used = (answers != 0).any(dim=(2, 3))
    assert used.sum(dim=1).tolist() == [3] * 64
    assert len(used.unique(dim=0)) > 5, "rows differ in what they keep"


def test_kept_channels_are_the_most_salient_times_what_makes_their_mean_one(gated: Gated) -> None:
    given = rows(16)
    gate, salient = gated.gate(given), gated.saliency(given.mean(dim=(2, 3)))
    for of_row, wanted in zip(gate, salient, strict=True):
        assert set(of_row.nonzero().flatten().tolist()) == set(wanted.topk(3).indices.tolist())
    torch.testing.assert_close(gate.sum(dim=1), torch.full((16,), 3.0), atol=0.05, rtol=0)
    exact = gated.normalization(gated.convolution(given))
    torch.testing.assert_close(gated(given), exact * gate[:, :, None, None])


def test_where_two_are_as_good_as_equal_it_matters_little_who_wins(gated: Gated) -> None:
    """A rounding error decides between the third and the fourth; the answers are as near as the rows are."""
    with torch.no_grad():
        gated.saliency.weight.zero_()
        gated.saliency.weight[3, 0] = 1
        gated.saliency.bias.copy_(torch.tensor([4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]))
    less, more = (gated.gate(torch.full((1, 3, 6, 6), mean)) for mean in (-1e-6, 1e-6))
    assert ((less > 0) != (more > 0)).sum() == 2
    assert (less - more).abs().max() < 1e-5


def test_the_predictor_is_taught_by_what_comes_of_it(gated: Gated) -> None:
    gated.train()(rows(8)).square().sum().backward()
    for weight in (gated.saliency.weight, gated.saliency.bias, gated.convolution.weight):
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_at_first_the_largest_filters_win_where_a_row_says_nothing(gated: Gated) -> None:
    sizes = gated.convolution.weight.flatten(start_dim=1).norm(dim=1)
    [gate] = gated.gate(torch.zeros(1, 3, 6, 6))
    assert set(gate.nonzero().flatten().tolist()) == set(sizes.topk(3).indices.tolist())


@pytest.mark.parametrize(("name", "which"), IMAGES)
def test_company_changes_no_answer(name: str, which: int) -> None:
    module, example = half_gated(name, which)
    pixels = example["pixels"]
    with torch.inference_mode():
        together = module(torch.cat([pixels, 10 * pixels]))[:4]
        for number, row in enumerate(pixels):
            torch.testing.assert_close(module(row[None])[0], together[number], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "which"), [("lenet5", 0), ("resnet9", 1), ("resnet18", 1)])
def test_a_gated_network_is_rebuilt_from_its_weights_and_can_be_exported(name: str, which: int) -> None:
    module, example = half_gated(name, which)
    assert gates(module)
    assert not convolutions(module), "each has a gate"
    again, _ = small(name, which)
    add_gates(again, gates(module))
    load_narrow(again, module.state_dict())
    chosen = architecture(name)
    program = to_program(module, example, chosen.signature(chosen.small[which])).module()
    other = {"pixels": torch.randn(7, *example["pixels"].shape[1:], generator=torch.Generator().manual_seed(1))}
    with torch.inference_mode():
        assert torch.equal(again.eval()(**other), module(**other))
        torch.testing.assert_close(program(**other), module(**other), atol=1e-5, rtol=1e-5)


def test_what_normalizes_a_convolution_is_gated_with_it() -> None:
    module, _ = half_gated("resnet18", 1)
    block = module.stage2[0]
    assert isinstance(block.conv1.normalization, nn.BatchNorm2d)
    assert isinstance(block.norm1, nn.Identity)
    assert isinstance(block.shortcut[0].normalization, nn.BatchNorm2d)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in module.stem.children())
