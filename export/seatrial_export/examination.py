"""The first half of an export: everything that might be chosen is built, and verified.

Source -> Candidate (many) -> Built -> Verified, with the second stages that build on the first: layers left in float, finer
forms, other sparsities.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from seatrial.errors import ConversionFailed, InvalidSettings
from seatrial.registry import ModelVersion
from seatrial.registry.embedded import download
from seatrial.settings import Settings
from seatrial_export.build import Built, Workshop, building
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.child import child_limits
from seatrial_export.elsewhere import GONE, Elsewhere, lost_elsewhere
from seatrial_export.logged import Trust
from seatrial_export.mix import Mixed, Mixer, Tried
from seatrial_export.quality import ENOUGH_ROWS
from seatrial_export.request import Request
from seatrial_export.samples import count
from seatrial_export.search import Found as Searched
from seatrial_export.search import Search, Searcher, Sparsities, pruned_static, some_rows
from seatrial_export.sensitivity import Layer
from seatrial_export.shelf import Shelf
from seatrial_export.source import Source, open_source
from seatrial_export.stand import Stand
from seatrial_export.timetable import Timetable
from seatrial_export.trial import Questions, Verified, ask_source, examine

FIXED = "the model takes calls of one fixed size, and forms are tried on rows"
BUILT_BY, VERIFIED_BY = 0.7, 0.9
"""The parts of the time for an export after which nothing more is built, and nothing more verified."""
TAUGHT_FOR = 0.4
"""The part of the time for building in which it is asked how many channels may go; then the best of them are fine-tuned."""


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
class Examination:
    """As of `Work`. `stand` gets ready for what is built while it is built."""

    request: Request
    version: ModelVersion
    settings: Settings
    place: Path
    elsewhere: Mapping[str, Elsewhere]
    timetable: Timetable
    stand: Stand

    def run(self) -> Examined:
        """Each is verified as soon as it is built, the cheap ones and their second stage while the dear ones still train."""
        with self.timetable.step("reading"):
            source = self._read()
        limits = replace(child_limits(self.settings), until=time.monotonic() + self.timetable.left_s(BUILT_BY))
        workshop = Workshop(
            source=source, folder=self.place, settings=self.settings, limits=limits, tell=self.timetable.tell,
            elsewhere=self.elsewhere, sizes=self.request.sizes,
        )  # fmt: skip
        named = [each for each in self.request.candidates if each.target in self.request.targets]
        searched: list[Searched] = []
        sparsities: Sparsities | None = None
        sparser: tuple[Candidate, ...] = ()
        with building([each for each in named if not each.mixed], workshop) as underway:
            with self.timetable.step("asking the source"):  # while the first children import what they need
                questions = ask_source(source)
            stages = _Stages(of=self, workshop=workshop, questions=questions)
            stages.first({each: built for each, built in underway.items() if not each.effort})
            with self.timetable.step("mixing"):
                mixed = stages.mix([each for each in named if each.mixed])
            if self.request.search:
                with self.timetable.step("searching"):
                    searched = stages.search()
                    sparsities, found = stages.sparsities()
                    sparser = tuple(each for each in found if each not in named)
            stages.first({each: built for each, built in underway.items() if each.effort})
        with building(sparser, workshop) as underway:
            stages.first(underway)
        finalists = [found for each in searched for found in each.finalists]
        candidates = (*named, *sparser, *(found.candidate for found in finalists))
        examined = [found for _, found in stages.tried] + [each.found for each in mixed] + finalists
        examined.sort(key=lambda found: candidates.index(found.candidate))
        notes = (built.note for built, _ in stages.tried if isinstance(built, Built) and built.note)
        return Examined(
            candidates=candidates,
            searches=tuple(each.search for each in searched),
            sparsities=sparsities,
            source=source,
            questions=questions,
            verified=tuple(each for each in examined if isinstance(each, Verified)),
            lost=tuple(each for each in examined if isinstance(each, Lost)),
            layers={each.found.candidate: each.layers for each in mixed},
            notes=tuple(dict.fromkeys(notes)),
        )

    def _read(self) -> Source:
        trust = Trust(
            given=self.request.trust or self.version.name in self.settings.export.trusted_models,
            folder=self.place / "foreign",
            limits=child_limits(self.settings),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """What is done with what was built; `tried` grows with it."""

    of: Examination
    workshop: Workshop
    questions: Questions
    tried: list[Tried] = field(default_factory=list)

    def first(self, underway: Mapping[Candidate, Future[Built | Lost]]) -> None:
        """Wait for each, and verify it."""
        timetable = self.of.timetable
        for candidate, future in underway.items():
            with timetable.step("building"):
                built = future.result()
            with timetable.step("verifying"):
                if isinstance(built, Built) and candidate.target not in self.of.elsewhere:
                    self.of.stand.prepare(candidate.engine.name)
                late = timetable.left_s(VERIFIED_BY) <= 0 and self._has_proved(candidate.target)
                self.tried.append((built, _too_late(built) if late else self.examine(built)))

    def _has_proved(self, target: str) -> bool:
        return any(isinstance(found, Verified) and found.candidate.target == target for _, found in self.tried)

    def examine(self, built: Built | Lost) -> Verified | Lost:
        if isinstance(built, Lost):
            return built
        of, source = self.of, self.workshop.source
        place = of.elsewhere.get(built.candidate.target)
        of.timetable.tell(built.candidate.name, f"verifying on {place.name}" if place else "verifying")
        try:
            return examine(
                built, source, self.questions, store=of.place / "bundles", threads=(place or of.stand).threads,
                opened=of.stand.opened, shelf=Shelf.of(of.settings, source.dataset), elsewhere=place,
            )  # fmt: skip
        except GONE as why:
            return lost_elsewhere(built.candidate, why, Verdict.NOT_MEASURED)

    def mix(self, candidates: Sequence[Candidate]) -> list[Mixed]:
        """Nothing without enough rows to see that accuracy is missed."""
        mixer = Mixer(
            workshop=self.workshop,
            examine=self.examine,
            budget=self.of.request.budget,
            for_s=min(self.of.settings.export.conversion_s, self.of.timetable.left_s(BUILT_BY)),
            enough=self._enough_rows,
        )
        return [mixer.mix(candidate, self.tried) for candidate in candidates]

    def search(self) -> list[Searched]:
        """Nothing without enough rows to see what a form loses, or without rows that can be asked in any number."""
        source, request = self.workshop.source, self.of.request
        if source.signature.batch is None or not self._enough_rows:
            why = "there are too few rows to see what a form loses" if source.signature.batch else FIXED
            return [Searched(search=Search(target=target, why_not=why)) for target in request.targets]
        searcher = Searcher(
            workshop=self.workshop,
            examine=self.examine,
            budget=request.budget,
            rows=some_rows(source.rows, self.questions.held_out),
            trials=request.search,
        )
        return [searcher.search(target, self.tried) for target in request.targets]

    @property
    def _enough_rows(self) -> bool:
        return self.questions.held_out is not None or count(self.workshop.source.rows) >= ENOUGH_ROWS

    def sparsities(self) -> tuple[Sparsities, tuple[Candidate, ...]]:
        """What was tried, and the candidates that came of it."""
        if why := self.workshop.obstacle_to_teaching():
            return Sparsities(why_not=why), ()
        left_s = max(0.0, self.of.timetable.left_s(BUILT_BY))
        try:
            searched = self.workshop.sparser(
                allowed=self.of.request.budget.accuracy_drop,
                time_s=min(self.of.settings.export.fine_tune_s, TAUGHT_FOR * left_s),
            )
        except ConversionFailed as error:
            return Sparsities(why_not=error.reason), ()
        found = pruned_static(self.of.request.targets, searched.finalists)
        sparsities = Sparsities(
            rows=searched.rows,
            taught=searched.taught,
            built=tuple(each.name for each in found),
            cut_short=not searched.whole,
        )
        return sparsities, found


def _too_late(built: Built | Lost) -> Lost:
    if isinstance(built, Lost):
        return built
    reason = "the time for the whole export was over before it could be verified"
    return Lost(candidate=built.candidate, verdict=Verdict.NOT_MEASURED, reason=reason)
