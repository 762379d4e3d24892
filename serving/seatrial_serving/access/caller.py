"""A caller, as the rest of the server knows it: a name, rights, and what is left of its quota."""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from seatrial_serving.access.quotas import Allowance


class Act(StrEnum):
    INFER = "infer"
    READ = "read"
    """Metadata, configuration, statistics."""
    MANAGE = "manage"
    """Load and unload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """`models` are names, in which * and ? stand for anything."""

    acts: frozenset[Act]
    models: tuple[str, ...]

    def covers(self, act: Act, model: str) -> bool:
        return act in self.acts and any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    name: str
    rights: tuple[Right, ...]
    allowance: Allowance

    def may(self, act: Act, model: str) -> bool:
        return any(right.covers(act, model) for right in self.rights)

    def may_anything(self, model: str) -> bool:
        return any(self.may(act, model) for act in Act)


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who asks, while a request is looked at. Set by the doors of a server that asks, and by nobody else."""
