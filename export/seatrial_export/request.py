"""What somebody wants exported, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seatrial.errors import InvalidSettings
from seatrial.registry import ModelRef
from seatrial.spelling import did_you_mean
from seatrial_export import study
from seatrial_export.candidate import CANDIDATES, DEFAULT_TARGETS, TARGETS, Candidate
from seatrial_export.choose import Budget, Objective
from seatrial_export.contest import Sizes
from seatrial_export.remote.reach import On, assigned


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`candidates` are tried where their target is among `targets`.

    After `minutes` nothing new is begun: the best that was proved until then is taken, and each target's float model is waited
    for. With `probe` the report also says how what was chosen answers spoiled and adversarial rows, and on what in a row its
    answers hang. `search` is how many finer forms of static INT8 are tried, of which the best become candidates too; with any, it
    is also asked how many channels may go. `on` says which targets are verified and timed on other machines.
    """

    ref: ModelRef
    targets: Sequence[str] = DEFAULT_TARGETS
    budget: Budget = field(default_factory=Budget)
    objective: Objective = Objective.CHEAPEST
    sizes: Sizes = field(default_factory=Sizes)
    samples: Path | None = None
    trust: bool = False
    minutes: float | None = None
    probe: bool = False
    search: int = 0
    on: Sequence[On] = ()
    candidates: Sequence[Candidate] = CANDIDATES

    def __post_init__(self) -> None:
        if self.search and (why := study.obstacle()):
            raise InvalidSettings(why)
        for target in self.targets:
            if target not in TARGETS:
                meant = did_you_mean(target, TARGETS, otherwise=f"there are {', '.join(TARGETS)}")
                raise InvalidSettings(f"there is no target '{target}'{meant}")
        assigned(self.on, self.targets)
