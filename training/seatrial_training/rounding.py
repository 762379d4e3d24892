"""Train with the rounding of INT8 in the way: Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference" (2018).

The scheme is that of static INT8 in the export: what goes into a convolution or a product with weights is unsigned, with one
range for the whole tensor, in which zero is; its weights are signed, each output channel with a range of its own around zero.
(Normalisation that follows is folded into the weights later, and scales a channel together with its range, so the rounding is
the same.) Gradients pass the rounding as if it were not there, and stop at what lies outside a range. Weights stay in float:
the module that results is an ordinary one, whose weights stand where rounding does little harm.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seatrial_models.architecture import Inputs
from seatrial_training.recipe import Quantization

LEVELS = 255
"""Steps between the ends of an activation's range."""
FORGOTTEN = 0.01
"""The part of the way that the end of a range moves back, at each step, to what was seen in it."""
TINY = 1e-12


class Rounding(nn.Module):
    """Asks a module as if it were INT8. Its own are the ranges, which follow what is seen in training: `ends`, the low
    and the high one of each layer."""

    ends: Tensor

    def __init__(self, chosen: Quantization, module: nn.Module) -> None:
        super().__init__()
        self._largest = 64 if chosen.weight_bits == 7 else 127
        self._layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        self.register_buffer("ends", torch.zeros(len(self._layers), 2))

    def ask(self, module: nn.Module, inputs: Inputs) -> Tensor:
        layers = {name: module.get_submodule(name) for name in self._layers}
        weights = {f"{name}.weight": self._weight(layer.get_parameter("weight")) for name, layer in layers.items()}
        with ExitStack() as hooks:
            for number, layer in enumerate(layers.values()):
                hooks.callback(layer.register_forward_pre_hook(partial(self._enter, number)).remove)
            answer: Tensor = functional_call(module, weights, (), dict(inputs))
        return answer

    def _weight(self, weight: Tensor) -> Tensor:
        """As ONNX Runtime rounds it: 7 bits are from -64 to 64, 8 from -127 to 127."""
        largest = weight.detach().abs().flatten(1).amax(dim=1)
        scales = (largest / self._largest).clamp(min=TINY).float()
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -self._largest, self._largest)

    def _enter(self, number: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entering, *rest = inputs
        if layer.training:
            self._look(number, entering.detach())
        low, high = self.ends[number]
        scale = ((high - low) / LEVELS).clamp(min=TINY)
        zero = (-low / scale).round().clamp(0, LEVELS).int()
        return (torch.fake_quantize_per_tensor_affine(entering, scale, zero, 0, LEVELS), *rest)

    def _look(self, number: int, seen: Tensor) -> None:
        """Widen the range to what is seen, at once; narrow it slowly."""
        now = torch.stack([seen.amin().clamp(max=0), seen.amax().clamp(min=0)]).float()
        back = torch.lerp(self.ends[number], now, FORGOTTEN)
        self.ends[number] = torch.stack([torch.minimum(back[0], now[0]), torch.maximum(back[1], now[1])])
