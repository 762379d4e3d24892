"""LeNet-5: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998).

Layers are named as in the paper's figure 2. As is usual today: ReLU for the scaled tanh, max-pooling for trainable
sub-sampling, full connection from S2 to C3, and a linear output for the Gaussian one. The convolutions keep the size of
the image, so that eight by eight pixels are enough.

B batch · C channels · H height · W width · D features · K classes
"""

from dataclasses import dataclass

from torch import Tensor, nn

from seatrial_models.architecture import Architecture, ImageShape, Rate, Size, example_image, image_classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class LeNet5Config:
    pixels: ImageShape
    classes: Size
    maps: tuple[Size, Size] = (6, 16)
    """Feature maps of C1 and of C3."""
    hidden: tuple[Size, Size] = (120, 84)
    """Features of C5 and of F6."""
    dropout: Rate = 0.0


class LeNet5(nn.Module):
    def __init__(self, config: LeNet5Config) -> None:
        super().__init__()
        channels, height, width = config.pixels
        self.c1 = nn.Conv2d(channels, config.maps[0], kernel_size=5, padding=2)
        self.s2 = nn.MaxPool2d(2)
        self.c3 = nn.Conv2d(config.maps[0], config.maps[1], kernel_size=5, padding=2)
        self.s4 = nn.MaxPool2d(2)
        self.c5 = nn.Linear(config.maps[1] * (height // 4) * (width // 4), config.hidden[0])
        self.f6 = nn.Linear(*config.hidden)
        self.output = nn.Linear(config.hidden[1], config.classes)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        x_BCHW = self.s2(self.relu(self.c1(pixels)))
        x_BCHW = self.s4(self.relu(self.c3(x_BCHW)))
        x_BD = self.relu(self.c5(x_BCHW.flatten(start_dim=1)))
        x_BD = self.dropout(self.relu(self.f6(x_BD)))
        logits_BK: Tensor = self.output(x_BD)
        return logits_BK


LENET5 = Architecture(
    name="lenet5",
    config=LeNet5Config,
    build=LeNet5,
    signature=lambda config: image_classifier(config.pixels, config.classes),
    example=lambda config, batch: example_image(config.pixels, batch),
    small=(
        LeNet5Config(pixels=(1, 8, 8), classes=10),
        LeNet5Config(pixels=(3, 28, 12), classes=4, maps=(2, 3), hidden=(5, 6), dropout=0.5),
    ),
)
