"""Take weights out of a module: whole channels and heads, which leaves a smaller one, or single weights, which leaves zeros;
or have each row choose among the channels.

Channels go with all that depends on them: Fang et al., "DepGraph: towards any structural pruning" (2023); heads: Michel et
al., "Are sixteen heads really better than one?" (2019), here by the size of their weights. Zeros come by magnitude, more and
more of them while the rest is trained: Zhu and Gupta, "To prune, or not to prune" (2017); or two of every four along the
input, as sparse tensor cores want it: Mishra et al., "Accelerating sparse deep neural networks" (2021). Gates make zeros of
channels, others for each row: Gao et al., "Dynamic channel pruning" (2019). Zeros are multiplied like any other number wherever
no kernel knows better.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe
from seatrial_models.architecture import Inputs
from seatrial_models.bert import Bert
from seatrial_models.gated import add_gates, convolutions, gates
from seatrial_models.transformer import SelfAttention, TextTransformer
from seatrial_training.recipe import Pruning, Recipe

RISES = 32
"""How often the zeros become more on the way: sorting all weights at every step would cost more than the step."""
REGISTER = 8
"""Channels that fill a vector register of AVX2. Kernels compute whole registers, whatever is in them."""
GROUP, KEPT = 4, 2


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def take_out(module: nn.Module, pruning: Pruning, example: Inputs) -> None:
    """Leave a smaller `module`, where the pruning is of whole channels or heads, or one with gates. Raises `InvalidRecipe` if
    nothing can go."""
    if pruning.makes_zeros:
        return
    if gates(module):
        raise InvalidRecipe("the network has gates, which choose among all its channels; set pruning=null")
    if pruning.kind == "gated":
        _gate_channels(module, pruning.sparsity)
        return
    before = parameters(module)
    if pruning.kind == "heads":
        _take_heads_out(module, pruning.sparsity)
    else:
        _take_channels_out(module, pruning.sparsity, example)
    if parameters(module) == before:
        raise InvalidRecipe(f"there is no layer whose {pruning.kind} could go")


def _take_channels_out(module: nn.Module, ratio: float, example: Inputs) -> None:
    """Remove this part of each layer's channels, those whose weights are smallest, together with what reads them."""
    import torch_pruning

    widths = {layer: weight.shape[0] for layer, weight in _layers(module).items()}
    # The pruner rounds down what is left; half a channel more keeps it from rounding down a whole number.
    ratios = {layer: 1 - (channels_left(width, ratio) + 0.5) / width for layer, width in widths.items()}
    with warnings.catch_warnings():
        # Says that it takes parameters outside of layers for what they are not; we let it prune none of those.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio_dict=ratios,
            ignored_layers=_kept_whole(module),
            forward_fn=lambda model, inputs: model(**inputs),
        ).step()


def _gate_channels(module: nn.Module, ratio: float) -> None:
    """Have each row do without this part of the channels of each convolution."""
    found = {name: layer.out_channels for name, layer in convolutions(module).items()}
    kept = {name: left for name, width in found.items() if (left := channels_left(width, ratio)) < width}
    if not kept:
        raise InvalidRecipe("there is no convolution whose channels could have gates")
    add_gates(module, kept)


def channels_left(width: int, ratio: float) -> int:
    """About as many as `ratio` leaves: whole registers, where there is more than one."""
    left = max(1, math.floor((1 - ratio) * width + 1e-9))
    return left if left < REGISTER else REGISTER * math.floor(left / REGISTER + 0.5)


def _kept_whole(module: nn.Module) -> list[nn.Module]:
    """The outputs, which are the classes; of a Transformer all but the hidden layers of its feed-forward parts."""
    if isinstance(module, TextTransformer | Bert):
        hidden = [name for name, _ in module.named_modules() if name.endswith("feed_forward.0")]
        return [
            layer
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Embedding) and name not in hidden
        ]
    return [layer for name, layer in module.named_modules() if name == "output"]


