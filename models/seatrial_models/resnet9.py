"""ResNet-9: David Page, "How to train your ResNet" (2018-19), the network that won the DAWNBench race for CIFAR-10.

Few wide layers instead of many narrow ones: for the same number of multiplications it learns more in an epoch than
ResNet-18 does, so it is the one to train where there is little time. Two residual blocks; every other layer halves the
image by pooling after its convolution, and what is left at the end is pooled to one position.

B batch · C channels · H height · W width · D features · K classes
"""

from dataclasses import dataclass

from torch import Tensor, nn

from seatrial_models.architecture import Architecture, ImageShape, Size, example_image, image_classifier

LOGIT_SCALE = 0.125
"""What the paper's author multiplies the logits with, so that training does not begin with large ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNet9Config:
    pixels: ImageShape
    """At least eight pixels high and wide: the image is halved three times."""
    classes: Size
    width: Size = 64
    """Channels of the first layer; they double three times."""


class ResNet9(nn.Module):
    def __init__(self, config: ResNet9Config) -> None:
        super().__init__()
        width = config.width
        self.prepare = _convolution(config.pixels[0], width)
        self.layer1 = nn.Sequential(_convolution(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width))
        self.layer2 = nn.Sequential(_convolution(2 * width, 4 * width), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_convolution(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.output = nn.Linear(8 * width, config.classes, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x_BCHW = self.layer3(self.layer2(self.layer1(self.prepare(pixels))))
        x_BD = self.pool(x_BCHW).flatten(start_dim=1)
        logits_BK: Tensor = self.output(x_BD) * LOGIT_SCALE
        return logits_BK


class Residual(nn.Module):
    """The input, and what two convolutions make of it, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = x_BCHW + self.body(x_BCHW)
        return y_BCHW


def _convolution(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


RESNET9 = Architecture(
    name="resnet9",
    config=ResNet9Config,
    build=ResNet9,
    signature=lambda config: image_classifier(config.pixels, config.classes),
    example=lambda config, batch: example_image(config.pixels, batch),
    small=(ResNet9Config(pixels=(3, 16, 16), classes=10, width=4), ResNet9Config(pixels=(1, 9, 8), classes=3, width=3)),
)
