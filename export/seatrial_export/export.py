"""The export of a model version, from its program in the registry to a bundle that a server loads.

Source -> Candidate (many) -> Built -> Verified -> Variant -> Judgement -> Bundle. This module puts the steps in order;
what each of them knows is in its own.
"""

import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from seatrial.bundle import Bundle, open_bundle
from seatrial.bundle.store import directory_name
from seatrial.errors import BudgetNotMet, BundleCorrupt, ConversionFailed, EngineFailed
from seatrial.machine import cores, this_machine
from seatrial.registry import BUNDLE_TAG, ModelVersion
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_export.build import Tell
from seatrial_export.bundling import add_evidence, bundle_up
from seatrial_export.candidate import Lost, Verdict
from seatrial_export.child import Limits, child_limits
from seatrial_export.choose import (
    Judgement,
    Variant,
    by_target,
    choose,
    halved_by_target,
    undecided_by_target,
)
from seatrial_export.contest import Outcome, Pace, contest
from seatrial_export.deltas import Deltas
from seatrial_export.deltas.beside import ask_more, set_beside
from seatrial_export.elsewhere import GONE, Elsewhere, lost_elsewhere
from seatrial_export.examination import Examination, Examined
from seatrial_export.page import PAGE, draw
from seatrial_export.publish import REPORT_FOLDER, export_run
from seatrial_export.remote.reach import assigned, reached
from seatrial_export.report import Place, Report, Row, rows, unverified_folder, verdict_sentence
from seatrial_export.request import Request
from seatrial_export.source import Source
from seatrial_export.stand import Stand, Terms
from seatrial_export.timetable import Timetable
from seatrial_export.tools import tools
from seatrial_export.workplace import undisturbed, workplace


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
        work = Work(
            request=request, version=version, settings=settings, place=place, elsewhere=elsewhere,
            timetable=Timetable(minutes=request.minutes, tell=tell),
        )  # fmt: skip
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
class Work:
    """One export, between the registry that it reads and the registry that it writes; `place` is an empty folder of its own.

    `elsewhere` has the machines of the targets that are not verified and timed on this one.
    """

    request: Request
    version: ModelVersion
    settings: Settings
    place: Path
    timetable: Timetable
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)

    def do(self, run_id: str) -> tuple[Report, dict[str, Bundle], dict[str, Path]]:
        """All steps. What is unverified comes by the folder of the run where it belongs."""
        with self.stand() as stand:
            examined = self.examine(stand)
            with self.timetable.step("measuring"), undisturbed(self.settings.home):
                outcome = self.measure(examined, stand)
            if self.elsewhere:
                with self.timetable.step("measuring elsewhere"):
                    outcome = self._with_elsewhere(outcome, examined)
            with self.timetable.step("bundling"):
                judgements, bundles, unbundled = self._bundle(outcome.variants, examined, stand, run_id=run_id)
            with self.timetable.step("comparing"):
                deltas, notes = self._compare(judgements, examined, stand)
        found = rows(examined.candidates, judgements, (*examined.lost, *outcome.lost, *unbundled), examined.layers)
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
        """Build and verify all candidates."""
        return Examination(
            request=self.request, version=self.version, settings=self.settings, place=self.place,
            elsewhere=self.elsewhere, timetable=self.timetable, stand=stand,
        ).run()  # fmt: skip

    def measure(self, examined: Examined, stand: Stand) -> Outcome:
        """Those that are measured here."""
        here = [each for each in examined.verified if each.candidate.target not in self.elsewhere]
        for each in here:
            self.timetable.tell(each.candidate.name, "measuring")
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
                self.timetable.tell(each.candidate.name, f"measuring on {place.name}")
            try:
                outcomes.append(
                    place.contest(
                        verified, examined.source.rows, sizes=self.request.sizes, pace=self._pace,
                        budget=self.request.budget, objective=self.request.objective,
                    )
                )  # fmt: skip
            except (ConversionFailed, *GONE) as why:
                lost = tuple(lost_elsewhere(each.candidate, why, Verdict.NOT_MEASURED) for each in verified)
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

    def _bundle(
        self, variants: Sequence[Variant], examined: Examined, stand: Stand, *, run_id: str
    ) -> tuple[list[Judgement], dict[str, Bundle], tuple[Lost, ...]]:
        """The best of each target that can be bundled, and the judgements that say so; and those that were better, but whose
        engine or machine was lost before their bundle was made."""
        judgements, bundles, lost = list[Judgement](), dict[str, Bundle](), list[Lost]()
        for some in by_target(variants).values():
            judgements += self._bundle_best(some, examined, stand, bundles, lost)
        chosen = {each.variant.candidate.target: each.variant for each in judgements if each.verdict is Verdict.CHOSEN}
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
        return judgements, bundles, tuple(lost)

    def _bundle_best(
        self,
        variants: Sequence[Variant],
        examined: Examined,
        stand: Stand,
        bundles: dict[str, Bundle],
        lost: list[Lost],
    ) -> list[Judgement]:
        """Of one target; it goes into `bundles`, and what was lost before into `lost`."""
        proved = {each.candidate: each for each in examined.verified}
        while True:
            judged = self.judge(variants)
            winner = next((each.variant for each in judged if each.verdict is Verdict.CHOSEN), None)
            if winner is None:
                return judged
            candidate = winner.candidate
            self.timetable.tell(candidate.name, "bundling")
            try:
                bundles[candidate.target] = bundle_up(
                    proved[candidate], examined.questions, aside=self.place / "bundles", store=self.settings.bundles,
                    where=self.elsewhere.get(candidate.target) or stand,
                )  # fmt: skip
            except (ConversionFailed, EngineFailed, *GONE) as why:
                found = lost_elsewhere(candidate, why, Verdict.NOT_BUILT)
                lost.append(replace(found, reason=f"while it was bundled: {found.reason}"))
                variants = [each for each in variants if each is not winner]
            else:
                return judged

    def _compare(
        self, judgements: Sequence[Judgement], examined: Examined, stand: Stand
    ) -> tuple[tuple[Deltas, ...], tuple[str, ...]]:
        """Each chosen variant beside the source; and clauses for the report about those of which less is known."""
        chosen = {judgement.variant.candidate for judgement in judgements if judgement.verdict is Verdict.CHOSEN}
        source, questions = examined.source, examined.questions
        found, notes = [], []
        for each in examined.verified:
            if each.candidate not in chosen:
                continue
            self.timetable.tell(each.candidate.name, "comparing")
            place = self.elsewhere.get(each.candidate.target)
            try:
                deltas = set_beside(each, source, questions, stand=stand, elsewhere=place)
            except (ConversionFailed, EngineFailed, *GONE) as why:
                notes.append(f"{each.candidate.name} was not set beside the source: {why}")
                continue
            if self.request.probe and place:
                notes.append(f"{each.candidate.name} was not probed: that is done on this machine alone")
            elif self.request.probe:
                self.timetable.tell(each.candidate.name, "probing")
                folder = self.place / f"probe-{each.candidate.name}"
                limits = replace(self._limits, until=time.monotonic() + self.timetable.left_s())
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
            seconds=self.timetable.seconds,
            run_id=run_id,
            written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _placed(self, row: Row) -> Row:
        place = self.elsewhere.get(row.target)
        return msgspec.structs.replace(row, on=place.name) if place else row

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
        settings, left_s = self.settings.export, max(0.0, self.timetable.left_s())
        for_s = min(settings.measure_s, left_s / 2)
        return Pace(for_s=for_s, longer_s=min(for_s * settings.measure_longer, max(0.0, left_s - 2 * for_s)))
