"""Modules that have fewer channels, or heads, than their config says: what pruning leaves.

Knows how to make room for narrower weights. Which channels go, and why, is not its business.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seatrial_models.transformer import SelfAttention

SIZES: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.Linear: ("out_features", "in_features"),
    nn.BatchNorm2d: ("num_features",),
}
"""What each kind of layer calls the first axes of its weight."""


def load_narrow(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give `module` these weights, whose layers may be narrower than its own. Raises `RuntimeError` where they do not fit."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, SelfAttention):
            layer.heads = weights[f"{name}.query.weight"].shape[0] * layer.heads // layer.query.out_features
        if sizes := SIZES.get(type(layer)):
            found = weights[f"{name}.weight"].shape
            if all(new <= old for new, old in zip(found, layer.get_parameter("weight").shape, strict=True)):
                _make_room(layer, {key: weights[f"{name}.{key}"].shape for key in layer.state_dict()})
                for size, value in zip(sizes, found, strict=False):
                    setattr(layer, size, value)
    module.load_state_dict(weights)


def _make_room(layer: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    for key, shape in shapes.items():
        kept = getattr(layer, key)
        if kept.shape == shape:
            continue
        room = torch.empty(shape, dtype=kept.dtype)
        trained = isinstance(kept, nn.Parameter)
        setattr(layer, key, nn.Parameter(room, requires_grad=kept.requires_grad) if trained else room)
