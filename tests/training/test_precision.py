"""Mixed precision is a matter of the hardware, unless the recipe says which."""

import pytest
import torch

from seatrial.machine import this_machine
from seatrial_training.precision import choose_precision


@pytest.mark.parametrize(("wanted", "chosen"), [("32", "32-true"), ("bf16", "bf16-mixed"), ("fp16", "16-mixed")])
def test_a_recipe_that_says_which_gets_it(wanted: str, chosen: str) -> None:
    assert choose_precision(wanted) == chosen


def test_auto_is_mixed_only_where_there_are_units_for_it() -> None:
    has_units = torch.cuda.is_available() or "amx_bf16" in this_machine().features
    assert (choose_precision("auto") != "32-true") == has_units
