"""Augmentations change what is seen, never what it is.

B batch · C channels · H height · W width · T tokens
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.errors import InvalidRecipe
from seatrial_training.augment import FORGOTTEN, augmentations, crop, flip, forget, shrink, trim
from seatrial_training.data import PADDING_ID, UNKNOWN_ID

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(8, 20), st.integers(8, 20))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@given(SIZES)
@settings(deadline=None, max_examples=20)
def test_cropping_moves_each_image_by_at_most_an_eighth(size: tuple[int, int, int, int]) -> None:
    batch, channels, height, width = size
    pixels = torch.arange(batch * channels * height * width, dtype=torch.float32).reshape(size)
    moved = crop({"pixels": pixels})["pixels"]
    assert moved.shape == pixels.shape
    y, x = height // 8, width // 8
    for before, after in zip(pixels, moved, strict=True):
        middle = after[:, y : height - y, x : width - x]
        offsets = [(dy, dx) for dy in range(2 * y + 1) for dx in range(2 * x + 1)]
        assert any(
            torch.equal(middle, before[:, dy : dy + height - 2 * y, dx : dx + width - 2 * x]) for dy, dx in offsets
        )


def test_images_of_one_batch_are_moved_differently() -> None:
    same = torch.rand(1, 1, 16, 16).expand(64, 1, 16, 16)
    moved = crop({"pixels": same})["pixels"]
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 10


def test_flipping_mirrors_about_half_of_the_images_and_leaves_the_others() -> None:
    pixels = torch.rand(400, 3, 8, 8)
    flipped = flip({"pixels": pixels})["pixels"]
    mirrored = sum(torch.equal(after, before.flip(-1)) for before, after in zip(pixels, flipped, strict=True))
    left = sum(torch.equal(after, before) for before, after in zip(pixels, flipped, strict=True))
    assert mirrored + left == 400
    assert 150 < mirrored < 250


def test_a_smaller_image_shows_the_same() -> None:
    pixels_BCHW = torch.arange(4.0).reshape(1, 1, 2, 2).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    small_BCHW = shrink({"pixels": pixels_BCHW}, 0.25)["pixels"]
    assert small_BCHW.tolist() == [[[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]]]


def test_forgetting_makes_a_tenth_of_the_tokens_unknown_and_never_the_padding() -> None:
    ids_BT = torch.arange(2, 22).repeat(500, 1)
    ids_BT[:, 15:] = PADDING_ID
    forgotten_BT = forget({"token_ids": ids_BT})["token_ids"]
    changed_BT = forgotten_BT != ids_BT
    assert (forgotten_BT[changed_BT] == UNKNOWN_ID).all()
    assert not changed_BT[:, 15:].any()
    assert abs(changed_BT[:, :15].float().mean() - FORGOTTEN) < 0.02


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_trimming_takes_padding_and_nothing_else(lengths: list[int]) -> None:
    ids_BT = torch.stack([(torch.arange(9) < length) * 7 for length in lengths])
    trimmed_BT = trim({"token_ids": ids_BT})["token_ids"]
    assert trimmed_BT.shape == (len(lengths), max(1, *lengths))
    assert (trimmed_BT != 0).sum(dim=1).tolist() == lengths


def test_an_augmentation_that_does_not_exist() -> None:
    with pytest.raises(InvalidRecipe, match="there is no augmentation 'flop'; did you mean 'flip'"):
        augmentations(["crop", "flop"])
