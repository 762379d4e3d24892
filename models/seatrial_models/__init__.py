"""Architectures that are rebuilt from their config and weights, never pickled."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from seatrial.errors import InvalidRecipe
from seatrial.spelling import did_you_mean
from seatrial_models.architecture import Architecture
from seatrial_models.bert import BERT
from seatrial_models.lenet import LENET5
from seatrial_models.mlp import PERCEPTRON
from seatrial_models.resnet import RESNET18
from seatrial_models.resnet9 import RESNET9
from seatrial_models.transformer import TEXT_TRANSFORMER

ARCHITECTURES: Mapping[str, Architecture[Any]] = {
    each.name: each for each in (PERCEPTRON, LENET5, RESNET9, RESNET18, TEXT_TRANSFORMER, BERT)
}
"""All of them. Adding one here enrols it in the shared contract tests."""


def architecture(name: str) -> Architecture[Any]:
    """The architecture of that name. Raises `InvalidRecipe`."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        meant = did_you_mean(name, ARCHITECTURES, otherwise=f"there are {', '.join(ARCHITECTURES)}")
        raise InvalidRecipe(f"there is no architecture '{name}'{meant}") from None


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A fresh module; its weights are drawn from torch's global generator."""
    chosen = architecture(name)
    return chosen.build(chosen.configure(config))