def _take_heads_out(module: nn.Module, ratio: float) -> None:
    """Remove this part of the heads of each layer, one being left."""
    for attention in (each for each in module.modules() if isinstance(each, SelfAttention)):
        before, sources = attention.heads, (attention.query, attention.key, attention.value)
        width = attention.query.out_features // before
        left = max(1, before - round(ratio * before))
        size = attention.output.weight.square().sum(dim=0) + sum(each.weight.square().sum(dim=1) for each in sources)
        largest = size.view(before, width).sum(dim=1).argsort(descending=True, stable=True)[:left].sort().values
        features = (largest[:, None] * width + torch.arange(width)).flatten()
        for source in sources:
            source.weight, source.bias = (
                nn.Parameter(each.detach()[features]) for each in (source.weight, source.bias)
            )
            source.out_features = len(features)
        attention.output.weight = nn.Parameter(attention.output.weight.detach()[:, features].contiguous())
        attention.output.in_features = len(features)
        attention.heads = left


class Sparsifier(Callback):
    """Keeps single weights at zero while the others are trained.

    Has no state: the smallest weights of a run that goes on are the zeros that it had.
    """

    def __init__(self, pruning: Pruning) -> None:
        self._pruning = pruning
        self._reached: float | None = None
        self._masks: Sequence[tuple[Tensor, Tensor]] = ()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        part = (trainer.global_step + 1) / float(trainer.estimated_stepping_batches)
        sparsity = sparsity_at(part, self._pruning)
        if sparsity != self._reached:
            module = pl_module.get_submodule("module")
            self._reached, self._masks = sparsity, masks(module, self._pruning, sparsity)
        self._apply()

    def on_train_batch_end(self, *_: Any) -> None:
        self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for weight, mask in self._masks:
                weight.mul_(mask)


def sparsity_at(part: float, pruning: Pruning) -> float:
    """The part of the weights that is zero after this part of the steps: it rises fast at first, and in a cube's curve."""
    if part >= pruning.ramp:
        return pruning.sparsity
    risen = int(part / pruning.ramp * RISES) / RISES
    return pruning.sparsity * (1 - (1 - risen) ** 3)


def epoch_of_all_zeros(recipe: Recipe) -> int:
    """The first, counted from 0, that ends with all the zeros that `recipe` wants."""
    pruning = recipe.pruning
    return max(0, math.ceil(pruning.ramp * recipe.epochs) - 1) if pruning and pruning.makes_zeros else 0


def masks(module: nn.Module, pruning: Pruning, sparsity: float) -> list[tuple[Tensor, Tensor]]:
    """Each weight of a convolution or a matrix product, with what is 0 where it is to go and else 1."""
    weights = _products(module)
    if pruning.kind == "2:4":
        return [(weight, _two_of_four(weight)) for weight in weights if weight.shape[1] % GROUP == 0]
    if pruning.scope == "layer":
        return [(weight, _largest(weight.detach().abs().flatten(), sparsity).view(weight.shape)) for weight in weights]
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    parts = torch.split(_largest(sizes, sparsity), [weight.numel() for weight in weights])
    return [(weight, part.view(weight.shape)) for weight, part in zip(weights, parts, strict=True)]


def _largest(sizes: Tensor, sparsity: float) -> Tensor:
    mask = torch.ones_like(sizes)
    mask[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = 0
    return mask


def _two_of_four(weight: Tensor) -> Tensor:
    """Groups are of neighbours along the input, at each position of a convolution's kernel."""
    sizes = weight.detach().abs().movedim(1, -1)
    groups = sizes.reshape(*sizes.shape[:-1], -1, GROUP)
    mask = torch.ones_like(groups).scatter(-1, groups.argsort(dim=-1, stable=True)[..., : GROUP - KEPT], 0)
    return mask.flatten(-2).movedim(-1, 1)


def _products(module: nn.Module) -> list[Tensor]:
    return list(_layers(module).values())


def _layers(module: nn.Module) -> dict[nn.Module, Tensor]:
    """Convolutions and matrix products, with their weights."""
    return {layer: layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
