"""Is the choice the same when it is measured again? An export of digits-cnn, whose measuring is repeated.

Every candidate is built and verified once; then each round opens new engine processes, measures, and chooses, as an export does.
What a variant really costs is taken to be the median over all rounds.
"""

import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.bench import Bench
from benchmarks.models import DIGITS
from benchmarks.tables import table
from seatrial.registry import ModelRef
from seatrial.settings import Settings

if TYPE_CHECKING:
    from seatrial_export.choose import Judgement

WITHIN = 1.03
HOLDS = 19 / 20


def measure(bench: Bench) -> str:
    judged = _judged(bench)
    every = [judgement for judgements in judged for judgement in judgements]
    costs, admitted, chosen = defaultdict(list), Counter[str](), Counter[str]()
    for judgement in every:
        name = judgement.variant.candidate.name
        costs[name].append(judgement.variant.row_ms)
        admitted[name] += judgement.verdict in ("chosen", "within the budget")
        chosen[name] += judgement.verdict == "chosen"
    admissible = [name for name in costs if admitted[name] > len(judged) / 2]
    best = min(median(costs[name]) for name in admissible)
    within = sum(chosen[name] for name in costs if median(costs[name]) <= WITHIN * best)
    holds = "holds" if within >= HOLDS * len(judged) else "does not hold"
    promise = ["chosen within 3 % of the best admissible, 19 of 20 times", f"{within} of {len(judged)}", holds]
    columns = ["variant", "ms a row, median of the rounds", "least and most", "admissible", "times chosen"]
    rows = [
        [
            name,
            f"{median(found):.5f}",
            f"{min(found):.5f} to {max(found):.5f}",
            _yes(name in admissible),
            str(chosen[name]),
        ]
        for name, found in costs.items()
    ]
    return table(["must hold", "found", ""], [promise]) + "\n\n" + table(columns, rows)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _judged(bench: Bench) -> list[list["Judgement"]]:
    """What was judged in each round."""
    from seatrial.registry.embedded import EmbeddedRegistry
    from seatrial_export.export import Work
    from seatrial_export.request import Request
    from seatrial_export.timetable import Timetable

    task = bench.progress.add_task("remeasured", total=bench.rounds + 1)
    settings = Settings(home=bench.models.digits_home)
    request = Request(ref=ModelRef(name=DIGITS, version="1"))
    version = EmbeddedRegistry(settings).resolve(request.ref)
    with tempfile.TemporaryDirectory() as place:
        work = Work(request=request, version=version, settings=settings, place=Path(place), timetable=Timetable())
        with work.stand() as stand:
            examined = work.examine(stand)
        bench.progress.advance(task)
        found = []
        for _ in range(bench.rounds):
            with work.stand() as stand:
                found.append(work.judge(work.measure(examined, stand).variants))
            bench.progress.advance(task)
    return found
