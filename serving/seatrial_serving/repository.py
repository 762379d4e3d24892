"""What could be served here, loaded or not: the contract between the doors of the model repository and whoever holds the models.

Source: Triton's model repository extension.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from seatrial.errors import WrongInput


class ModelState(StrEnum):
    """As the extension spells them."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """`version` is empty while it is not known, `reason` where there is nothing to say."""

    name: str
    version: str
    state: ModelState
    reason: str = ""


def check_load_parameters(parameters: Mapping[str, object]) -> None:
    """Raise `WrongInput` for the parameters of Triton's that bring a configuration or files along: a bundle has its own."""
    if parameters:
        raise WrongInput(
            f"loading takes no parameters, got {sorted(parameters)}; a model is loaded as its source has it"
        )


class Repository(Protocol):
    async def index(self) -> list[Listed]: ...

    async def load(self, name: str) -> None:
        """Return when `name` is served as its source means now. Raises `UnknownModel`, or what keeps it from being served;
        then what was served before still is."""

    async def unload(self, name: str) -> None:
        """Return when the last request of `name` is answered and its engines have ended. Raises `UnknownModel`."""
