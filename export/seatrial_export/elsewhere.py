"""What an export asks of hardware that it does not run on; `remote/there.py` has it. Everything here may raise `GONE`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from seatrial.bundle import Bundle
from seatrial.bundle.manifest import Hardware
from seatrial.errors import AgentLost, AgentRefused, ConversionFailed, SeatrialError
from seatrial.machine import Machine
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.child import Limits
from seatrial_export.choose import Budget, Objective
from seatrial_export.contest import Outcome, Pace, Sizes
from seatrial_export.samples import Inputs, Outputs

if TYPE_CHECKING:
    from seatrial_export import package, tensorrt
    from seatrial_export.trial import Found, Questions, Verified
    from seatrial_training.evaluation import Score


GONE = (AgentLost, AgentRefused)
"""What costs the targets that are measured there, and nothing else."""


class Elsewhere(Protocol):
    """One machine that a target's candidates are verified and timed on."""

    @property
    def name(self) -> str:
        """As the person who asked for it named it."""

    @property
    def threads(self) -> int:
        """Of an engine."""

    @property
    def memory_bytes(self) -> int:
        """What a child may take."""

    @property
    def machine(self) -> Machine: ...

    @property
    def tools(self) -> Mapping[str, str]: ...

    @property
    def facts(self) -> Mapping[str, object]:
        """All of the machine that decides whether a candidate is proved there."""

    def obstacle(self, target: str) -> str | None:
        """Why nothing of `target` runs there, in one clause."""

    def hardware(self, engine: str) -> Hardware:
        """What machine code that `engine` builds there is bound to."""

    def package(self, job: "package.Job", *, folder: Path, limits: Limits) -> Path:
        """Have its program compiled there; the file, fetched into `folder`. Raises `ConversionFailed`."""

    def plan(self, job: "tensorrt.Job", *, folder: Path, limits: Limits) -> "tensorrt.Planned":
        """Have its ONNX file built there; the plan is fetched into `folder`. Raises `ConversionFailed`."""

    def prove(
        self, candidate: Candidate, bundle: Bundle, questions: "Questions", *, program: Path | None
    ) -> "Found | Lost": ...

    def contest(
        self,
        verified: "Sequence[Verified]",
        rows: Inputs,
        *,
        sizes: Sizes,
        pace: Pace,
        budget: Budget,
        objective: Objective,
    ) -> Outcome:
        """All of them against each other, there. Raises `ConversionFailed`."""

    def answers(self, bundle: Bundle, calls: Sequence[Inputs]) -> Sequence[Outputs]:
        """Raises `ConversionFailed`."""

    def replay(self, bundle: Bundle) -> None:
        """Raises `ConversionFailed` where it does not repeat its golden requests on an engine that is new."""

    def look(self, bundle: Bundle, questions: "Questions") -> "Score | Outputs":
        """Raises `ConversionFailed`."""


def lost_elsewhere(candidate: Candidate, why: SeatrialError, verdict: Verdict) -> Lost:
    if isinstance(why, ConversionFailed):
        return Lost(candidate=candidate, verdict=verdict, reason=why.reason, log=why.log)
    return Lost(candidate=candidate, verdict=verdict, reason=str(why))
