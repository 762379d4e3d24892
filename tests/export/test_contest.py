"""The contest: whose sizes are timed, who is lost in it, how long it goes on, and whether it finds the best."""

import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from seatrial.bundle import Bundle
from seatrial.errors import InvalidSettings
from seatrial.tensors import DynamicAxis
from seatrial_export.candidate import CANDIDATES, Verdict
from seatrial_export.child import Limits
from seatrial_export.choose import Budget, Objective, Variant, choose, halved, undecided
from seatrial_export.contest import Halved, Outcome, Pace, Size, Sizes, contest, length_axis
from seatrial_export.measure import FEWEST_ROUNDS, MAX_ROUNDS, MIN_ROUNDS
from seatrial_export.stand import Mounted, Stand, Terms
from tests.export.engines_at_will import Sea, SimulatedStand, verified
from tests.export.models import one_row_only, right, some_rows
from tests.serving.models import SIGNATURE, LinearBundle

ON_ONNX_CPU = FLOAT, DYNAMIC, STATIC, PRUNED = CANDIDATES[:4]
EXPORTS = 40
"""That are simulated."""


def still_undecided(
    variants: Sequence[Variant], *, objective: Objective = Objective.CHEAPEST
) -> list[tuple[Variant, ...]]:
    return [pair] if (pair := undecided(variants, Budget(), objective)) else []


def still_halved(variants: Sequence[Variant]) -> Sequence[Variant]:
    return halved(variants, Budget(), Objective.CHEAPEST)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contest")


@functools.cache
def linear_bundle(version: str, folder: Path) -> Bundle:
    return LinearBundle(version=version).write(folder / "bundles")


def simulated(
    sea: Sea,
    ms: Sequence[float],
    folder: Path,
    *,
    accuracies: Sequence[float] = (0.9,) * len(CANDIDATES),
    sizes: Sizes | None = None,
    longer_s: float = 20.0,
    stays: Halved = still_halved,
) -> Outcome:
    """Variants whose call takes `ms`, whatever it is asked."""
    stand = SimulatedStand(sea, {str(number): each for number, each in enumerate(ms)})
    some = [
        verified(candidate, linear_bundle(str(number), folder), accuracy=accuracy)
        for number, (candidate, accuracy) in enumerate(zip(CANDIDATES[: len(ms)], accuracies, strict=False))
    ]
    return contest(
        some,
        some_rows(),
        stand=stand,  # type: ignore[arg-type]  # it has what a contest asks for
        folder=folder / "calls",
        sizes=sizes or Sizes(),
        pace=Pace(for_s=1.0, longer_s=longer_s),
        halved=stays,
        undecided=still_undecided,
        clock=sea.clock,
    )


# Whether it finds the best


@pytest.mark.slow
def test_the_chosen_one_is_within_3_percent_of_the_best_in_19_of_20_simulated_exports(place: Path) -> None:
    """Four variants, of which the others take 0 to 15 % longer than the best, most of them less than 5 %; all are admissible."""
    within, most_accurate = 0, 0
    for number in range(EXPORTS):
        sea = Sea(seed=number)
        ms = 5 * (1 + sea.random.permutation([0.0, *sea.random.exponential(0.04, size=3)]))
        accuracies = sea.random.uniform(0.9, 0.901, size=4)
        outcome = simulated(sea, list(ms), place, accuracies=list(accuracies))
        [chosen] = [each.variant for each in choose(outcome.variants, Budget()) if each.verdict is Verdict.CHOSEN]
        cost = dict(zip(ON_ONNX_CPU, ms, strict=True))[chosen.candidate]
        within += cost <= 1.03 * min(ms)
        most_accurate += chosen.quality.value == max(accuracies[ms <= 1.03 * min(ms)])
    assert within >= EXPORTS * 19 / 20
    assert most_accurate >= EXPORTS / 2, "what is as cheap is told so, or accuracy would never decide"


