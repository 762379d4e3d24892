"""The export of a model version, from its program in the registry to a bundle that a server loads.

Source -> Candidate (many) -> Built -> Verified -> Variant -> Judgement -> Bundle. This module puts the steps in order;
what each of them knows is in its own.
"""

import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from seatrial.bundle import Bundle, open_bundle
from seatrial.bundle.store import directory_name
from seatrial.errors import BudgetNotMet, BundleCorrupt, ConversionFailed, InvalidSettings, SeatrialError
from seatrial.machine import cores, this_machine
from seatrial.registry import BUNDLE_TAG, ModelRef, ModelVersion
from seatrial.registry.embedded import EmbeddedRegistry, download
from seatrial.settings import Settings
from seatrial.spelling import did_you_mean
from seatrial_export import study
from seatrial_export.build import Built, Tell, Workshop, building
from seatrial_export.bundling import add_evidence, bundle_up
from seatrial_export.candidate import CANDIDATES, DEFAULT_TARGETS, TARGETS, Candidate, Lost, Verdict
from seatrial_export.child import Limits, child_limits
from seatrial_export.choose import (
    Budget,
    Judgement,
    Objective,
    Variant,
    by_target,
    choose,
    halved_by_target,
    undecided_by_target,
)
from seatrial_export.contest import Outcome, Pace, Sizes, contest
from seatrial_export.deltas import Deltas
from seatrial_export.deltas.beside import ask_more, set_beside
from seatrial_export.elsewhere import GONE, Elsewhere
from seatrial_export.logged import Trust
from seatrial_export.measure import Clock
from seatrial_export.mix import Mixed, Mixer, Tried
from seatrial_export.page import PAGE, draw
from seatrial_export.publish import REPORT_FOLDER, export_run
from seatrial_export.quality import ENOUGH_ROWS
from seatrial_export.remote.reach import On, assigned, reached
from seatrial_export.report import Place, Report, Row, rows, unverified_folder, verdict_sentence
from seatrial_export.samples import count
from seatrial_export.search import Found as Searched
from seatrial_export.search import Search, Searcher, Sparsities, pruned_static, some_rows
from seatrial_export.sensitivity import Layer
from seatrial_export.shelf import Shelf
from seatrial_export.source import Source, open_source
from seatrial_export.stand import Stand, Terms
from seatrial_export.tools import tools
from seatrial_export.trial import Questions, Verified, ask_source, examine
from seatrial_export.workplace import undisturbed, workplace

FIXED = "the model takes calls of one fixed size, and forms are tried on rows"
BUILT_BY, VERIFIED_BY = 0.7, 0.9
"""The parts of the time for an export after which nothing more is built, and nothing more verified."""
TAUGHT_FOR = 0.4
"""The part of the time for building in which it is asked how many channels may go; then the best of them are fine-tuned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants exported, and how. `candidates` are tried where their target is among `targets`.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """`bundles` has one for each target that has a winner; `page` is the address of the report in the registry, below that of
    the run's `artifacts`."""

    report: Report
    bundles: dict[str, Bundle]
    artifacts: str
    unmet: tuple[str, ...]
    """The targets without a winner."""

    @property
    def page(self) -> str:
        return f"{self.artifacts}/{REPORT_FOLDER}/{PAGE}"

    def check(self) -> None:
        """Raise `BudgetNotMet` where a target has no variant that meets the budget."""
        if self.unmet:
            budget = ", ".join(f"{key}={limit:g}" for key, limit in self.report.budget.items())
            unverified = [row.name for row in self.report.rows if row.verdict is Verdict.UNVERIFIED]
            never_run = f"; {', '.join(unverified)} could not be run here, and nobody can choose what was never run"
            raise BudgetNotMet(
                f"no variant of {self.report.model} for {', '.join(self.unmet)} meets the budget {budget}"
                f"{never_run if unverified else ''}; the report says by how much each misses it: {self.page}"
            )


def export(request: Request, settings: Settings, *, tell: Tell = lambda *_: None) -> Exported:
    """As `attempt`, raising `BudgetNotMet` where a target has no winner; the report is in the registry anyway."""
    exported = attempt(request, settings, tell=tell)
    exported.check()
    return exported


