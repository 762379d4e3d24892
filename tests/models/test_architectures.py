"""What is particular to one architecture; what all must do is in `test_contract.py`."""

from typing import Any

import pytest
import torch
from torch import nn

from seatrial.errors import InvalidRecipe
from seatrial_models import architecture, build


def weights(name: str, **config: Any) -> int:
    return sum(weight.numel() for weight in build(name, config).parameters())


def test_resnet18_has_the_weights_of_the_paper_s() -> None:
    assert weights("resnet18", pixels=[3, 224, 224], classes=1000) == 11_689_512


def test_the_small_stem_keeps_every_position_of_a_small_image() -> None:
    sizes = {}
    for stem in ("small", "imagenet"):
        module: Any = build("resnet18", {"pixels": [3, 32, 32], "classes": 10, "stem": stem, "width": 4})
        sizes[stem] = tuple(module.stem(torch.zeros(1, 3, 32, 32)).shape[2:])
    assert sizes == {"small": (32, 32), "imagenet": (8, 8)}


def test_resnet18_has_eighteen_layers_with_weights_beside_its_shortcuts() -> None:
    module = build("resnet18", {"pixels": [3, 32, 32], "classes": 10, "width": 4})
    layers = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == 18


def test_lenet5_has_its_convolutions_maps_and_connections() -> None:
    c1, c3 = 6 * (5 * 5 + 1), 16 * (6 * 5 * 5 + 1)
    c5, f6, output = 120 * (16 * 7 * 7 + 1), 84 * (120 + 1), 10 * (84 + 1)
    assert weights("lenet5", pixels=[1, 28, 28], classes=10) == c1 + c3 + c5 + f6 + output


def test_a_perceptron_without_hidden_layers_is_linear() -> None:
    assert weights("mlp", pixels=[1, 8, 8], classes=10, hidden=[]) == 64 * 10 + 10


# The text Transformer

TEXT = {"vocabulary": 20, "max_tokens": 8, "classes": 3, "width": 8, "heads": 2, "feed_forward": 16}


@pytest.fixture(params=["mean", "cls"])
def text(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return build("text-transformer", TEXT | {"pooling": request.param}).eval()


def test_padding_does_not_change_the_answer(text: nn.Module) -> None:
    short = torch.tensor([[5, 6, 7]])
    long = torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(text(long), text(short), atol=1e-6, rtol=1e-5)


def test_the_order_of_words_matters(text: nn.Module) -> None:
    assert not torch.allclose(text(torch.tensor([[5, 6, 7]])), text(torch.tensor([[7, 6, 5]])))


def test_heads_that_cannot_share_the_width_are_refused() -> None:
    with pytest.raises(InvalidRecipe, match="width 8 cannot be shared evenly by 3 heads"):
        build("text-transformer", TEXT | {"heads": 3})


# Configs


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pixel": [1, 8, 8]}, "architecture 'lenet5' has no option 'pixel'; did you mean 'pixels'?"),
        ({"pixels": [1, 8], "classes": 10}, r"architecture 'lenet5': .*\$\.pixels"),
        ({"pixels": [1, 8, 8]}, "missing required field `classes`"),
        ({"pixels": [1, 8, 8], "classes": 0}, r"\$\.classes"),
        ({"pixels": [1, 8, 8], "classes": 10, "dropout": 1.5}, r"\$\.dropout"),
        ({"pixels": [1, 8, 8], "classes": "10"}, r"\$\.classes"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRecipe, match=says):
        architecture("lenet5").configure(options)


def test_an_unknown_architecture() -> None:
    with pytest.raises(InvalidRecipe, match="there is no architecture 'resnet'; did you mean 'resnet9'"):
        architecture("resnet")


def test_resnet9_may_take_the_largest_before_or_after_it_normalizes() -> None:
    torch.manual_seed(0)
    module: Any = build("resnet9", {"pixels": [3, 16, 16], "classes": 10, "width": 4})
    module.train()(torch.randn(8, 3, 16, 16))  # so that there are statistics to normalize with
    halving, x = module.eval().layer2, torch.randn(5, 8, 8, 8)
    nn.init.normal_(halving.normalization.bias)
    served = halving(x)
    as_trained = halving.activation(halving.normalization(halving.pool(halving.convolution(x))))
    assert served.shape == (5, 16, 4, 4)
    assert torch.equal(served, as_trained)
    assert 0 < (served == 0).float().mean() < 1, "ReLU cut some off"


def test_resnet9_mirrored_answers_the_mean_of_both_sides() -> None:
    config = {"pixels": [3, 16, 16], "classes": 10, "width": 4}
    plain, mirrored = build("resnet9", config), build("resnet9", config | {"mirrored": True})
    mirrored.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3, 16, 16)
    for module in (plain, mirrored):
        module.eval()
    torch.testing.assert_close(mirrored(x), (plain(x) + plain(x.flip(-1))) / 2)
    assert torch.equal(mirrored(x), mirrored(x.flip(-1)))
    assert not torch.equal(plain(x), plain(x.flip(-1)))
    for module in (plain, mirrored):
        module.train()
    assert torch.equal(mirrored(x), plain(x)), "in training there is one side"