# How long it goes on


def test_two_that_are_told_apart_are_not_timed_longer_nor_two_that_are_known_to_be_alike(place: Path) -> None:
    for ms in ((5.0, 6.0), (5.0, 5.01)):
        outcome = simulated(Sea(seed=1), ms, place)
        assert all(MIN_ROUNDS <= each.throughput.rounds <= MAX_ROUNDS for each in outcome.variants)
        assert outcome.notes == ()


def test_after_each_stretch_the_slower_half_leaves(place: Path) -> None:
    """Eight slow ones, for which there is no time: the last two get enough rounds, all together fewer than without halving."""
    ms = (240, 100, 180, 200, 120, 140, 160, 220)
    found = simulated(Sea(seed=1), ms, place, sizes=Sizes(batches=(8,))).variants
    rounds = {took: variant.throughput.rounds for took, variant in zip(ms, found, strict=True)}
    assert [rounds[each] / FEWEST_ROUNDS for each in sorted(ms)] == [3, 3, 2, 2, 1, 1, 1, 1]
    assert rounds[100] >= MIN_ROUNDS
    assert sum(rounds.values()) < len(ms) * MIN_ROUNDS


def test_who_leaves_is_compared_with_who_stays_by_the_rounds_of_both(place: Path) -> None:
    """The machine is half as fast from the second stretch on; by its own median one that left would be the fastest."""
    sea = Sea(seed=1)

    def slower_from_now_on(variants: Sequence[Variant]) -> Sequence[Variant]:
        sea.slowed = 2.0
        return still_halved(variants)

    found = simulated(sea, (5.0, 5.5, 6.0, 60.0), place, sizes=Sizes(batches=(8,)), stays=slower_from_now_on).variants
    first, second, gone, _ = found
    assert gone.throughput.p50_ms < first.throughput.p50_ms
    assert first.row_ms < second.row_ms < gone.row_ms
    [chosen] = [each.variant for each in choose(found, Budget()) if each.verdict is Verdict.CHOSEN]
    assert chosen is first


def test_where_noise_hides_who_is_faster_only_the_two_fastest_go_on_and_it_is_said(place: Path) -> None:
    sea = Sea(seed=1, noise=0.4)
    outcome = simulated(sea, (5.05, 5.0, 50.0), place, longer_s=3.0)
    first, second, slow = outcome.variants
    assert first.throughput.rounds == second.throughput.rounds > slow.throughput.rounds >= FEWEST_ROUNDS
    [note] = outcome.notes
    assert FLOAT.name in note
    assert DYNAMIC.name in note
    assert f"could not be told apart within 3 % in {first.throughput.rounds} rounds: this machine is too noisy" in note


def test_a_better_one_that_may_be_within_3_percent_goes_on_too(place: Path) -> None:
    """Of five, the third by time is the most accurate."""
    ms, accuracies = (5.0, 5.05, 5.14, 5.14, 50.0), (0.9, 0.9, 0.92, 0.9, 0.9)
    found = simulated(Sea(seed=1, noise=0.4), ms, place, accuracies=accuracies, longer_s=3.0).variants
    rounds = [each.throughput.rounds for each in found]
    assert rounds[2] == max(rounds) > MAX_ROUNDS > rounds[4]


# Sizes


def test_latency_counts_at_the_smallest_size_that_is_named_and_cost_at_the_largest(place: Path) -> None:
    [found] = simulated(Sea(seed=3), (0.5,), place, sizes=Sizes(batches=(16, 4, 64))).variants
    assert (found.alone.batch, found.throughput.batch, [each.batch for each in found.more]) == (4, 64, [16])
    assert [each.batch for each in found.timings] == [4, 64, 16]
    [found] = simulated(Sea(seed=3), (0.5,), place, sizes=Sizes(batches=(8,))).variants
    assert found.alone == found.throughput
    assert len(found.timings) == 1
    [found] = simulated(Sea(seed=3), (0.5,), place).variants
    assert [each.batch for each in found.timings] == [1, 32]