def attempt(request: Request, settings: Settings, *, tell: Tell = lambda *_: None) -> Exported:
    """Build, verify, measure and choose; bundles and report go into the registry.

    Raises what keeps it from judging at all: `NotInRegistry`, `Untrusted`, `InvalidSource`, `ConversionFailed` where a
    foreign model cannot be opened, `DiskFull`, `RegistryUnreachable`, and where an agent
    cannot be had `AgentRefused` or `AgentLost`.
    """
    registry = EmbeddedRegistry(settings)
    version = registry.resolve(request.ref)
    places = assigned(request.on, request.targets)
    with (
        workplace(settings.home, version) as place,
        reached(places, version, settings, folder=place, tell=tell) as elsewhere,
        export_run(registry, version, settings) as run,
    ):
        work = Work(request=request, version=version, settings=settings, place=place, tell=tell, elsewhere=elsewhere)
        report, bundles, unverified = work.do(run.id)
        draw(report, place / PAGE)
        run.publish(
            bundles, report, unverified=unverified, page=place / PAGE, store=settings.bundles,
            tell=functools.partial(tell, "registry"),
        )  # fmt: skip
        if not report.logs:  # else what a failed child left stays, to be looked at
            shutil.rmtree(place)
    return Exported(
        report=report,
        bundles=bundles,
        artifacts=run.artifacts,
        unmet=tuple(target for target in request.targets if target not in bundles),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """Everything that is to be measured, and what was lost until then; `layers` are those of which INT8's cost was asked."""

    source: Source
    questions: Questions
    verified: tuple[Verified, ...]
    lost: tuple[Lost, ...]
    layers: Mapping[Candidate, tuple[Layer, ...]]
    candidates: tuple[Candidate, ...]
    """All of which something is known, in the order in which equals are taken."""
    notes: tuple[str, ...] = ()
    searches: tuple[Search, ...] = ()
    sparsities: Sparsities | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One export, between the registry that it reads and the registry that it writes; `place` is an empty folder of its own.

    `elsewhere` has the machines of the targets that are not verified and timed on this one.
    """

    request: Request
    version: ModelVersion
    settings: Settings
    place: Path
    tell: Tell
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    clock: Clock = time.monotonic
    began: float = field(default_factory=time.monotonic)

    def do(self, run_id: str) -> tuple[Report, dict[str, Bundle], dict[str, Path]]:
        """All steps. What is unverified comes by the folder of the run where it belongs."""
        with self.stand() as stand:
            examined = self.examine(stand)
            with self._step("measuring"), undisturbed(self.settings.home):
                outcome = self.measure(examined, stand)
        if self.elsewhere:
            with self._step("measuring elsewhere"):
                outcome = self._with_elsewhere(outcome, examined)
        judgements = self.judge(outcome.variants)
        with self._step("bundling"):
            bundles, unbundled = self._bundle(judgements, examined, run_id=run_id)
        kept = [each for each in judgements if each.variant.candidate not in {lost.candidate for lost in unbundled}]
        with self._step("comparing"):
            deltas, notes = self._compare(kept, examined)
        found = rows(examined.candidates, kept, (*examined.lost, *outcome.lost, *unbundled), examined.layers)
        notes = examined.notes + outcome.notes + notes
        report = self._report(found, bundles, examined.source, notes, run_id=run_id)
        unverified = {unverified_folder(each): each.files for each in examined.lost if each.files}
        report = msgspec.structs.replace(
            report, deltas=deltas, searches=examined.searches, sparsities=examined.sparsities
        )
        return report, bundles, unverified

    def stand(self) -> Stand:
        limits = self._limits
        return Stand(self.place, Terms.of(limits, threads=self._threads, call_s=self.settings.export.call_s))

    def examine(self, stand: Stand) -> Examined:
        """Build and verify all candidates; `stand` gets ready for them meanwhile.

        Each is verified as soon as it is built, the cheap ones and their second stage while the dear ones are still trained.
        """
        with self._step("reading"):
            source = self._read()
        workshop = Workshop(
            source=source, folder=self.place, settings=self.settings, limits=self._build_limits, tell=self.tell,
            elsewhere=self.elsewhere, sizes=self.request.sizes,
        )  # fmt: skip
        tried: list[Tried] = []
        proved = set[str]()
        searched: list[Searched] = []
        sparsities: Sparsities | None = None
        sparser: tuple[Candidate, ...] = ()

        def examine_one(built: Built | Lost) -> Verified | Lost:
            return self._examine(built, source, questions, stand)

        with building([each for each in self._candidates if not each.mixed], workshop) as underway:
            with self._step("asking the source"):  # while the first children import what they need
                questions = ask_source(source)

            def try_next(candidate: Candidate, underway: Mapping[Candidate, Future[Built | Lost]]) -> None:
                with self._step("building"):
                    built = underway[candidate].result()
                with self._step("verifying"):
                    if isinstance(built, Built) and candidate.target not in self.elsewhere:
                        stand.prepare(candidate.engine.name)
                    late = self._left_s(VERIFIED_BY) <= 0 and candidate.target in proved
                    found = _too_late(built) if late else examine_one(built)
                    tried.append((built, found))
                    if isinstance(found, Verified):
                        proved.add(candidate.target)

            for candidate in underway:
                if not candidate.effort:
                    try_next(candidate, underway)
            with self._step("mixing"):
                mixed = self._mix(tried, workshop, questions, examine_one)
            if self.request.search:
                with self._step("searching"):
                    searched = self._search(tried, workshop, questions, examine_one)
                    sparsities, sparser = self._sparsities(workshop)
            for candidate in underway:
                if candidate.effort:
                    try_next(candidate, underway)
        with building(sparser, workshop) as underway:
            for candidate in underway:
                try_next(candidate, underway)
        finalists = [found for each in searched for found in each.finalists]
        candidates = (*self._candidates, *sparser, *(found.candidate for found in finalists))
        examined = [found for _, found in tried] + [each.found for each in mixed] + finalists
        examined.sort(key=lambda found: candidates.index(found.candidate))
        return Examined(
            candidates=candidates,
            searches=tuple(each.search for each in searched),
            sparsities=sparsities,
            source=source,
            questions=questions,
            verified=tuple(each for each in examined if isinstance(each, Verified)),
            lost=tuple(each for each in examined if isinstance(each, Lost)),
            layers={each.found.candidate: each.layers for each in mixed},
            notes=tuple(dict.fromkeys(built.note for built, _ in tried if isinstance(built, Built) and built.note)),
        )

    def measure(self, examined: Examined, stand: Stand) -> Outcome:
        """Those that are measured here."""
        here = [each for each in examined.verified if each.candidate.target not in self.elsewhere]
        for each in here:
            self.tell(each.candidate.name, "measuring")
        return contest(
            here,
            examined.source.rows,
            stand=stand,
            folder=self.place / "calls",
            sizes=self.request.sizes,
            pace=self._pace,
            halved=self._halved,
            undecided=self._undecided,
        )

    def _with_elsewhere(self, here: Outcome, examined: Examined) -> Outcome:
        """`here`, and what each other machine says of its own, one after the other."""
        outcomes = [here]
        for place in {id(each): each for each in self.elsewhere.values()}.values():
            verified = [each for each in examined.verified if self.elsewhere.get(each.candidate.target) is place]
            for each in verified:
                self.tell(each.candidate.name, f"measuring on {place.name}")
            try:
                outcomes.append(
                    place.contest(
                        verified, examined.source.rows, sizes=self.request.sizes, pace=self._pace,
                        budget=self.request.budget, objective=self.request.objective,
                    )
                )  # fmt: skip
            except (ConversionFailed, *GONE) as why:
                lost = tuple(_lost_elsewhere(each.candidate, why, Verdict.NOT_MEASURED) for each in verified)
                outcomes.append(Outcome(variants=(), lost=lost, notes=()))
        return Outcome(
            variants=tuple(each for outcome in outcomes for each in outcome.variants),
            lost=tuple(each for outcome in outcomes for each in outcome.lost),
            notes=tuple(each for outcome in outcomes for each in outcome.notes),
        )

    def judge(self, variants: Sequence[Variant]) -> list[Judgement]:
        budget, objective = self.request.budget, self.request.objective
        return [judgement for some in by_target(variants).values() for judgement in choose(some, budget, objective)]

    def _halved(self, variants: Sequence[Variant]) -> list[Variant]:
        return halved_by_target(variants, budget=self.request.budget, objective=self.request.objective)

    def _undecided(self, variants: Sequence[Variant]) -> list[tuple[Variant, ...]]:
        return undecided_by_target(variants, budget=self.request.budget, objective=self.request.objective)

    @property
    def _candidates(self) -> list[Candidate]:
        return [each for each in self.request.candidates if each.target in self.request.targets]

    def _read(self) -> Source:
        trust = Trust(
            given=self.request.trust or self.version.name in self.settings.export.trusted_models,
            folder=self.place / "foreign",
            limits=self._limits,
            command=f"seatrial export {self.version}",
        )
        files = download(self.version, self.place / "model")
        source = open_source(self.version, self.settings, files=files, trust=trust, samples=self.request.samples)
        self.request.sizes.check(source.signature)
        if self.request.budget.metric is not None and source.held_out is None:
            raise InvalidSettings(
                f"--budget metric={self.request.budget.metric:g} takes labelled rows to hold it against, and {self.version} came "
                "without; leave it out, or limit accuracy_drop, which without labels is disagreement with the source"
            )
        return source

    def _examine(self, built: Built | Lost, source: Source, questions: Questions, stand: Stand) -> Verified | Lost:
        if isinstance(built, Lost):
            return built
        place = self.elsewhere.get(built.candidate.target)
        self.tell(built.candidate.name, f"verifying on {place.name}" if place else "verifying")
        try:
            return examine(
                built, source, questions, store=self.place / "bundles", threads=place.threads if place else self._threads,
                opened=stand.opened, shelf=Shelf.of(self.settings, source.dataset), elsewhere=place,
            )  # fmt: skip
        except GONE as why:
            return _lost_elsewhere(built.candidate, why, Verdict.NOT_MEASURED)

    def _mix(
        self,
        tried: Sequence[Tried],
        workshop: Workshop,
        questions: Questions,
        examine: Callable[[Built], Verified | Lost],
    ) -> list[Mixed]:
        """Nothing without enough rows to see that accuracy is missed."""
        source = workshop.source
        mixer = Mixer(
            workshop=workshop,
            examine=examine,
            budget=self.request.budget,
            for_s=min(self.settings.export.conversion_s, self._left_s(BUILT_BY)),
            enough=questions.held_out is not None or count(source.rows) >= ENOUGH_ROWS,
        )
        return [mixer.mix(candidate, tried) for candidate in self._candidates if candidate.mixed]

    def _search(
        self,
        tried: Sequence[Tried],
        workshop: Workshop,
        questions: Questions,
        examine: Callable[[Built], Verified | Lost],
    ) -> list[Searched]:
        """Nothing without enough rows to see what a form loses, or without rows that can be asked in any number."""
        source = workshop.source
        if source.signature.batch is None or (questions.held_out is None and count(source.rows) < ENOUGH_ROWS):
            why = "there are too few rows to see what a form loses" if source.signature.batch else FIXED
            return [Searched(search=Search(target=target, why_not=why)) for target in self.request.targets]
        searcher = Searcher(
            workshop=workshop,
            examine=examine,
            budget=self.request.budget,
            rows=some_rows(source.rows, questions.held_out),
            trials=self.request.search,
        )
        return [searcher.search(target, tried) for target in self.request.targets]

    def _sparsities(self, workshop: Workshop) -> tuple[Sparsities, tuple[Candidate, ...]]:
        """What was tried, and the candidates that came of it and that nobody asked for by name."""
        if why := workshop.obstacle_to_teaching():
            return Sparsities(why_not=why), ()
        try:
            halved = workshop.halve(
                allowed=self.request.budget.accuracy_drop,
                time_s=min(self.settings.export.fine_tune_s, TAUGHT_FOR * max(0.0, self._left_s(BUILT_BY))),
            )
        except ConversionFailed as error:
            return Sparsities(why_not=error.reason), ()
        found = pruned_static(self.request.targets, halved.finalists)
        sparsities = Sparsities(
            rows=halved.rows,
            taught=halved.taught,
            built=tuple(each.name for each in found),
            cut_short=not halved.whole,
        )
        return sparsities, tuple(each for each in found if each not in self._candidates)

    def _bundle(
        self, judgements: Sequence[Judgement], examined: Examined, *, run_id: str
    ) -> tuple[dict[str, Bundle], tuple[Lost, ...]]:
        """Of each target that has a winner; and the winners whose machine was lost before their bundle was made."""
        proved = {each.candidate: each for each in examined.verified}
        chosen = {each.variant.candidate.target: each.variant for each in judgements if each.verdict is Verdict.CHOSEN}
        bundles, lost = {}, []
        for target, variant in chosen.items():
            self.tell(variant.candidate.name, "bundling")
            place = self.elsewhere.get(target)
            try:
                bundles[target] = bundle_up(
                    proved[variant.candidate], examined.questions,
                    aside=self.place / "bundles", store=self.settings.bundles, threads=self._threads, elsewhere=place,
                )  # fmt: skip
            except (ConversionFailed, *GONE) as why:
                lost.append(_lost_elsewhere(variant.candidate, why, Verdict.NOT_BUILT))
        of_version = {**self._earlier(), **bundles}.values()
        for target, bundle in bundles.items():
            add_evidence(
                bundle,
                chosen[target],
                examined.source,
                budget=self.request.budget,
                run_id=run_id,
                of_version=of_version,
                elsewhere=self.elsewhere.get(target),
            )
        return bundles, tuple(lost)

    def _compare(
        self, judgements: Sequence[Judgement], examined: Examined
    ) -> tuple[tuple[Deltas, ...], tuple[str, ...]]:
        """Each chosen variant beside the source; and clauses for the report about those of which less is known."""
        chosen = {judgement.variant.candidate for judgement in judgements if judgement.verdict is Verdict.CHOSEN}
        source, questions = examined.source, examined.questions
        found, notes = [], []
        for each in examined.verified:
            if each.candidate not in chosen:
                continue
            self.tell(each.candidate.name, "comparing")
            place = self.elsewhere.get(each.candidate.target)
            try:
                deltas = set_beside(each, source, questions, threads=self._threads, elsewhere=place)
            except (ConversionFailed, *GONE) as why:
                notes.append(f"{each.candidate.name} was not set beside the source: {why}")
                continue
            if self.request.probe and place:
                notes.append(f"{each.candidate.name} was not probed: that is done on this machine alone")
            elif self.request.probe:
                self.tell(each.candidate.name, "probing")
                folder = self.place / f"probe-{each.candidate.name}"
                limits = replace(self._limits, until=time.monotonic() + self._left_s(1))
                deltas = ask_more(deltas, each, source, questions.held_out, folder=folder, limits=limits)
            found.append(deltas)
        return tuple(found), tuple(notes)

    def _earlier(self) -> dict[str, Bundle]:
        """What earlier exports of this version built, for each target, as far as it is on this disk."""
        found = {}
        for tag, digest in self.version.tags.items():
            if tag.startswith(BUNDLE_TAG):
                with suppress(BundleCorrupt):
                    place = self.settings.bundles / directory_name(digest)
                    found[tag.removeprefix(BUNDLE_TAG)] = open_bundle(place, expected=digest)
        return found

    def _report(
        self, found: tuple[Row, ...], bundles: dict[str, Bundle], source: Source, notes: tuple[str, ...], *, run_id: str
    ) -> Report:
        return Report(
            model=str(self.version),
            verdict=" ".join(verdict_sentence(target, found) for target in self.request.targets),
            basis=source.basis,
            chosen={row.target: row.name for row in found if row.verdict is Verdict.CHOSEN},
            bundles={target: bundle.digest for target, bundle in bundles.items()},
            budget=self.request.budget.as_dict(),
            objective=self.request.objective,
            rows=tuple(self._placed(row) for row in found),
            notes=source.notes + notes,
            machine=this_machine(),
            elsewhere={
                place.name: Place(machine=place.machine, tools=dict(place.tools)) for place in self.elsewhere.values()
            },
            tools=tools(),
            seconds=self.seconds,
            run_id=run_id,
            written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _placed(self, row: Row) -> Row:
        place = self.elsewhere.get(row.target)
        return msgspec.structs.replace(row, on=place.name) if place else row

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """What is done in several parts counts together."""
        if name not in self.seconds:
            self.tell(name, "")
        before, started = self.seconds.setdefault(name, 0.0), time.monotonic()
        yield
        self.seconds[name] = round(before + time.monotonic() - started, 3)

    @property
    def _threads(self) -> int:
        """Of an engine: as many as a server gives each of its two."""
        return self.settings.export.threads or max(1, cores() // 2)

    @property
    def _limits(self) -> Limits:
        return child_limits(self.settings)

    @property
    def _pace(self) -> Pace:
        """As the settings have it, as far as there is time for two sizes of call."""
        settings, left_s = self.settings.export, max(0.0, self._left_s(1))
        for_s = min(settings.measure_s, left_s / 2)
        return Pace(for_s=for_s, longer_s=min(for_s * settings.measure_longer, max(0.0, left_s - 2 * for_s)))

    @property
    def _build_limits(self) -> Limits:
        return replace(self._limits, until=time.monotonic() + self._left_s(BUILT_BY))

    def _left_s(self, part: float) -> float:
        """Until this part of the time has passed that there is for all of it."""
        if self.request.minutes is None:
            return math.inf
        return self.began + 60 * part * self.request.minutes - self.clock()


def _lost_elsewhere(candidate: Candidate, why: SeatrialError, verdict: Verdict) -> Lost:
    if isinstance(why, ConversionFailed):
        return Lost(candidate=candidate, verdict=verdict, reason=why.reason, log=why.log)
    return Lost(candidate=candidate, verdict=verdict, reason=str(why))


def _too_late(built: Built | Lost) -> Lost:
    if isinstance(built, Lost):
        return built
    reason = "the time for the whole export was over before it could be verified"
    return Lost(candidate=built.candidate, verdict=Verdict.NOT_MEASURED, reason=reason)
