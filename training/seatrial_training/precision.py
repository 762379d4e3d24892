"""Which arithmetic to train in: mixed precision where the hardware has it."""

from typing import Literal

import torch

from seatrial.machine import this_machine

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

_NAMES: dict[str, Precision] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def choose_precision(wanted: str) -> Precision:
    """Lightning's name for `wanted`; for `auto`, the fastest that this machine has units for."""
    if wanted != "auto":
        return _NAMES[wanted]
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if "amx_bf16" in this_machine().features else "32-true"
