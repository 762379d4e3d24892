"""Random changes to a training batch that do not change its classes.

Each is a function of the whole batch, drawn from torch's global generator, which `fit` seeds for every epoch.

B batch · C channels · H height · W width · T tokens
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch.nn import functional

from seatrial.errors import InvalidRecipe
from seatrial.spelling import did_you_mean
from seatrial_models.architecture import Inputs
from seatrial_training.data import PADDING_ID, UNKNOWN_ID

Augmentation: TypeAlias = Callable[[Inputs], Inputs]

FORGOTTEN = 0.1
"""The part of all tokens that `forget` makes unknown."""


def augmentations(names: Iterable[str]) -> tuple[Augmentation, ...]:
    """The functions of these names. Raises `InvalidRecipe`."""
    for name in names:
        if name not in AUGMENTATIONS:
            meant = did_you_mean(name, AUGMENTATIONS, otherwise=f"there are {', '.join(AUGMENTATIONS)}")
            raise InvalidRecipe(f"there is no augmentation '{name}'{meant}")
    return tuple(AUGMENTATIONS[name] for name in names)


def crop(inputs: Inputs) -> Inputs:
    """Move each image by up to an eighth of its size, along both axes; what was at its edge fills the gap."""
    pixels_BCHW = inputs["pixels"]
    batch, _, height, width = pixels_BCHW.shape
    margin_y, margin_x = height // 8, width // 8
    padded = functional.pad(pixels_BCHW, (margin_x, margin_x, margin_y, margin_y), mode="replicate")
    y_BH = torch.randint(0, 2 * margin_y + 1, (batch, 1)) + torch.arange(height)
    x_BW = torch.randint(0, 2 * margin_x + 1, (batch, 1)) + torch.arange(width)
    moved_BHWC = padded[torch.arange(batch)[:, None, None], :, y_BH[:, :, None], x_BW[:, None, :]]
    return inputs | {"pixels": moved_BHWC.permute(0, 3, 1, 2)}


def flip(inputs: Inputs) -> Inputs:
    """Mirror each image with probability one half."""
    pixels_BCHW = inputs["pixels"]
    mirrored_B111 = torch.rand(len(pixels_BCHW), 1, 1, 1) < 0.5
    return inputs | {"pixels": torch.where(mirrored_B111, pixels_BCHW.flip(-1), pixels_BCHW)}


def shrink(inputs: Inputs, scale: float) -> Inputs:
    """Make each image smaller. Not random, and not among `AUGMENTATIONS`: only some epochs do it."""
    return inputs | {"pixels": functional.interpolate(inputs["pixels"], scale_factor=scale, mode="area")}


def forget(inputs: Inputs) -> Inputs:
    """Make a tenth of all tokens unknown, so that no text is known by one word alone."""
    ids_BT = inputs["token_ids"]
    forgotten_BT = (torch.rand(ids_BT.shape) < FORGOTTEN) & (ids_BT != PADDING_ID)
    return inputs | {"token_ids": ids_BT.masked_fill(forgotten_BT, UNKNOWN_ID)}


def trim(inputs: Inputs) -> Inputs:
    """Cut off what is padding in every text of the batch: most texts are much shorter than the longest."""
    ids_BT = inputs["token_ids"]
    longest = int((ids_BT != PADDING_ID).sum(dim=1).max())
    return inputs | {"token_ids": ids_BT[:, : max(longest, 1)]}


AUGMENTATIONS: Mapping[str, Augmentation] = {"crop": crop, "flip": flip, "forget": forget, "trim": trim}
