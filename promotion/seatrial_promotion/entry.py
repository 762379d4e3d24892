"""What the ledger holds: one move of an alias, or the refusal of one, with what each gate said."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias

from seatrial.bundle.manifest import sha256

Measured: TypeAlias = Mapping[str, float | int | str]


class Act(StrEnum):
    PROMOTE = "promote"
    ROLLBACK = "rollback"


class Verdict(StrEnum):
    """`done`: the alias moved. `refused`: a gate said no. `abandoned`: its process died before the alias moved."""

    OPEN = "open"
    DONE = "done"
    REFUSED = "refused"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """`waiver` is the reason that a person gave for going on although the gate said no."""

    gate: str
    passed: bool
    reason: str
    measured: Measured = field(default_factory=dict)
    waiver: str = ""

    @property
    def open(self) -> bool:
        return self.passed or bool(self.waiver)

    def waived(self, waiver: str) -> "GateResult":
        return self if self.passed else replace(self, waiver=waiver)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`before` is the version that the alias pointed at, empty if it pointed at none; `after` the one that it is to.

    `verdict` and `id` are not part of what the digest covers: the first changes once, the second is MLflow's.
    """

    act: Act
    model: str
    alias: str
    before: str
    after: str
    bundle: str
    by: str
    at: str
    gates: tuple[GateResult, ...] = ()
    reason: str = ""
    previous: str = ""
    id: str = ""
    verdict: Verdict = Verdict.OPEN

    def encode(self) -> bytes:
        content = {key: value for key, value in asdict(self).items() if key not in ("id", "verdict")}
        return json.dumps(content, indent=2, sort_keys=True).encode()

    @property
    def digest(self) -> str:
        return sha256(self.encode())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def broken_links(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each entry that does not name the one before it: something was changed, removed or put between."""
    expected = ""
    broken = []
    for entry in entries:
        if entry.previous != expected:
            broken.append(f"the entry of {entry.at} ({entry.id}) does not follow the one before it")
        expected = entry.digest
    return broken
