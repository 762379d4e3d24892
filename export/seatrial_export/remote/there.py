"""One agent, as an export uses it: what is asked of another machine, put into errands."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from seatrial.bundle import Bundle
from seatrial.bundle.manifest import Hardware
from seatrial.errors import ConversionFailed
from seatrial.files import write_whole
from seatrial.machine import Machine
from seatrial.settings import Settings
from seatrial_export import package, tensorrt
from seatrial_export.build import Tell
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.child import Limits
from seatrial_export.choose import Budget, Objective
from seatrial_export.contest import Outcome, Pace, Sizes
from seatrial_export.remote import asking, prove, timing
from seatrial_export.remote.client import Connection
from seatrial_export.remote.wire import pack, unpack
from seatrial_export.samples import Inputs, Outputs, write_arrays
from seatrial_export.trial import Found, Questions, Verified
from seatrial_training.evaluation import Score

BUNDLE, QUESTIONS, CALLS, ROWS, PROGRAM = "bundle", "questions.npz", "calls.npz", "rows.npz", "program.pt2"
"""Names in an errand."""
MODEL, EARLIER = "model.onnx", "earlier.cache"
NOT_BEGUN = "was not begun, because the time for the whole export did not allow it"


@dataclass(kw_only=True)
class There:
    """`name` is how somebody named the agent. Files that are sent, and logs that come back, lie in `folder`."""

    name: str
    connection: Connection
    folder: Path
    settings: Settings
    tell: Tell
    _packed: dict[str, Path] = field(default_factory=dict)
    _errands: int = 0

    @property
    def machine(self) -> Machine:
        return self.connection.about.machine

    @property
    def tools(self) -> Mapping[str, str]:
        return self.connection.about.tools

    @property
    def facts(self) -> Mapping[str, object]:
        return {"about": msgspec.to_builtins(self.connection.about), "threads": self.threads}

    @property
    def threads(self) -> int:
        """As an export there would have it."""
        return self.settings.export.threads or max(1, self.machine.cores // 2)

    @property
    def memory_bytes(self) -> int:
        return self.settings.export.memory_bytes or self.machine.memory_bytes * 3 // 4

    def obstacle(self, target: str) -> str | None:
        why = self.connection.about.obstacles.get(target)
        return f"on {self.name}: {why}" if why else None

    def hardware(self, engine: str) -> Hardware:
        return self.connection.about.hardware[engine]

    def package(self, job: package.Job, *, folder: Path, limits: Limits) -> Path:
        """No limit of an export's own reaches there but `until`: what is late is not begun."""
        if time.monotonic() > limits.until:
            raise ConversionFailed(NOT_BEGUN)
        found, made = self.connection.run(
            "package",
            msgspec.structs.replace(job, program=PROGRAM),
            answer=package.Packaged,
            log=self._log("package"),
            files={PROGRAM: Path(job.program)},
        )
        self.connection.fetch(made[found.model], folder / found.model)
        return folder / found.model

    def plan(self, job: tensorrt.Job, *, folder: Path, limits: Limits) -> tensorrt.Planned:
        """As `package`. What kernels took there is kept here, in the file that the job names."""
        if time.monotonic() > limits.until:
            raise ConversionFailed(NOT_BEGUN)
        folder.mkdir(parents=True, exist_ok=True)
        timings, sent = Path(job.timings), folder / EARLIER
        sent.write_bytes(timings.read_bytes())  # what is sent must not change any more
        planned, made = self.connection.run(
            "plan",
            msgspec.structs.replace(job, model=MODEL, timings=tensorrt.TIMINGS),
            answer=tensorrt.Planned,
            log=self._log(folder.name),
            files={MODEL: Path(job.model), tensorrt.TIMINGS: sent},
        )
        for name in (tensorrt.PLAN, tensorrt.LAYERS, tensorrt.TIMINGS):
            self.connection.fetch(made[name], folder / name)
        write_whole(timings, (folder / tensorrt.TIMINGS).read_bytes())
        return planned

    def prove(
        self, candidate: Candidate, bundle: Bundle, questions: Questions, *, program: Path | None
    ) -> Found | Lost:
        job = prove.Job(
            candidate=candidate,
            bundle=BUNDLE,
            questions=QUESTIONS,
            program=PROGRAM if program else "",
            threads=self.threads,
        )
        try:
            proven, _ = self.connection.run(
                "prove",
                job,
                answer=prove.Proven,
                log=self._log(f"prove-{candidate.name}"),
                files={QUESTIONS: self._questions(questions), **({PROGRAM: program} if program else {})},
                bundles={BUNDLE: bundle},
            )
        except ConversionFailed as error:
            reason = f"the process that verified it {error.reason}"
            return Lost(candidate=candidate, verdict=Verdict.NOT_BUILT, reason=reason, log=error.log)
        found = proven.found or proven.lost
        assert found is not None, "an agent's answer without either: this is a bug"
        return found

    def contest(
        self,
        verified: Sequence[Verified],
        rows: Inputs,
        *,
        sizes: Sizes,
        pace: Pace,
        budget: Budget,
        objective: Objective,
    ) -> Outcome:
        if not verified:
            return Outcome(variants=(), lost=(), notes=())
        names = {f"{BUNDLE}-{number}": each for number, each in enumerate(verified)}
        ours = self.settings.export
        job = timing.Job(
            entries=tuple(
                timing.Entry(candidate=each.candidate, folder=name, proof=each.proof, quality=each.quality)
                for name, each in names.items()
            ),
            rows=ROWS,
            sizes=sizes,
            pace=pace,
            budget=budget,
            objective=objective,
            threads=self.threads,
            call_s=ours.call_s,
            start_s=ours.conversion_s,
            memory_bytes=self.memory_bytes,
        )
        write_arrays(self.folder / ROWS, rows)
        timed, _ = self.connection.run(
            "time",
            job,
            answer=timing.Timed,
            log=self._log("time"),
            files={ROWS: self.folder / ROWS},
            bundles={name: each.bundle for name, each in names.items()},
            tell=partial(self.tell, f"measuring on {self.name}"),
        )
        return timed.outcome

    def answers(self, bundle: Bundle, calls: Sequence[Inputs]) -> Sequence[Outputs]:
        self._errands += 1
        sent = self.folder / f"calls-{self._errands}.npz"
        pack(asking.Calls(calls=tuple(calls)), sent)
        return self._ask(asking.Job(bundle=BUNDLE, threads=self.threads, calls=CALLS), bundle, {CALLS: sent}).calls

    def replay(self, bundle: Bundle) -> None:
        self._ask(asking.Job(bundle=BUNDLE, threads=self.threads, replay=True), bundle, {})

    def look(self, bundle: Bundle, questions: Questions) -> Score | Outputs:
        job = asking.Job(bundle=BUNDLE, threads=self.threads, questions=QUESTIONS)
        found = self._ask(job, bundle, {QUESTIONS: self._questions(questions)})
        seen = found.rows if found.score is None else found.score
        assert seen is not None, "an agent looked and saw nothing: this is a bug"
        return seen

    def _ask(self, job: asking.Job, bundle: Bundle, files: Mapping[str, Path]) -> asking.Answers:
        _, made = self.connection.run(
            "ask", job, answer=asking.Asking, log=self._log("ask"), files=files, bundles={BUNDLE: bundle}
        )
        self._errands += 1
        answered = self.folder / f"answers-{self._errands}.npz"
        self.connection.fetch(made[asking.ANSWERS], answered)
        return unpack(answered, asking.Answers)

    def _questions(self, questions: Questions) -> Path:
        """Written and sent once, however many candidates are asked."""
        if questions.digest not in self._packed:
            path = self.folder / f"questions-{len(self._packed)}.npz"
            pack(prove.Asked(exam=questions.exam, held_out=questions.held_out), path)
            self._packed[questions.digest] = path
        return self._packed[questions.digest]

    def _log(self, what: str) -> Path:
        return self.folder / f"{what}.log"
