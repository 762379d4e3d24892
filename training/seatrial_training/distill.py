"""Learn from a teacher's answers: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015).

And from what it makes of a row on the way: Romero et al., "FitNets: hints for thin deep nets" (2015), each layer of the
student through a projection to the width of the teacher's, all in one stage with the answers. The teacher sees what the
student sees, augmented alike (Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022).

B batch · K classes
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from seatrial.errors import InvalidRecipe
from seatrial.spelling import did_you_mean
from seatrial_models.architecture import Inputs
from seatrial_training.recipe import Distillation

IMAGE_AXES = 4
"""Batch, channels, height and width; other features have their width in the last axis."""

Ask: TypeAlias = Callable[[nn.Module, Inputs], Tensor]


def as_it_is(module: nn.Module, inputs: Inputs) -> Tensor:
    answer: Tensor = module(**inputs)
    return answer


class Lesson:
    """What a student learns from `teacher` beside the labels. `projections` are to be trained along with the student.

    No module, so that the teacher is neither trained nor kept in checkpoints.
    """

    def __init__(self, chosen: Distillation, *, teacher: nn.Module, student: nn.Module, example: Inputs) -> None:
        """`example` is answered by both. Raises `InvalidRecipe` where they do not fit, or have no such layers."""
        self.labels_weight = 1 - chosen.weight
        self._chosen = chosen
        self._teacher = teacher.eval().requires_grad_(False)
        with torch.no_grad():
            learnt_BK, learnt = _watch(student, chosen.features.keys(), example, whose="student")
            taught_BK, taught = _watch(self._teacher, chosen.features.values(), example, whose="teacher")
        if learnt_BK.shape != taught_BK.shape:
            raise InvalidRecipe(f"the teacher answers {list(taught_BK.shape)}, the student {list(learnt_BK.shape)}")
        names = [f"'{one}' from '{other}'" for one, other in chosen.features.items()]
        self.projections = nn.ModuleList(map(_projection, learnt, taught, names))

    def attend(self, student: nn.Module, inputs: Inputs, ask: Ask = as_it_is) -> tuple[Tensor, Tensor]:
        """The student's logits, and how far it is from the teacher; `ask` is how the student is asked."""
        chosen = self._chosen
        logits_BK, learnt = _watch(student, chosen.features.keys(), inputs, whose="student", ask=ask)
        with torch.no_grad():
            teacher = self._teacher.to(logits_BK.device)
            taught_BK, taught = _watch(teacher, chosen.features.values(), inputs, whose="teacher")
        distance = chosen.weight * answers_apart(logits_BK, taught_BK, temperature=chosen.temperature)
        for project, one, other in zip(self.projections, learnt, taught, strict=True):
            distance = distance + chosen.features_weight * functional.mse_loss(project(one), other)
        return logits_BK, distance


def answers_apart(learnt_BK: Tensor, taught_BK: Tensor, *, temperature: float) -> Tensor:
    """The divergence of softened answers, times the square of the temperature: so its gradients are as large as the
    labels' (section 2.1 of Hinton et al.)."""
    learnt, taught = (
        functional.log_softmax(logits_BK.float() / temperature, dim=-1) for logits_BK in (learnt_BK, taught_BK)
    )
    return functional.kl_div(learnt, taught, reduction="batchmean", log_target=True) * temperature**2


def _watch(
    module: nn.Module, names: Collection[str], inputs: Inputs, *, whose: str, ask: Ask = as_it_is
) -> tuple[Tensor, list[Tensor]]:
    """What `module` answers to `inputs`, and what its layers of these names make of them, the first time they are asked."""
    layers, made = dict(module.named_modules()), dict[str, Tensor]()
    known = [name for name in layers if name]

    def keep(name: str, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        made.setdefault(name, output)

    with ExitStack() as hooks:
        for name in names:
            if name not in known:
                raise InvalidRecipe(
                    f"the {whose} has no layer '{name}'"
                    + did_you_mean(name, known, otherwise=f"it has {', '.join(known)}")
                )
            hooks.callback(layers[name].register_forward_hook(partial(keep, name)).remove)
        answer = ask(module, inputs)
    if unasked := [name for name in names if name not in made]:
        raise InvalidRecipe(f"the {whose} never asks its layer '{unasked[0]}' as a whole; name one inside of it")
    return answer, [made[name] for name in names]


def _projection(learnt: Tensor, taught: Tensor, names: str) -> nn.Module:
    """From the student's features to as many as the teacher's; of an image, the same for each of its positions."""
    image = learnt.ndim == IMAGE_AXES
    axis = 1 if image else -1
    if learnt.select(axis, 0).shape != taught.select(axis, 0).shape:
        raise InvalidRecipe(
            f"distillation.features: {names}: of shapes {list(learnt.shape)} and {list(taught.shape)}, which may differ "
            f"in axis {axis} alone"
        )
    return nn.Conv2d(learnt.shape[1], taught.shape[1], 1) if image else nn.Linear(learnt.shape[-1], taught.shape[-1])
