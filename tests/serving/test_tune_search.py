"""Which configurations are tried, which wins, and that time is kept: with servers that answer as a formula says."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.errors import BudgetNotMet, InvalidSettings
from seatrial.machine import Machine
from seatrial.settings import Batching, Engines, Serving
from seatrial_serving.bench import Plan, Result
from seatrial_serving.tune.configuration import Configuration, Knob, Room
from seatrial_serving.tune.contest import judge
from seatrial_serving.tune.search import Measured, Point, climb, search
from seatrial_serving.tune.served import Disturbed, Lost, Served
from seatrial_serving.tune.traffic import Traffic
from seatrial_serving.tune.trials import Trials
from seatrial_serving.tune.tune import Run
from seatrial_serving.tune.tuned import Request, Tuned

PRESENT = Configuration((("engines.count", 2), ("batching.max_size", 64)))
KNOBS = (
    Knob(name="engines.count", values=(1, 2, 4)),
    Knob(name="batching.max_size", values=(1, 2, 4, 8, 16, 32, 64)),
)


def point(per_second: float, p99_ms: float = 1.0, callers: int = 8) -> Point:
    return Point(callers=callers, per_second=per_second, p99_ms=p99_ms)


def measured(configuration: Configuration, per_second: float, *, mb: int = 100, lost: str = "") -> Measured:
    points = () if lost else (point(per_second),)
    return Measured(configuration=configuration, points=points, memory_bytes=mb, lost=lost)


# The search


def look(per_second: Callable[[Configuration], float], *, times: float = math.inf) -> list[Measured]:
    found: list[Measured] = []

    def measure(configuration: Configuration, _: int) -> Measured:
        rate = per_second(configuration)
        return measured(configuration, rate, lost="crashed" if math.isnan(rate) else "")

    found.extend(search(PRESENT, KNOBS, measure, p99_ms=5, goes_on=lambda: len(found) < times))
    return found


def engines_and_batch(configuration: Configuration) -> tuple[float, float]:
    engines, batch = configuration["engines.count"], configuration["batching.max_size"]
    assert engines is not None
    assert batch is not None
    return engines, batch


def test_the_search_turns_every_knob_to_where_it_is_best() -> None:
    """A hill whose top lies at one engine and batches of 8."""

    def hill(configuration: Configuration) -> float:
        engines, batch = engines_and_batch(configuration)
        return 1000 / (1 + abs(math.log2(engines)) + abs(math.log2(batch) - 3))

    found = look(hill)
    assert found[0].configuration == PRESENT, "what holds now comes first"
    best = max(found, key=lambda each: each.points[0].per_second)
    assert engines_and_batch(best.configuration) == (1, 8)


def test_a_flat_stretch_is_crossed_and_a_slope_downwards_is_not() -> None:
    """Batches of 32 and of 16 are as fast as those of 64; 8 would be better, 4 much worse, and nobody looks at 2."""
    speed = {64: 100.0, 32: 100.0, 16: 99.0, 8: 200.0, 4: 50.0}
    found = look(lambda each: speed.get(int(engines_and_batch(each)[1]), 1.0) / (engines_and_batch(each)[0] ** 0.01))
    batches = [engines_and_batch(each.configuration)[1] for each in found]
    assert 8 in batches
    assert 2 not in batches


def test_what_crashes_loses_only_itself() -> None:
    found = look(lambda each: math.nan if engines_and_batch(each)[0] == 1 else engines_and_batch(each)[0])
    assert [each.lost for each in found if engines_and_batch(each.configuration)[0] == 1] == ["crashed"]
    assert max(
        found, key=lambda each: each.points[0].per_second if each.points else 0
    ).configuration == PRESENT.changed("engines.count", 4)


def test_where_nothing_can_be_measured_three_are_enough() -> None:
    assert len(look(lambda _: math.nan)) == 3


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.tuples(st.sampled_from((1, 2, 4)), st.integers(0, 6)), st.floats(1, 100)), st.integers(1, 30))
def test_nothing_is_measured_twice_and_no_more_than_there_is_time_for(
    speed: dict[tuple[int, int], float], times: int
) -> None:
    def rate(configuration: Configuration) -> float:
        engines, batch = engines_and_batch(configuration)
        return speed.get((int(engines), int(math.log2(batch))), math.nan)

    found = look(rate, times=times)
    assert len({each.configuration for each in found}) == len(found) <= times


def test_of_equally_fast_ones_the_smaller_is_better() -> None:
    def measure(configuration: Configuration, _: int) -> Measured:
        engines, _batch = engines_and_batch(configuration)
        return measured(configuration, 100 + engines, mb=int(100 * engines))

    found = list(search(PRESENT, KNOBS[:1], measure, p99_ms=5, goes_on=lambda: True))
    tuned = knowing(found)
    assert tuned.best is not None
    assert tuned.best.configuration["engines.count"] == 1


def test_more_callers_ask_while_that_brings_more_and_fewer_where_it_was_too_much() -> None:
    def ask(callers: int) -> Point:
        return point(min(callers, 40) * 100, p99_ms=callers / 4, callers=callers)

    def asked(first: int, p99_ms: float) -> list[int]:
        return [each.callers for each in climb(ask, first=first, p99_ms=p99_ms, goes_on=lambda: True)]

    assert asked(8, 100) == [8, 16, 32, 64, 128], "beyond 64 nothing is gained"
    assert asked(8, 5) == [8, 16, 32], "32 break the bound"
    assert asked(64, 5) == [64, 32, 16], "16 keep it"
    assert asked(4, 0.1) == [4, 2, 1]


def test_callers_who_are_refused_are_too_many() -> None:
    def ask(callers: int) -> Point:
        return Point(callers=callers, per_second=callers, p99_ms=1, failed=3 if callers > 16 else 0)

    points = tuple(climb(ask, first=8, p99_ms=5, goes_on=lambda: True))
    assert [each.callers for each in points] == [8, 16, 32]
    best = Measured(configuration=PRESENT, points=points, memory_bytes=0).best(5)
    assert best is not None
    assert best.callers == 16


def test_the_values_that_are_tried_fit_the_machine_the_model_and_the_bound() -> None:
    values = {knob.name: knob.values for knob in Room(cores=6, most_rows=20, p99_ms=3).knobs()}
    assert values["engines.count"] == (1, 2, 4, 6)
    assert values["engines.threads"] == (None, 1, 2, 4, 6)
    assert values["batching.max_size"] == (1, 2, 4, 8, 16, 20)
    assert values["batching.max_delay_ms"] == (0.0, 0.5, 1.0)
    assert "batching.max_tokens" not in values
    alone = {knob.name for knob in Room(cores=1, most_rows=1, p99_ms=0.5).knobs()}
    assert alone == {"engines.threads"}, "one core, one row: there is nothing else to choose"


def test_a_configuration_is_put_into_settings_and_what_cannot_be_is_refused() -> None:
    serving = Serving(batching=Batching(preferred_sizes=(4, 64)), engines=Engines(count=2))
    configuration = Configuration.of(serving).changed("batching.max_size", 16).changed("engines.threads", 1)
    changed = configuration.within(serving)
    assert (changed.batching.max_size, changed.engines.threads, changed.engines.count) == (16, 1, 2)
    assert changed.batching.preferred_sizes == (4,), "64 does not fit any more"
    assert configuration.beside(Configuration.of(serving)) == "engines.threads=1 batching.max_size=16"
    with pytest.raises(InvalidSettings, match="greater than or equal to 1"):
        configuration.changed("engines.count", 0).within(serving)
    with pytest.raises(InvalidSettings, match=r"no settings \['home'\] to tune"):
        Configuration.parse({"home": 1})


# The contest

OTHER = PRESENT.changed("engines.count", 1)
THIRD = PRESENT.changed("engines.count", 4)
NOISE = (1.0, 1.2, 0.8, 1.1, 0.9, 1.0)
"""What the machine does to everybody who is measured in a round."""


def rounds(per_second: float, *, p99_ms: float = 1.0) -> list[Point]:
    return [point(per_second * noise, p99_ms) for noise in NOISE]


def test_a_gain_is_claimed_where_the_interval_of_the_paired_ratios_lies_above_one() -> None:
    verdict = judge(PRESENT, {PRESENT: rounds(100), OTHER: rounds(110), THIRD: rounds(120)}, p99_ms=5)
    assert verdict.chosen == THIRD
    assert verdict.gain is not None
    assert verdict.gain.middle == pytest.approx(1.2), "the noise is the same for both, and falls out"
    assert verdict.words.startswith("1.20 (1.20 to 1.20) times")


def test_where_the_interval_holds_one_the_settings_of_now_are_as_good() -> None:
    lucky = [point(100 * luck) for luck in (1.3, 0.9, 1.2, 0.95, 1.1, 0.9)]
    verdict = judge(PRESENT, {PRESENT: [point(100)] * 6, OTHER: lucky}, p99_ms=5)
    assert verdict.chosen == PRESENT
    assert verdict.words == "the settings of now are as good as any that was tried"


def test_who_breaks_the_bound_does_not_win() -> None:
    verdict = judge(PRESENT, {PRESENT: rounds(100), OTHER: rounds(200, p99_ms=6)}, p99_ms=5)
    assert verdict.chosen == PRESENT
    verdict = judge(PRESENT, {PRESENT: rounds(200, p99_ms=6), OTHER: rounds(100)}, p99_ms=5)
    assert verdict.chosen == OTHER
    assert verdict.gain is None
    assert "do not keep p99 within 5 ms; these do" in verdict.words
    refusing = [replace(each, failed=number % 5 == 4) for number, each in enumerate(rounds(200))]
    assert judge(PRESENT, {PRESENT: rounds(100), OTHER: refusing}, p99_ms=5).chosen == PRESENT
    verdict = judge(PRESENT, {PRESENT: rounds(200, p99_ms=6)}, p99_ms=5)
    assert verdict.unmet


def test_few_rounds_prove_nothing() -> None:
    verdict = judge(PRESENT, {PRESENT: rounds(100)[:4], OTHER: rounds(200)[:4]}, p99_ms=5)
    assert (verdict.chosen, verdict.gain, verdict.unmet) == (None, None, False)
    assert "5 rounds beside the settings of now are needed, 4 were done" in verdict.words


# A whole run, by a clock that nobody waits for


@dataclass
class Sea:
    """A machine: how fast servers are on it, how long they take to start, and what has been done there when."""

    per_second: Callable[[Serving], float]
    p99_ms: Callable[[int], float] = lambda _: 1.0
    """With so many callers."""
    starts_s: float = 1.0
    now: float = 0.0
    up: int = 0
    most_up: int = 0
    asked: list[tuple[int, float | None]] = field(default_factory=list)
    """By engines: who was asked, and at what rate."""
    on_ask: Callable[[], None] = lambda: None
    hanging: int = 1_000_000
    """After so many were asked, none answers any more."""

    def clock(self) -> float:
        return self.now

    @contextmanager
    def start(self, _what: str, serving: Serving, *, most_bytes: int, within_s: float) -> Iterator[Served]:
        assert most_bytes == 1000
        self.now += min(self.starts_s, within_s)
        if self.starts_s > within_s:
            raise Lost(f"was not ready within {within_s:.1f} s")
        self.up += 1
        self.most_up = max(self.up, self.most_up)
        try:
            yield Afloat(self, serving)
        finally:
            self.up -= 1


class Afloat(Served):
    """A server of the `sea`. Up to 32 callers it answers ever more; then they only wait longer."""

    def __init__(self, sea: Sea, serving: Serving) -> None:
        self._sea, self._serving = sea, serving
        self.peak_bytes, self.model = 100, "linear"

    def address(self, protocol: str) -> str:
        return protocol

    def weigh(self) -> None:
        pass

    def ask(self, plan: Plan, *, within_s: float) -> Result:
        self._sea.on_ask()
        took_s = plan.seconds + plan.warm_up_s
        assert took_s < within_s
        if len(self._sea.asked) >= self._sea.hanging:
            self._sea.now += within_s
            raise Lost("hung")
        self._sea.now += took_s
        assert self._serving.engines.count is not None
        self._sea.asked.append((self._serving.engines.count, plan.rate))
        most = self._sea.per_second(self._serving)
        if math.isnan(most):
            raise Lost("ended with SIGSEGV")
        rate = plan.rate or most * min(plan.callers, 32) / 32
        p99_ms = self._sea.p99_ms(plan.callers) + (100.0 if rate > most * 0.9 and plan.rate else 0.0)
        return Result(
            requests=1000, seconds=plan.seconds, outcomes={"ok": 1000}, per_second=rate,
            p50_ms=p99_ms, p90_ms=p99_ms, p99_ms=p99_ms, max_ms=p99_ms,
        )  # fmt: skip


def knowing(found: Sequence[Measured] = (), *, p99_ms: float = 5.0) -> Tuned:
    machine = Machine(cpu="", cores=2, features=(), memory_bytes=0)
    return Tuned(request=Request(what="", p99_ms=p99_ms), machine=machine, bundle=None, traffic="", found=list(found))


def sail(sea: Sea, *, total_s: float, p99_ms: float = 5.0) -> Tuned:
    trials = Trials(
        what="", serving=Serving(engines=Engines(count=2)), traffic=Traffic(words=""), protocol="rest", p99_ms=p99_ms,
        memory_bytes=1000, level_s=1.0, start_s=120.0, start=sea.start, clock=sea.clock,
    )  # fmt: skip
    tuned = knowing(p99_ms=p99_ms)
    run = Run(trials, tuned, began=sea.now, ends=sea.now + total_s, tell=lambda _: None)
    try:
        run.run(Room(cores=4, p99_ms=p99_ms).knobs())
    except KeyboardInterrupt:
        tuned.interrupted = True
    return tuned


def by_engines(serving: Serving) -> float:
    assert serving.engines.count is not None
    return 1000.0 * serving.engines.count


def test_a_run_finds_measures_again_and_proves() -> None:
    sea = Sea(by_engines)
    tuned = sail(sea, total_s=300)
    assert tuned.advice["engines.count"] == 4
    assert tuned.verdict.gain is not None
    assert tuned.verdict.gain.middle == pytest.approx(2.0)
    assert sea.now < 300
    assert (sea.up, sea.most_up) == (0, 3), "the one of now and two contenders, and none is left"
    rates = [rate for _, rate in sea.asked if rate is not None]
    assert rates == pytest.approx([3800, 3400]), "at 95 % it does not hold, at 85 % it does"
    assert tuned.held is not None
    assert tuned.held.per_second == pytest.approx(3400)


def test_rounds_take_everybody_in_turn_and_begin_with_another_each() -> None:
    sea = Sea(by_engines)
    tuned = sail(sea, total_s=300)
    done = sum(map(len, tuned.rounds.values()))
    asked = [engines for engines, rate in sea.asked if rate is None][-done:]
    size = len(tuned.rounds)
    by_round = [asked[at : at + size] for at in range(0, done, size)]
    assert size == 3
    assert len(by_round) >= 5
    assert len({tuple(sorted(each)) for each in by_round}) == 1, "everybody once a round"
    assert by_round[0][1:] + by_round[0][:1] == by_round[1]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.5, 400), st.floats(0.1, 60), st.integers(1, 100))
def test_it_never_takes_longer_than_it_was_given(total_s: float, starts_s: float, hanging: int) -> None:
    """Though every server hangs from some moment on; until then nothing is begun for which there is no time."""
    sea = Sea(by_engines, starts_s=starts_s, hanging=hanging)
    tuned = sail(sea, total_s=total_s)
    assert sea.now <= total_s + 1e-6
    assert sea.up == 0
    assert {each.lost for each in tuned.found[1:]} <= {"", "hung"}


@pytest.mark.parametrize("hanging", range(0, 40, 3))
def test_who_hangs_at_the_very_end_does_not_hold_it_up(hanging: int) -> None:
    sea = Sea(by_engines, starts_s=0.1, hanging=hanging)
    sail(sea, total_s=20 + hanging / 10)
    assert sea.now <= 20 + hanging / 10 + 1e-6


def test_an_interrupt_keeps_what_was_found_and_leaves_nothing() -> None:
    def interrupt() -> None:
        if len(sea.asked) == 12:
            raise KeyboardInterrupt

    sea = Sea(by_engines, on_ask=interrupt)
    tuned = sail(sea, total_s=300)
    assert tuned.interrupted
    assert tuned.best is not None
    assert not tuned.advice, "nothing is proved"
    assert len(tuned.found) > 1
    assert sea.up == 0


def test_who_dies_in_a_round_is_out_and_the_others_go_on() -> None:
    def dies(serving: Serving) -> float:
        return math.nan if serving.engines.count == 4 and sea.most_up > 1 else by_engines(serving)

    sea = Sea(dies)
    tuned = sail(sea, total_s=300)
    assert 4 not in {each["engines.count"] for each in tuned.rounds}
    assert tuned.present in tuned.rounds
    assert tuned.verdict.chosen is not None


def test_a_disturbed_round_counts_for_nobody() -> None:
    def disturb() -> None:
        if sea.up > 1 and len(sea.asked) % 7 == 0:
            sea.now += 1.0
            sea.asked.append((0, None))
            raise Disturbed

    sea = Sea(by_engines, on_ask=disturb)
    tuned = sail(sea, total_s=300)
    assert (0, None) in sea.asked
    assert len(tuned.rounds) == 3
    assert len(set(map(len, tuned.rounds.values()))) == 1
    assert tuned.advice["engines.count"] == 4


def test_who_kept_the_bound_only_by_chance_is_measured_with_fewer_callers() -> None:
    """Alone on the machine they answer in time; with several servers up, 32 callers wait for 8 ms."""
    sea = Sea(by_engines, p99_ms=lambda callers: callers / 4 if sea.up > 1 else 1.0)
    tuned = sail(sea, total_s=300)
    assert not tuned.unmet
    assert {point.callers for points in tuned.rounds.values() for point in points} == {16}
    assert tuned.advice["engines.count"] == 4


def test_a_bound_that_nothing_keeps_is_said_with_what_came_closest() -> None:
    tuned = sail(Sea(by_engines), total_s=300, p99_ms=0.5)
    assert tuned.unmet
    with pytest.raises(BudgetNotMet, match=r"within 0\.5 ms; what came closest, once, was 1 ms with one caller"):
        tuned.check()


def test_the_page_shows_every_configuration_and_the_front(tmp_path: Path) -> None:
    from seatrial_serving.tune.page import draw, front

    fast, slow, beaten = point(100, 1.0), point(200, 2.0), point(150, 3.0)
    assert front([beaten, slow, fast]) == [fast, slow]
    tuned = sail(Sea(by_engines), total_s=300)
    tuned.request = replace(tuned.request, what="<b>linear</b>")
    draw(tuned, tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.count("<tr>") == 1 + len(tuned.found)
    assert page.count("<circle") == sum(len(each.points) for each in tuned.found)
    assert 'class="chosen"' in page
    assert "count = 4" in page
    assert "&lt;b&gt;linear" in page
    assert "<b>" not in page
