"""What is taken out of a network, and what a network is that is trained while it is taken out."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_models import architecture
from seatrial_models.gated import convolutions, gates
from seatrial_models.narrow import load_narrow
from seatrial_training.data import Dataset, load_dataset
from seatrial_training.fit import build_module, fit
from seatrial_training.pruning import channels_left, masks, parameters, sparsity_at, take_out
from seatrial_training.recipe import Pruning, Recipe, load_recipe
from seatrial_training.retrainable import FOLDER, Retrainable, read_retrainable, write_retrainable
from seatrial_training.train import train
from tests.digits import ExportedDigits
from tests.training.conftest import Whole

pytestmark = pytest.mark.xdist_group("training")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load_dataset("digits", Settings())
    return dataclasses.replace(whole, train=whole.train.take(slice(512)))


def recipe(*changes: str) -> Recipe:
    plain = ("averaging=null", "early_stopping=null", "architecture.config.hidden=[32]")
    return load_recipe("digits-mlp", changes=("epochs=4", *plain, *changes))


class Weights(nn.Module):
    """Two matrix products: of four to two features, and of two to one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.first.weight.data = torch.tensor([[0.1, -0.9, 0.2, 0.8], [1.0, 0.3, -2.0, 0.4]])
        self.second.weight.data = torch.tensor([[0.05, 0.01]])


def kept(pruning: Pruning, sparsity: float) -> list[list[list[float]]]:
    return [mask.tolist() for _, mask in masks(Weights(), pruning, sparsity)]


# Which weights go


def test_the_smallest_of_the_whole_network_go_or_of_each_layer() -> None:
    everywhere = Pruning(kind="magnitude")
    assert kept(everywhere, 0.4) == [[[0, 1, 0, 1], [1, 1, 1, 1]], [[0, 0]]]
    assert kept(Pruning(kind="magnitude", scope="layer"), 0.5) == [[[0, 1, 0, 1], [1, 0, 1, 0]], [[1, 0]]]
    assert kept(everywhere, 0) == [[[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1]]]


def test_two_of_every_four_along_the_input_go_and_layers_without_fours_stay() -> None:
    assert kept(Pruning(kind="2:4"), 0.5) == [[[0, 1, 0, 1], [1, 0, 1, 0]]]
    convolution = nn.Conv2d(8, 3, kernel_size=3)
    [(weight, mask)] = masks(nn.Sequential(convolution), Pruning(kind="2:4"), 0.5)
    assert weight is convolution.weight
    groups = mask.view(3, 2, 4, 3, 3).sum(dim=2)
    assert torch.equal(groups, torch.full((3, 2, 3, 3), 2.0))
    gone, left = (weight.detach().abs().where(mask == which, other) for which, other in ((0, 0.0), (1, 9.0)))
    assert (gone.view(3, 2, 4, 3, 3).amax(dim=2) <= left.view(3, 2, 4, 3, 3).amin(dim=2)).all()


def test_zeros_rise_along_a_cube_and_stay() -> None:
    pruning = Pruning(kind="magnitude", sparsity=0.8, ramp=0.5)
    assert sparsity_at(0.0, pruning) == 0
    assert sparsity_at(0.25, pruning) == pytest.approx(0.8 * (1 - 0.5**3))
    assert sparsity_at(0.5, pruning) == sparsity_at(1.0, pruning) == 0.8
    risen = [sparsity_at(step / 100, pruning) for step in range(101)]
    assert risen == sorted(risen)
    assert sparsity_at(0.0, Pruning(kind="magnitude", ramp=0)) == 0.5


# What is left when it was trained


@pytest.mark.parametrize(("kind", "sparsity"), [("magnitude", 0.75), ("2:4", 0.5)])
def test_the_kept_weights_have_all_their_zeros_and_still_know_digits(
    digits: Dataset, kind: Literal["magnitude", "2:4"], sparsity: float
) -> None:
    made = recipe(f"pruning.kind='{kind}'", f"pruning.sparsity={sparsity}", "epochs=6", "optimizer.learning_rate=1e-2")
    result = fit(build_module(made, digits), made, digits)
    assert result.best >= 3, "before that there were fewer zeros"
    of_fours = sum(weight.numel() for name, weight in result.module.named_parameters() if weight.ndim == 2)
    assert zeros(result.module) == pytest.approx(sparsity, abs=1 / of_fours)
    pixels = torch.from_numpy(digits.test.inputs["pixels"])
    with torch.inference_mode():
        right = (result.module(pixels).argmax(dim=1).numpy() == digits.test.labels).mean()
    assert right > 0.8


