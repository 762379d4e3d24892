"""A multi-layer perceptron: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors" (1986).

B batch · C channels · H height · W width · D features · K classes
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from seatrial_models.architecture import Architecture, ImageShape, Rate, Size, example_image, image_classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptronConfig:
    pixels: ImageShape
    classes: Size
    hidden: tuple[Size, ...] = (128, 64)
    dropout: Rate = 0.0


class Perceptron(nn.Module):
    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__()
        sizes = (math.prod(config.pixels), *config.hidden)
        hidden: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            hidden += [nn.Linear(size, next_size), nn.ReLU(), nn.Dropout(config.dropout)]
        self.hidden = nn.Sequential(*hidden)
        self.output = nn.Linear(sizes[-1], config.classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x_BD = pixels.flatten(start_dim=1)
        logits_BK: Tensor = self.output(self.hidden(x_BD))
        return logits_BK


PERCEPTRON = Architecture(
    name="mlp",
    config=PerceptronConfig,
    build=Perceptron,
    signature=lambda config: image_classifier(config.pixels, config.classes),
    example=lambda config, batch: example_image(config.pixels, batch),
    small=(
        PerceptronConfig(pixels=(1, 8, 8), classes=10),
        PerceptronConfig(pixels=(3, 4, 5), classes=3, hidden=(), dropout=0.5),
    ),
)
