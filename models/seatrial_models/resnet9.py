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
    mirrored: bool = False
    """Answer, once trained, with the mean of the logits of an image and of its mirror image, as the network's author does in
    his evaluation: twice the work, for about one point of accuracy on CIFAR-10."""


class ResNet9(nn.Module):
    def __init__(self, config: ResNet9Config) -> None:
        super().__init__()
        width, self.mirrored = config.width, config.mirrored
        self.prepare = _convolution(config.pixels[0], width)
        self.layer1 = nn.Sequential(Halving(width, 2 * width), Residual(2 * width))
        self.layer2 = Halving(2 * width, 4 * width)
        self.layer3 = nn.Sequential(Halving(4 * width, 8 * width), Residual(8 * width))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.output = nn.Linear(8 * width, config.classes, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.mirrored and not self.training:
            return (self.logits(pixels) + self.logits(pixels.flip(-1))) / 2
        return self.logits(pixels)

    def logits(self, pixels: Tensor) -> Tensor:
        """Of the image as it is."""
        x_BCHW = self.layer3(self.layer2(self.layer1(self.prepare(pixels))))
        x_BD = self.pool(x_BCHW).flatten(start_dim=1)
        logits_BK: Tensor = self.output(x_BD) * LOGIT_SCALE
        return logits_BK


class Halving(nn.Module):
    """A convolution of which every 2x2 positions leave the largest.

    Normalization does not learn its scale, which stays positive, so the largest may be taken before it (less to normalize,
    which is what training does) or at the end (a convolution into which it can be folded, for those who serve): the same to
    the bit. So did the author of the network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(width)
        self.normalization.weight.requires_grad_(False)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.convolution(x_BCHW)
        if self.training:
            x_BCHW = self.pool(x_BCHW)
        x_BCHW = self.activation(self.normalization(x_BCHW))
        return x_BCHW if self.training else self.pool(x_BCHW)


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
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


RESNET9 = Architecture(
    name="resnet9",
    config=ResNet9Config,
    build=ResNet9,
    signature=lambda config: image_classifier(config.pixels, config.classes),
    example=lambda config, batch: example_image(config.pixels, batch),
    small=(
        ResNet9Config(pixels=(3, 16, 16), classes=10, width=4, mirrored=True),
        ResNet9Config(pixels=(1, 9, 8), classes=3, width=3),
    ),
)