def zeros(module: nn.Module) -> float:
    """The part of the weights of matrix products that is exactly zero."""
    weights = torch.cat([weight.flatten() for weight in module.parameters() if weight.ndim == 2])
    return float((weights == 0).sum()) / len(weights)


class Stopped(Exception):
    pass


def test_a_run_that_was_interrupted_among_the_zeros_ends_with_the_weights_of_one_that_was_not(
    digits: Dataset, tmp_path: Path
) -> None:
    made = recipe("epochs=3", "pruning.kind=magnitude", "pruning.sparsity=0.9", "pruning.ramp=0.9")
    whole = fit(build_module(made, digits), made, digits)

    def stop(epoch: object) -> None:
        if getattr(epoch, "number", 0) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit(build_module(made, digits), made, digits, place=tmp_path, on_epoch=stop)
    cut = fit(build_module(made, digits), made, digits, place=tmp_path).module.state_dict()
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.module.state_dict().items())


# Smaller networks


def small(name: str, which: int = 0) -> tuple[Any, dict[str, Tensor]]:
    chosen = architecture(name)
    torch.manual_seed(0)
    return chosen.build(chosen.small[which]).eval(), chosen.example(chosen.small[which], 4)


@pytest.mark.parametrize("name", ["lenet5", "resnet9", "resnet18", "mlp", "text-transformer", "bert"])
def test_what_has_fewer_channels_is_rebuilt_from_its_weights(name: str) -> None:
    module, example = small(name)
    before = parameters(module)
    take_out(module, Pruning(kind="channels"), example)
    assert parameters(module) < 0.9 * before
    again, _ = small(name)
    load_narrow(again, module.state_dict())
    with torch.inference_mode():
        assert torch.equal(again.eval()(**example), module.eval()(**example))
    assert {type(layer) for layer in again.modules()} == {type(layer) for layer in module.modules()}


def test_whole_registers_of_channels_are_left_where_there_is_more_than_one() -> None:
    assert [channels_left(width, 0.3) for width in (24, 48, 96, 192)] == [16, 32, 64, 136]
    assert [channels_left(width, 0.5) for width in (24, 48, 96, 192)] == [16, 24, 48, 96]
    assert [channels_left(width, 0.5) for width in (1, 3, 12, 16)] == [1, 1, 6, 8]
    chosen = architecture("lenet5")
    config = chosen.configure({"pixels": [1, 8, 8], "classes": 10, "maps": [16, 32], "hidden": [64, 31]})
    module = chosen.build(config).eval()
    take_out(module, Pruning(kind="channels", sparsity=0.3), chosen.example(config, 4))
    assert [module.get_parameter(f"{name}.weight").shape[0] for name in ("c1", "c3", "c5", "f6", "output")] == [
        8, 24, 48, 24, 10,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["text-transformer", "bert"])
def test_the_smallest_heads_go_and_the_others_answer_as_before(name: str) -> None:
    """Heads whose weights are all but nothing can go without a trace."""
    module, example = small(name)
    width = module.layers[0].attention.query.out_features // 4
    with torch.no_grad():
        for layer in module.layers:
            attention = layer.attention
            for head in (1, 2):
                rows = slice(head * width, (head + 1) * width)
                for source in (attention.query, attention.key, attention.value):
                    source.weight[rows] *= 1e-6
                    source.bias[rows] *= 1e-6
                attention.output.weight[:, rows] *= 1e-6
        expected = module(**example)
        take_out(module, Pruning(kind="heads"), example)
        assert [layer.attention.heads for layer in module.layers] == [2] * len(module.layers)
        torch.testing.assert_close(module(**example), expected, atol=1e-5, rtol=1e-5)
        again, _ = small(name)
        load_narrow(again, module.state_dict())
        assert torch.equal(again(**example), module(**example))


def test_wider_weights_and_other_networks_are_refused() -> None:
    module, example = small("lenet5")
    take_out(module, Pruning(kind="channels"), example)
    whole, _ = small("lenet5")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_narrow(module, whole.state_dict())
    with pytest.raises(InvalidRecipe, match="there is no layer whose heads could go"):
        take_out(whole, Pruning(kind="heads"), example)


# Gates


