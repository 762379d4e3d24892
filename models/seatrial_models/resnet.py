"""ResNet-18: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016), section 3.3 and table 1.

With `stem: small` the first convolution is 3x3 without stride and without pooling after it, as the paper does for
CIFAR-10 (section 4.2): on an image of 32x32 pixels the other stem would leave 1/16 of the positions.

B batch · C channels · H height · W width · D features · K classes
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from seatrial_models.architecture import Architecture, ImageShape, Size, example_image, image_classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNet18Config:
    pixels: ImageShape
    classes: Size
    stem: Literal["imagenet", "small"] = "imagenet"
    width: Size = 64
    """Channels of the first stage; each later stage doubles them."""
    blocks: tuple[Size, Size, Size, Size] = (2, 2, 2, 2)
    """Residual blocks of each stage: two each make 18 layers."""


class ResNet18(nn.Module):
    def __init__(self, config: ResNet18Config) -> None:
        super().__init__()
        self.stem = _small_stem(config) if config.stem == "small" else _imagenet_stem(config)
        widths = [config.width * 2**stage for stage in range(4)]
        self.stage1 = _stage(config.blocks[0], channels=widths[0], width=widths[0], stride=1)
        self.stage2 = _stage(config.blocks[1], channels=widths[0], width=widths[1], stride=2)
        self.stage3 = _stage(config.blocks[2], channels=widths[1], width=widths[2], stride=2)
        self.stage4 = _stage(config.blocks[3], channels=widths[2], width=widths[3], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(widths[3], config.classes)
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        x_BCHW = self.stem(pixels)
        x_BCHW = self.stage4(self.stage3(self.stage2(self.stage1(x_BCHW))))
        x_BD = self.pool(x_BCHW).flatten(start_dim=1)
        logits_BK: Tensor = self.output(x_BD)
        return logits_BK


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and the input added to what they make of it (figure 2; projection shortcut: option B)."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride=stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        residual_BCHW = self.relu(self.norm1(self.conv1(x_BCHW)))
        residual_BCHW = self.norm2(self.conv2(residual_BCHW))
        y_BCHW: Tensor = self.relu(self.shortcut(x_BCHW) + residual_BCHW)
        return y_BCHW


def _imagenet_stem(config: ResNet18Config) -> nn.Sequential:
    convolution = nn.Conv2d(config.pixels[0], config.width, kernel_size=7, stride=2, padding=3, bias=False)
    pooling = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(config.width), nn.ReLU(), pooling)


def _small_stem(config: ResNet18Config) -> nn.Sequential:
    return nn.Sequential(_conv3x3(config.pixels[0], config.width, stride=1), nn.BatchNorm2d(config.width), nn.ReLU())


def _stage(blocks: int, *, channels: int, width: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride=stride)
    return nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(blocks - 1)))


def _conv3x3(channels: int, width: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)


def _initialise(module: nn.Module) -> None:
    """He et al., "Delving deep into rectifiers" (2015), as the paper asks."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


RESNET18 = Architecture(
    name="resnet18",
    config=ResNet18Config,
    build=ResNet18,
    signature=lambda config: image_classifier(config.pixels, config.classes),
    example=lambda config, batch: example_image(config.pixels, batch),
    small=(
        ResNet18Config(pixels=(3, 64, 64), classes=5, width=4),
        ResNet18Config(pixels=(3, 16, 16), classes=10, width=4, stem="small", blocks=(1, 2, 1, 1)),
    ),
)
