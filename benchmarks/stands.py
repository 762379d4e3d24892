"""Bundles timed on the stand of an export: each engine in a process of its own, in rounds of turns."""

from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.rounds import Lost
from seatrial.bundle import Bundle
from seatrial_export.measure import MIN_ROUNDS, Rounds
from seatrial_export.stand import Stand

Name = TypeVar("Name", bound=Hashable)


def played(
    bundles: Mapping[Name, Bundle], stand: Stand, inputs: Path, *, for_s: float, at_least: int = MIN_ROUNDS
) -> dict[Name, Mapping[int, float]]:
    """How many milliseconds a call with the arrays in the file `inputs` took, in each round. Raises `Lost` where an engine is."""
    mounted = {str(number): stand.mount(bundle, inputs=inputs) for number, bundle in enumerate(bundles.values())}
    rounds = Rounds({number: partial(engine.call, inputs) for number, engine in mounted.items()})
    rounds.play(list(mounted), for_s=for_s, at_least=at_least)
    for engine in mounted.values():
        engine.close()
    for number, name in enumerate(bundles):
        if error := rounds.lost.get(str(number)):
            raise Lost(f"{name}: {error}")
    return {name: rounds.medians(str(number)) for number, name in enumerate(bundles)}
