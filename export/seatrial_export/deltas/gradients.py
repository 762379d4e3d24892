"""A source program as something that can be differentiated, which no engine's answer is.

Attacks and gradient-based explanations ask it. Axes: B rows, C channels, H height, W width, T tokens, D features.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from seatrial.errors import InvalidSource
from seatrial.tensors import Array, Signature
from seatrial_export.program import TORCH_PROGRAM, open_program
from seatrial_export.samples import Inputs
from seatrial_training.data import Labels
from seatrial_training.evaluation import OUTPUT


class Differentiable:
    """A `.pt2`. Raises `InvalidSource` for what has no gradients: an ONNX file, or a program that cuts them off."""

    def __init__(self, program: Path, signature: Signature) -> None:
        if program.suffix != TORCH_PROGRAM:
            raise InvalidSource(f"{program.name} is no torch program, so there are no gradients")
        module = open_program(program).module()
        assert isinstance(module, fx.GraphModule), "an exported program's module is a graph: this is a bug"
        self._module = module.requires_grad_(False)
        self._inputs = [spec.name for spec in signature.inputs]
        self._place = [spec.name for spec in signature.outputs].index(OUTPUT)

    @property
    def convolution(self) -> fx.Node | None:
        """The last one, if it has any."""
        return self._last("aten.conv")

    @property
    def embedding(self) -> fx.Node | None:
        return self._last("aten.embedding")

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._run(inputs, fx.Interpreter(self._module))

    def loss_gradients(self, inputs: Inputs, truth: Labels) -> dict[str, Array]:
        """Of the sum of the rows' cross-entropies, with respect to every input that holds floats."""
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        free = {name: tensor.requires_grad_() for name, tensor in tensors.items() if tensor.is_floating_point()}
        loss = torch.nn.functional.cross_entropy(self.logits(tensors), torch.from_numpy(truth), reduction="sum")
        return dict(zip(free, (each.numpy() for each in _gradients(loss, list(free.values()))), strict=True))

    def at(self, node: fx.Node, inputs: Inputs, label: int, factor: Array | float) -> tuple[Array, Array]:
        """What `node` gives, times `factor`, and the gradient of the logit `label` there."""
        seen: list[Tensor] = []

        def watch(found: Tensor) -> Tensor:
            seen.append((found.detach() * torch.as_tensor(factor)).requires_grad_())
            return seen[0]

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        logits = self._run(tensors, _Watched(self._module, node, watch))
        [gradient] = _gradients(logits[:, label].sum(), seen)
        return seen[0].detach().numpy(), gradient.numpy()

    def input_gradient(self, name: str, array: Array, label: int) -> Array:
        """Of the logit `label`, where `name` is the only input."""
        tensor = torch.from_numpy(array).requires_grad_()
        [gradient] = _gradients(self.logits({name: tensor})[:, label].sum(), [tensor])
        return np.asarray(gradient.numpy())

    def _run(self, inputs: Mapping[str, Tensor], interpreter: fx.Interpreter) -> Tensor:
        found = interpreter.run(*(inputs[name] for name in self._inputs))
        answer: Tensor = pytree.tree_leaves(found)[self._place]
        return answer

    def _last(self, operator: str) -> fx.Node | None:
        nodes = [node for node in self._module.graph.nodes if str(node.target).startswith(operator)]
        return nodes[-1] if nodes else None


class _Watched(fx.Interpreter):
    """Runs a graph, with what `node` gives put through `watch`."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, watch: Callable[[Tensor], Tensor]) -> None:
        super().__init__(module)
        self._node, self._watch = node, watch

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        return self._watch(found) if n is self._node else found


def _gradients(of: Tensor, at: list[Tensor]) -> tuple[Tensor, ...]:
    if not of.requires_grad:
        raise InvalidSource("the source program cuts off its gradients")
    return torch.autograd.grad(of, at)
