"""What a check is, how it is registered, and what it can find."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias


class Kind(StrEnum):
    """A wire that the protocol is spoken over."""

    REST = "REST"
    GRPC = "gRPC"


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    NOT_OFFERED = "not offered"
    """Optional, and this server does not say that it has it."""
    NOT_APPLICABLE = "not applicable"
    """There is no such thing on this wire, or this model does not allow to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`note` says which of several allowed forms was met, or why there was nothing to judge."""

    verdict: Verdict
    note: str = ""
    found: str = ""
    expected: str = ""


class Failed(Exception):
    def __init__(self, *, found: object, expected: object) -> None:
        self.found, self.expected = str(found), str(expected)
        super().__init__(f"found {found}, expected {expected}")


class NotApplicable(Exception):
    pass


class NotOffered(Exception):
    pass


Body: TypeAlias = Callable[[Any, Any], str | None]
"""Takes a wire and the subject; returns a note, or raises `Failed`, `NotApplicable`, `NotOffered` or `Refusal`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`clause` is where the protocol says it; with `extension`, it is judged where the server advertises that extension."""

    id: str
    title: str
    """What must hold, in words."""
    clause: str
    required: bool
    on: tuple[Kind, ...]
    extension: str
    body: Body

    @property
    def hostile(self) -> bool:
        """Whether it may hurt a server: such checks run last, and only where they were asked for."""
        return self.id.startswith("hostile.")


CHECKS: dict[str, Check] = {}
"""Every check by its id, in the order of the table. Importing `areas` fills it."""


def check(
    id_: str,
    *,
    clause: str = "",
    title: str = "",
    required: bool = True,
    on: tuple[Kind, ...] = tuple(Kind),
    extension: str = "",
) -> Callable[[Body], Body]:
    """Register the decorated function. Its name is the title, and the extension the clause, unless they are given."""
    assert clause or extension, f"check {id_} cites nothing: this is a bug"

    def register(body: Body) -> Body:
        assert id_ not in CHECKS, f"there are two checks {id_}: this is a bug"
        CHECKS[id_] = Check(
            id=id_,
            title=title or body.__name__.replace("_", " "),
            clause=clause or f"extension {extension}",
            required=required,
            on=on,
            extension=extension,
            body=body,
        )
        return body

    return register
