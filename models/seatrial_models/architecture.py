"""What an architecture declares, so that everything else can treat all of them alike.

Knows how a config becomes a module, a signature and example inputs. Knows no network in particular, no data and no
training.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe
from seatrial.spelling import did_you_mean
from seatrial.tensors import BATCH, DataType, DynamicAxis, Padding, Signature, TensorSpec

Size = Annotated[int, msgspec.Meta(ge=1)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1)]
ImageShape: TypeAlias = tuple[Size, Size, Size]
"""Channels, height, width."""

Inputs: TypeAlias = dict[str, Tensor]
"""What `forward` takes, by the names of its parameters, which are the names of the signature's inputs."""

MAX_BATCH = 64
"""The largest batch that a signature declares. The modules take any; the export stage verifies as far as it declares."""

PADDING = 0
"""The token id that stands beyond the end of a text."""

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture(Generic[Config]):
    """A network that can be built anew from its config. `config` is a frozen dataclass.

    `example` gives seeded inputs of a batch size. `small` are configs that between them reach every branch of the
    network and are cheap enough for the contract tests, in which each registered architecture takes part.
    """

    name: str
    config: type[Config]
    build: Callable[[Config], nn.Module]
    signature: Callable[[Config], Signature]
    example: Callable[[Config, int], Inputs]
    small: tuple[Config, ...]

    def configure(self, options: Mapping[str, Any]) -> Config:
        """The config that `options`, read from YAML or JSON, describe. Raises `InvalidRecipe`, naming the option."""
        known = [field.name for field in dataclasses.fields(self.config)]  # type: ignore[arg-type] # see `config`
        for name in options:
            if name not in known:
                meant = did_you_mean(name, known, otherwise=f"it has {', '.join(known)}")
                raise InvalidRecipe(f"architecture '{self.name}' has no option '{name}'{meant}")
        try:
            return msgspec.convert(options, self.config)
        except msgspec.ValidationError as error:
            raise InvalidRecipe(f"architecture '{self.name}': {error}") from error


def image_classifier(shape: ImageShape, classes: int) -> Signature:
    """Takes `pixels`, already normalised; gives `logits`."""
    return Signature(
        inputs=(TensorSpec(name="pixels", datatype=DataType.FP32, shape=(-1, *shape)),),
        outputs=(TensorSpec(name="logits", datatype=DataType.FP32, shape=(-1, classes)),),
        dynamic_axes=(DynamicAxis(name=BATCH, at={"pixels": 0, "logits": 0}, max=MAX_BATCH),),
    )


def example_image(shape: ImageShape, batch: int) -> Inputs:
    return {"pixels": torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))}


def text_classifier(max_tokens: int, classes: int) -> Signature:
    """Takes `token_ids`, padded at the end with id 0; gives `logits`."""
    return Signature(
        inputs=(TensorSpec(name="token_ids", datatype=DataType.INT64, shape=(-1, -1)),),
        outputs=(TensorSpec(name="logits", datatype=DataType.FP32, shape=(-1, classes)),),
        dynamic_axes=(
            DynamicAxis(name=BATCH, at={"token_ids": 0, "logits": 0}, max=MAX_BATCH),
            DynamicAxis(name="tokens", at={"token_ids": 1}, max=max_tokens),
        ),
        padding=Padding(axis="tokens", values={"token_ids": PADDING}),
    )


def example_text(vocabulary: int, max_tokens: int, batch: int) -> Inputs:
    """Rows of all lengths from 1 to the longest allowed, padded."""
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(1, vocabulary, (batch, max_tokens), generator=generator)
    lengths = torch.randint(1, max_tokens + 1, (batch, 1), generator=generator)
    return {"token_ids": token_ids.masked_fill(torch.arange(max_tokens) >= lengths, 0)}
