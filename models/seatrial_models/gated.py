"""Channels that are used only for the rows that want them: Gao et al., "Dynamic channel pruning: feature boosting and
suppression" (2019).

Each convolution gets a predictor, which sees the mean of each of its input's channels and says how salient each of its output's
will be. The most salient channels of a row are kept, times how salient they are, and the others are zero. Here saliency counts
from the first channel that is not kept: which channels win depends on rounding where two are as good as equal, and so their
answers must be, too. The winners' mean is 1, so that no layer becomes quiet by it.

B batch · C channels in · H height · W width · K channels out
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CLOSE = 1e-3
"""Saliencies that lie together no further apart than this are not spread to the mean of 1."""


class Gated(nn.Module):
    """A convolution with the normalization after it, of whose channels at most `kept` are not zero in a row."""

    def __init__(self, convolution: nn.Conv2d, normalization: nn.Module, *, kept: int) -> None:
        super().__init__()
        self.convolution, self.normalization, self.kept = convolution, normalization, kept
        self.saliency = nn.Linear(convolution.in_channels, convolution.out_channels)
        with torch.no_grad():  # to begin with, large filters win: what pruning by magnitude would leave
            sizes_K = convolution.weight.flatten(start_dim=1).norm(dim=1)
            self.saliency.bias.copy_(sizes_K / sizes_K.mean())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BKHW: Tensor = self.normalization(self.convolution(x_BCHW))
        return y_BKHW * self.gate(x_BCHW)[:, :, None, None]

    def gate(self, x_BCHW: Tensor) -> Tensor:
        """What each channel of each row is multiplied by, BK."""
        salient_BK = self.saliency(x_BCHW.mean(dim=(2, 3))).relu()
        first_lost_B1 = salient_BK.topk(self.kept + 1, dim=1).values[:, -1:]
        above_BK = (salient_BK - first_lost_B1).relu()
        gate_BK: Tensor = above_BK * self.kept / (above_BK.sum(dim=1, keepdim=True) + CLOSE)
        return gate_BK


def convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Those that have no gate, by name."""
    inside = tuple(f"{name}." for name in gates(module))
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and not name.startswith(inside)
    }


def gates(module: nn.Module) -> dict[str, int]:
    """How many channels each gated layer keeps, by its name."""
    return {name: layer.kept for name, layer in module.named_modules() if isinstance(layer, Gated)}


def add_gates(module: nn.Module, kept: Mapping[str, int]) -> None:
    """Gate the convolutions of these names, where fewer channels than they have are kept."""
    for name, number in kept.items():
        parent_name, _, own = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        convolution = parent.get_submodule(own)
        assert isinstance(convolution, nn.Conv2d), f"'{name}' is no convolution: this is a bug"
        after = _normalization_after(parent, own)
        normalization = parent.get_submodule(after) if after else nn.Identity()
        if after:
            setattr(parent, after, nn.Identity())
        setattr(parent, own, Gated(convolution, normalization, kept=number))


def _normalization_after(parent: nn.Module, own: str) -> str | None:
    """The name of the layer that follows `own` in `parent`, if that is a normalization."""
    names = [name for name, _ in parent.named_children()]
    after = names[names.index(own) + 1 :][:1]
    return next((name for name in after if isinstance(parent.get_submodule(name), nn.BatchNorm2d)), None)