def test_gates_are_trained_and_leave_each_row_half_of_the_channels_of_each_layer(digits: Dataset) -> None:
    made = load_recipe(
        "digits-cnn", changes=["epochs=20", "averaging=null", "early_stopping=null", "pruning.kind=gated"]
    )
    module = build_module(made, digits)
    take_out(module, Pruning(kind="gated"), {"pixels": torch.from_numpy(digits.train.inputs["pixels"][:4])})
    begun = {name: weight.clone() for name, weight in module.state_dict().items() if "saliency" in name}
    made_of_it = fit(module, made, digits).module
    kept = {
        name: channels_left(layer.out_channels, 0.5) for name, layer in convolutions(build_module(made, digits)).items()
    }
    assert gates(made_of_it) == kept
    assert len(begun) == 2 * len(kept) > 0
    assert all(not torch.equal(weight, made_of_it.state_dict()[name]) for name, weight in begun.items())
    pixels = torch.from_numpy(digits.test.inputs["pixels"])
    used = dict[str, Tensor]()
    for name in kept:
        layer = made_of_it.get_submodule(name)
        layer.register_forward_hook(lambda _, __, answer, name=name: used.update({name: (answer != 0).any(dim=(2, 3))}))
    with torch.inference_mode():
        right = (made_of_it(pixels).argmax(dim=1).numpy() == digits.test.labels).mean()
    assert right > 0.5
    for name, number in kept.items():
        assert used[name].sum(dim=1).max() == number
    assert any((each != each[0]).any() for each in used.values()), "all rows keep the same"


def test_what_has_gates_or_no_convolution_cannot_get_any() -> None:
    module, example = small("text-transformer")
    with pytest.raises(InvalidRecipe, match="there is no convolution whose channels could have gates"):
        take_out(module, Pruning(kind="gated"), example)
    module, example = small("lenet5")
    take_out(module, Pruning(kind="gated"), example)
    for kind in ("gated", "channels"):
        with pytest.raises(InvalidRecipe, match="the network has gates"):
            take_out(module, Pruning.model_validate({"kind": kind}), example)


def test_a_pruned_and_then_gated_network_is_rebuilt_from_what_is_registered(tmp_path: Path) -> None:
    made = load_recipe("digits-cnn")
    chosen = architecture(made.architecture.name)
    config = chosen.configure(made.architecture.config)
    module, example = chosen.build(config).eval(), chosen.example(config, 4)
    for kind in ("channels", "gated"):
        take_out(module, Pruning.model_validate({"kind": kind}), example)
    (tmp_path / FOLDER).mkdir()
    write_retrainable(tmp_path / FOLDER, module=module, recipe=made, labels=("0",), tokenizer=None)
    found = read_retrainable(tmp_path)
    assert isinstance(found, Retrainable)
    assert found.gates == gates(module)
    assert found.gates
    with torch.inference_mode():
        assert torch.equal(found.module()(**example), module(**example))


# In the registry


@pytest.mark.slow
def test_a_pruned_version_is_registered_with_its_start_and_can_be_a_start_itself(whole: Whole, tmp_path: Path) -> None:
    settings = ExportedDigits(home=whole.settings.home).copy(tmp_path / "home").settings
    made = load_recipe(
        "digits-mlp",
        changes=[
            "epochs=1", "architecture.config.hidden=[16]", "start=models:/digits-mlp/1", "pruning.kind=channels",
            "model=narrow", "early_stopping=null",
        ],
    )  # fmt: skip
    first = train(made, settings)
    assert first.trained.module.get_submodule("hidden.0").out_features == 8
    again = made.model_copy(update={"start": "models:/narrow/1", "pruning": None, "seed": 1})
    second = train(again, settings)
    assert second.trained.module.get_submodule("hidden.0").out_features == 8
    tags = EmbeddedRegistry(settings).client.get_model_version("narrow", "2").tags
    assert tags["seatrial.start"] == "models:/narrow/1"
    assert second.trained.score.value > 0.25, "what was learnt before is still there"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("averaging.decay=0.9", "pruning.kind=magnitude"), "set averaging=null and early_stopping=null"),
        (("pruning.kind='2:4'", "pruning.sparsity=0.7"), "leave pruning.sparsity at 0.5"),
        (("pruning.kind=chanels",), "'pruning.kind' is 'chanels'"),
        (("start=models:/a/1", "pretrained=all-minilm-l6-v2"), "set one to null"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: tuple[str, ...], says: str) -> None:
    with pytest.raises(InvalidRecipe, match=says):
        recipe(*changes)
