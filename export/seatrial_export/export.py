"""The export of a model version, from its program in the registry to a bundle that a server loads.

Source -> Candidate (many) -> Built -> Verified -> Variant -> Judgement -> Bundle. This module puts the steps in order;
what each of them knows is in its own.
"""

import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from seatrial.bundle import Bundle, open_bundle
from seatrial.bundle.store import directory_name
from seatrial.errors import BudgetNotMet, BundleCorrupt, InvalidSettings
from seatrial.machine import cores, this_machine
from seatrial.registry import BUNDLE_TAG, ModelRef, ModelVersion
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial.spelling import did_you_mean
from seatrial_export.build import Built, Tell, Workshop, building
from seatrial_export.bundling import add_evidence, bundle_up, tools
from seatrial_export.candidate import CANDIDATES, DEFAULT_TARGETS, TARGETS, Candidate, Lost, Verdict
from seatrial_export.child import Limits, child_limits
from seatrial_export.choose import Budget, Judgement, Variant, choose
from seatrial_export.logged import Trust
from seatrial_export.memory import measure_memory
from seatrial_export.mix import Mixed, Mixer, Tried
from seatrial_export.page import PAGE, draw
from seatrial_export.publish import REPORT_FOLDER, export_run
from seatrial_export.quality import ENOUGH_ROWS
from seatrial_export.report import Report, Row, rows, verdict_sentence
from seatrial_export.samples import count
from seatrial_export.source import Source, download, open_source
from seatrial_export.trial import Questions, Verified, ask_source, examine, time_all
from seatrial_export.workplace import undisturbed, workplace


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants exported, and how. `candidates` are tried where their target is among `targets`."""

    ref: ModelRef
    targets: Sequence[str] = DEFAULT_TARGETS
    budget: Budget = field(default_factory=Budget)
    samples: Path | None = None
    trust: bool = False
    candidates: Sequence[Candidate] = CANDIDATES

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in TARGETS:
                meant = did_you_mean(target, TARGETS, otherwise=f"there are {', '.join(TARGETS)}")
                raise InvalidSettings(f"there is no target '{target}'{meant}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """`bundles` has one for each target that has a winner; `page` is the address of the report in the registry."""

    report: Report
    bundles: dict[str, Bundle]
    page: str
    unmet: tuple[str, ...]
    """The targets without a winner."""

    def check(self) -> None:
        """Raise `BudgetNotMet` where a target has no variant that meets the budget."""
        if self.unmet:
            budget = ", ".join(f"{key}={limit:g}" for key, limit in self.report.budget.items())
            raise BudgetNotMet(
                f"no variant of {self.report.model} for {', '.join(self.unmet)} meets the budget {budget}; the report "
                f"says by how much each misses it: {self.page}"
            )


def export(request: Request, settings: Settings, *, tell: Tell = lambda *_: None) -> Exported:
    """As `attempt`, raising `BudgetNotMet` where a target has no winner; the report is in the registry anyway."""
    exported = attempt(request, settings, tell=tell)
    exported.check()
    return exported


def attempt(request: Request, settings: Settings, *, tell: Tell = lambda *_: None) -> Exported:
    """Build, verify, measure and choose; bundles and report go into the registry.

    Raises what keeps it from judging at all: `NotInRegistry`, `Untrusted`, `InvalidSource`, `ConversionFailed` where a
    foreign model cannot be opened, `DiskFull`, `RegistryUnreachable`.
    """
    registry = EmbeddedRegistry(settings)
    version = registry.resolve(request.ref)
    with workplace(settings.home, version) as place, export_run(registry, version, settings) as run:
        work = _Work(request=request, version=version, settings=settings, place=place, tell=tell)
        with ExitStack() as engines:
            report, bundles = work.do(run.id, engines)
        draw(report, place / PAGE)
        run.publish(
            bundles, report, page=place / PAGE, store=settings.bundles, tell=functools.partial(tell, "registry")
        )
        if not any(row.command for row in report.rows):  # else what a failed child left stays, to be looked at
            shutil.rmtree(place)
    return Exported(
        report=report,
        bundles=bundles,
        page=f"{run.artifacts}/{REPORT_FOLDER}/{PAGE}",
        unmet=tuple(target for target in request.targets if target not in bundles),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One export, between the registry that it reads and the registry that it writes."""

    request: Request
    version: ModelVersion
    settings: Settings
    place: Path
    tell: Tell
    seconds: dict[str, float] = field(default_factory=dict)

    def do(self, run_id: str, engines: ExitStack) -> tuple[Report, dict[str, Bundle]]:
        """All steps; `engines` gets what must be closed afterwards."""
        candidates = [each for each in self.request.candidates if each.target in self.request.targets]
        with self._step("reading"):
            source = self._read()
        first = [each for each in candidates if not each.mixed]
        with building(
            first, source, folder=self.place, settings=self.settings, limits=self._limits, tell=self.tell
        ) as underway:
            with self._step("asking the source"):  # while the first children import what they need
                questions = ask_source(source)
            with self._step("building"):
                built = [each.result() for each in underway]
        with self._step("verifying"):
            examined = [self._examine(each, source, questions, engines) for each in built]
        with self._step("mixing"):
            mixed = self._mix(candidates, list(zip(built, examined, strict=True)), source, questions, engines)
        examined += [each.found for each in mixed]
        verified = [each for each in examined if isinstance(each, Verified)]
        with self._step("measuring"), undisturbed(self.settings.home):
            variants = self._measure(verified, source)
        judgements = [
            judgement
            for target in self.request.targets
            for judgement in choose([v for v in variants if v.candidate.target == target], self.request.budget)
        ]
        with self._step("bundling"):
            bundles = self._bundle(judgements, verified, source, questions, run_id=run_id)
        lost = [each for each in examined if isinstance(each, Lost)]
        layers = {each.found.candidate: each.layers for each in mixed}
        return self._report(rows(candidates, judgements, lost, layers), bundles, source, run_id=run_id), bundles

    def _read(self) -> Source:
        trust = Trust(
            given=self.request.trust or self.version.name in self.settings.export.trusted_models,
            folder=self.place / "foreign",
            limits=self._limits,
            command=f"seatrial export {self.version}",
        )
        files = download(self.version, self.place / "model")
        return open_source(self.version, self.settings, files=files, trust=trust, samples=self.request.samples)

    def _examine(
        self, built: Built | Lost, source: Source, questions: Questions, engines: ExitStack
    ) -> Verified | Lost:
        if isinstance(built, Lost):
            return built
        self.tell(built.candidate.name, "verifying")
        examined = examine(built, source, questions, store=self.place / "bundles", threads=self._threads)
        if isinstance(examined, Verified):
            engines.enter_context(closing(examined.engine))
        return examined

    def _mix(
        self,
        candidates: Sequence[Candidate],
        tried: Sequence[Tried],
        source: Source,
        questions: Questions,
        engines: ExitStack,
    ) -> list[Mixed]:
        """Nothing without enough rows to see that accuracy is missed."""
        mixer = Mixer(
            workshop=Workshop(
                source=source, folder=self.place, settings=self.settings, limits=self._limits, tell=self.tell
            ),
            examine=lambda built: self._examine(built, source, questions, engines),
            budget=self.request.budget,
            for_s=self.settings.export.conversion_s,
            enough=questions.held_out is not None or count(source.rows) >= ENOUGH_ROWS,
        )
        return [mixer.mix(candidate, tried) for candidate in candidates if candidate.mixed]

    def _measure(self, verified: Sequence[Verified], source: Source) -> list[Variant]:
        for each in verified:
            self.tell(each.candidate.name, "measuring")
        for_s = self.settings.export.measure_s
        variants = time_all(verified, source.rows, threads=self._threads, for_s=for_s)
        if self.request.budget.memory_mb is None:
            return variants
        return [
            replace(variant, memory_bytes=self._memory(each, batch=variant.throughput.batch))
            for variant, each in zip(variants, verified, strict=True)
        ]

    def _memory(self, verified: Verified, *, batch: int) -> int:
        folder = self.place / f"memory-{verified.candidate.name}"
        limits = replace(self._limits, threads=self._threads)
        return measure_memory(verified.bundle.path, batch=batch, folder=folder, limits=limits)

    def _bundle(
        self,
        judgements: Sequence[Judgement],
        verified: Sequence[Verified],
        source: Source,
        questions: Questions,
        *,
        run_id: str,
    ) -> dict[str, Bundle]:
        proved = {each.candidate: each for each in verified}
        chosen = {each.variant.candidate.target: each.variant for each in judgements if each.verdict is Verdict.CHOSEN}
        bundles = {}
        for target, variant in chosen.items():
            self.tell(variant.candidate.name, "bundling")
            bundles[target] = bundle_up(
                proved[variant.candidate], questions,
                aside=self.place / "bundles", store=self.settings.bundles, threads=self._threads,
            )  # fmt: skip
        of_version = {**self._earlier(), **bundles}.values()
        for target, bundle in bundles.items():
            add_evidence(
                bundle, chosen[target], source, budget=self.request.budget, run_id=run_id, of_version=of_version
            )
        return bundles

    def _earlier(self) -> dict[str, Bundle]:
        """What earlier exports of this version built, for each target, as far as it is on this disk."""
        found = {}
        for tag, digest in self.version.tags.items():
            if tag.startswith(BUNDLE_TAG):
                with suppress(BundleCorrupt):
                    place = self.settings.bundles / directory_name(digest)
                    found[tag.removeprefix(BUNDLE_TAG)] = open_bundle(place, expected=digest)
        return found

    def _report(self, found: tuple[Row, ...], bundles: dict[str, Bundle], source: Source, *, run_id: str) -> Report:
        return Report(
            model=str(self.version),
            verdict=" ".join(verdict_sentence(target, found) for target in self.request.targets),
            basis=source.basis,
            chosen={row.target: row.name for row in found if row.verdict is Verdict.CHOSEN},
            bundles={target: bundle.digest for target, bundle in bundles.items()},
            budget=self.request.budget.as_dict(),
            rows=found,
            notes=source.notes,
            machine=this_machine(),
            tools=tools(),
            seconds=self.seconds,
            run_id=run_id,
            written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self.tell(name, "")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)

    @property
    def _threads(self) -> int:
        """Of an engine: as many as a server gives each of its two."""
        return self.settings.export.threads or max(1, cores() // 2)

    @property
    def _limits(self) -> Limits:
        return child_limits(self.settings)