def test_every_batch_is_timed_at_every_length() -> None:
    assert Sizes(batches=(8, 1), lengths=(64, 16)).listed(full=32) == [
        Size(batch=1, length=16), Size(batch=1, length=64), Size(batch=8, length=16), Size(batch=8, length=64),
    ]  # fmt: skip
    assert Sizes().listed(full=1) == [Size(batch=1)]


def test_sizes_that_were_not_verified_are_refused_by_name() -> None:
    tokens = DynamicAxis(name="tokens", at={"x": 1}, min=2, max=128)
    texts = msgspec.structs.replace(SIGNATURE, dynamic_axes=(*SIGNATURE.dynamic_axes, tokens))
    fixed = msgspec.structs.replace(SIGNATURE, dynamic_axes=())
    Sizes(batches=(1, 64), lengths=(2, 128)).check(texts)
    assert length_axis(texts) == tokens
    for sizes, signature, words in (
        (Sizes(batches=(65,)), SIGNATURE, "--batch 65 was not verified: the axis 'batch' goes from 1 to 64"),
        (Sizes(lengths=(1,)), texts, "--length 1 was not verified: the axis 'tokens' goes from 2 to 128"),
        (Sizes(lengths=(8,)), SIGNATURE, "no single axis beside the batch"),
        (Sizes(batches=(1,)), fixed, "the model takes calls of one fixed size"),
    ):
        with pytest.raises(InvalidSettings, match=words):
            sizes.check(signature)


# Real engines


def test_an_engine_that_is_lost_costs_itself_alone_and_says_how(tmp_path: Path) -> None:
    """One cannot be asked for a full batch, one is killed while it is timed; the third one is measured."""
    models = {FLOAT: right, DYNAMIC: one_row_only, STATIC: right}
    some = [
        verified(candidate, LinearBundle(version=candidate.name, model=make(tmp_path / f"{candidate.name}.onnx")).write(tmp_path))
        for candidate, make in models.items()
    ]  # fmt: skip
    limits = Limits(time_s=60, memory_bytes=2**31, threads=1)
    with Watched(tmp_path / "stand", Terms.of(limits, threads=1, call_s=30)) as stand:
        outcome = contest(
            some, some_rows(), stand=stand, folder=tmp_path / "calls", sizes=Sizes(),
            pace=Pace(for_s=0.05, longer_s=30), halved=still_halved,
            undecided=functools.partial(stand.kill_and_ask_for_more, STATIC.name),
        )  # fmt: skip
    [found] = outcome.variants
    assert found.candidate is FLOAT
    assert found.load_s > 0
    assert found.memory_bytes > 0
    assert min(found.throughput.p50_ms, found.alone.p50_ms) > 0
    lost = {each.candidate: each for each in outcome.lost}
    assert {each.verdict for each in lost.values()} == {Verdict.NOT_MEASURED}
    assert "ONNX Runtime refused the batch" in lost[DYNAMIC].reason
    assert lost[STATIC].reason == "crashed with SIGKILL"
    assert Path(lost[STATIC].log).is_file()


class Watched(Stand):
    """Knows whom it mounted, by the version of its model."""

    def mount(self, bundle: Bundle, *, inputs: Path) -> Mounted:
        mounted = super().mount(bundle, inputs=inputs)
        self.engines = {**getattr(self, "engines", {}), bundle.manifest.model.version: mounted}
        return mounted

    def kill_and_ask_for_more(self, victim: str, variants: Sequence[Variant]) -> list[tuple[Variant, ...]]:
        """Once, for all of them are still undecided; when the victim is gone they are not."""
        if self.engines[victim].pid:
            os.kill(self.engines[victim].pid, signal.SIGKILL)
            return [tuple(variants)]
        return []
