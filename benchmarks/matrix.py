"""Every architecture of the zoo for every target on this CPU: whether it converts, agrees, and how fast it then is.

Built, opened and verified as `seatrial export` does it, from the program on. Nothing is trained: the weights are seeded, and
the sizes those of the contract tests.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.stands import played
from benchmarks.tables import table
from seatrial.registry import ModelVersion
from seatrial.settings import load_settings
from seatrial_export.build import Built, Workshop, building
from seatrial_export.candidate import (
    AOTI_CPU,
    CANDIDATES,
    COREML,
    LITERT_CPU,
    ONNX_CPU,
    ONNX_WEB,
    TENSORFLOW_CPU,
    TVM_CPU,
    Candidate,
    Lost,
)
from seatrial_export.child import Limits, child_limits
from seatrial_export.measure import ratio
from seatrial_export.samples import repeat, write_arrays
from seatrial_export.source import Source
from seatrial_export.stand import Stand, Terms
from seatrial_export.trial import Verified, ask_source, examine
from seatrial_models import ARCHITECTURES
from seatrial_models.architecture import Architecture
from seatrial_models.program import to_program
from seatrial_training.retrainable import NotRetrainable

ON_CPU = tuple(each for each in CANDIDATES if not each.lossy and each.target.endswith("-cpu"))
SHOWN = (*ON_CPU, *(each for each in CANDIDATES if each.target in (ONNX_WEB, COREML)))
"""What runs elsewhere, too: in a browser if there is one, and what can only be built with `unverified` as its reason."""
MUST = tuple(each for each in ON_CPU if each.target not in (AOTI_CPU, LITERT_CPU, TENSORFLOW_CPU, TVM_CPU))
ROWS, BATCH = 64, 32
"""Rows that everybody is asked; of those, rows in a call that is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """`distance` is the greatest from the source; `alone` and `together` how many times as fast as ONNX Runtime it is, for
    one row and for a batch. Without a distance, `why` says what became of it."""

    distance: float | None = None
    alone: float = 1.0
    together: float = 1.0
    why: str = ""

    def __str__(self) -> str:
        return "no" if self.distance is None else f"{self.distance:.0e}, {self.alone:.2f}, {self.together:.2f}"


def measure(bench: Bench) -> str:
    task = bench.progress.add_task("matrix", total=len(ARCHITECTURES))
    found: dict[str, dict[Candidate, Cell]] = {}
    for name, architecture in ARCHITECTURES.items():
        with tempfile.TemporaryDirectory(dir=bench.place) as place:
            found[name] = _cells(architecture, Path(place), rounds=bench.rounds, for_s=bench.seconds)
        bench.progress.advance(task)
    return report(found)


def report(found: Mapping[str, Mapping[Candidate, Cell]]) -> str:
    cells = [cell for row in found.values() for candidate, cell in row.items() if candidate in MUST]
    agree = sum(cell.distance is not None for cell in cells)
    said = sum(bool(cell.why) for cell in cells)
    holds = "holds" if agree + said == len(cells) else "does not hold"
    must = (
        f"each architecture for {', '.join(each.target for each in MUST)}: converts and agrees, or it is said why not"
    )
    summary = table(["must hold", "found", ""], [[must, f"{agree} of {len(cells)} agree, of {said} it is said", holds]])
    matrix = table(
        ["", *(each.target for each in SHOWN)],
        [[name, *(str(row[each]) for each in SHOWN)] for name, row in found.items()],
    )
    reasons = [
        f"- {name}, {candidate.target}: {cell.why}"
        for name, row in found.items()
        for candidate, cell in row.items()
        if cell.why
    ]
    return "\n\n".join([summary, matrix, *(["\n".join(reasons)] if reasons else [])])


def _cells(architecture: Architecture[Any], place: Path, *, rounds: int, for_s: float) -> dict[Candidate, Cell]:
    source, limits = source_of(architecture, place), child_limits(load_settings())
    with Stand(place / "stand", Terms.of(limits, threads=1, call_s=limits.time_s)) as stand:
        examined = list(_examined(source, place, limits, stand))
        bundles = {each.candidate: each.bundle for each in examined if isinstance(each, Verified)}
        alone, together = (
            played(bundles, stand, _calls(source, place, rows), for_s=for_s, at_least=rounds) for rows in (1, BATCH)
        )
    [base] = [candidate for candidate in bundles if candidate.target == ONNX_CPU]
    cells = {}
    for each in examined:
        if isinstance(each, Lost):
            cells[each.candidate] = Cell(why=f"{each.verdict}: {each.reason}")
        else:
            cells[each.candidate] = Cell(
                distance=each.proof.agreement.max_absolute,
                alone=ratio(alone[base], alone[each.candidate]).middle,
                together=ratio(together[base], together[each.candidate]).middle,
            )
    return cells


def source_of(architecture: Architecture[Any], place: Path) -> Source:
    config = architecture.small[0]
    torch.manual_seed(0)
    signature = architecture.signature(config)
    program = place / "program.pt2"
    torch.export.save(
        to_program(architecture.build(config).eval(), architecture.example(config, 3), signature), program
    )
    rows = {name: tensor.numpy() for name, tensor in architecture.example(config, ROWS).items()}
    return Source(
        version=ModelVersion(name=architecture.name, version="1", run_id="", source=""),
        files=place,
        program=program,
        signature=signature,
        rows=rows,
        calibration=rows,
        held_out=None,
        dataset=None,
        retrainable=NotRetrainable(reason="nothing was trained"),
        text=None,
        notes=(),
    )


def _calls(source: Source, place: Path, rows: int) -> Path:
    calls = place / f"calls-{rows}.npz"
    write_arrays(calls, repeat(source.rows, rows))
    return calls


def _examined(source: Source, place: Path, limits: Limits, stand: Stand) -> Iterator[Verified | Lost]:
    workshop = Workshop(source=source, folder=place, settings=load_settings(), limits=limits, tell=lambda *_: None)
    with building(SHOWN, workshop) as underway:
        questions = ask_source(source)
        built: list[Built | Lost] = [underway[each].result() for each in SHOWN]
    for each in built:
        yield (
            each
            if isinstance(each, Lost)
            else examine(each, source, questions, store=place / "bundles", threads=1, opened=stand.opened)
        )
