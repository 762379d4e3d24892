"""From a built file to a verified candidate: opened as a server would open it, put through the exam, and scored."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from seatrial.bundle import MAIN, Bundle, Draft, ModelName, write_bundle
from seatrial.bundle.evidence import Quality
from seatrial.bundle.store import file_sha256
from seatrial.engines import fingerprint, obstacle
from seatrial.errors import ConversionFailed, SeatrialError
from seatrial_export.build import Built
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.elsewhere import Elsewhere
from seatrial_export.exam import Exam, set_exam
from seatrial_export.program import reference
from seatrial_export.quality import HeldOut, by_agreement, by_labels, hold_out
from seatrial_export.samples import Predict, count, digest_of
from seatrial_export.shelf import Shelf
from seatrial_export.source import Source
from seatrial_export.verify import Proof, Unanswered, Unfaithful, verify
from seatrial_serving.engines import open_engine

Open: TypeAlias = Callable[[Bundle], AbstractContextManager[Predict]]
"""Opens a bundle to be asked, as a server would. What raises `ConversionFailed` while it is asked has lost its process."""


def in_this_process(*, threads: int) -> Open:
    """For a child that has nothing else to lose."""

    @contextmanager
    def opened(bundle: Bundle) -> Iterator[Predict]:
        with closing(open_engine(bundle, threads=threads)) as engine:
            yield engine.predict

    return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What every candidate is asked, and what the source model answered; `answer` asks the source more."""

    answer: Predict
    exam: Exam
    held_out: HeldOut | None
    digest: str
    """Of the questions and the source's answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What a candidate's answers are worth: the same whenever the same bundle is asked the same questions on this machine."""

    proof: Proof
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """By the exam: that it is proved, or why not."""

    proved: Proved | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A candidate that answers as it should, not yet timed. `bundle` is provisional: without golden requests.

    `program` answers as it does and is not the source's own: what it was converted from, where it is of another shape.
    """

    candidate: Candidate
    draft: Draft
    bundle: Bundle
    proof: Proof
    quality: Quality
    program: Path | None = None


def ask_source(source: Source) -> Questions:
    answer = reference(source.program, source.signature)
    exam = set_exam(source.signature, source.rows, answer, embeds=source.embeds)
    held_out = hold_out(source.held_out, answer, max_batch=source.max_batch) if source.held_out else None
    return Questions(answer=answer, exam=exam, held_out=held_out, digest=digest_of((exam, held_out)))


def examine(
    built: Built,
    source: Source,
    questions: Questions,
    *,
    store: Path,
    threads: int,
    opened: Open | None = None,
    shelf: Shelf | None = None,
    elsewhere: Elsewhere | None = None,
) -> Verified | Lost:
    """Write `built` as a provisional bundle into `store`, open it, by default in this process, or `elsewhere`, verify and score
    it; what is on the `shelf` is believed.

    What cannot be run here stays unverified, and nobody can choose it.
    An engine that gives no answer may have lacked memory: it is asked again another time.
    """
    draft = _draft(built, source, elsewhere)
    bundle = write_bundle(draft, store)
    candidate, program = built.candidate, _own_program(built)
    if elsewhere is None and (why := obstacle(candidate.engine)):
        return Lost(
            candidate=candidate, verdict=Verdict.UNVERIFIED, reason=f"it was built and never run: {why}",
            files=bundle.path, size_bytes=bundle.model_bytes,
        )  # fmt: skip
    key = _key(shelf, bundle, built, questions, threads=threads, elsewhere=elsewhere) if shelf else ""
    found = shelf.recall(key, Found) if shelf else None
    if found is None:
        if elsewhere:
            proven = elsewhere.prove(candidate, bundle, questions, program=program)
        else:
            proven = prove(
                candidate,
                bundle,
                questions.exam,
                questions.held_out,
                program=program,
                opened=opened or in_this_process(threads=threads),
            )
        if isinstance(proven, Lost):
            return proven
        found = proven
        if shelf:
            shelf.remember(key, found)
    if found.proved is None:
        return Lost(candidate=candidate, verdict=Verdict.UNFAITHFUL, reason=found.refusal)
    return Verified(
        candidate=candidate,
        draft=draft,
        bundle=bundle,
        proof=found.proved.proof,
        quality=found.proved.quality,
        program=program,
    )


def prove(
    candidate: Candidate, bundle: Bundle, exam: Exam, held_out: HeldOut | None, *, program: Path | None, opened: Open
) -> Found | Lost:
    """Open `bundle`, verify and score it. `Lost` where another time it may be otherwise."""
    with ExitStack() as stack:
        try:
            predict = stack.enter_context(opened(bundle))
        except SeatrialError as error:
            return Lost(candidate=candidate, verdict=Verdict.NOT_BUILT, reason=f"the engine cannot open it: {error}")
        try:
            converted_from = reference(program, exam.signature) if program else None
            proof = verify(candidate, predict, exam, program=converted_from)
            return Found(proved=Proved(proof=proof, quality=_score(predict, proof, exam, held_out)))
        except Unanswered as why:
            return Lost(candidate=candidate, verdict=Verdict.UNFAITHFUL, reason=str(why))
        except Unfaithful as why:
            return Found(refusal=str(why))
        except ConversionFailed as why:
            reason = f"while it was verified its engine {why.reason}"
            return Lost(candidate=candidate, verdict=Verdict.UNFAITHFUL, reason=reason, log=why.log)


def _key(
    shelf: Shelf,
    bundle: Bundle,
    built: Built,
    questions: Questions,
    *,
    threads: int,
    elsewhere: Elsewhere | None,
) -> str:
    program = file_sha256(built.program) if built.program else ""
    where = {"elsewhere": elsewhere.facts} if elsewhere else {}
    return shelf.key(
        "examined", bundle=bundle.digest, program=program, asked=questions.digest, threads=threads, **where
    )


def _own_program(built: Built) -> Path | None:
    return None if built.candidate.quantized else built.program


def _score(predict: Predict, proof: Proof, exam: Exam, held_out: HeldOut | None) -> Quality:
    if held_out is None:
        return by_agreement(proof.agreement, rows=count(exam.rows), embeds=exam.embeds)
    return by_labels(predict, held_out)


def _draft(built: Built, source: Source, elsewhere: Elsewhere | None) -> Draft:
    """The bundle without what is recorded last: golden requests and their bounds."""
    candidate, file = built.candidate, built.name or f"model{built.model.suffix}"
    hardware = elsewhere.hardware if elsewhere else fingerprint
    text = source.text if source.embeds else None  # the server takes texts to embed, no others
    return Draft(
        model=ModelName(name=source.version.name, version=source.version.version),
        variant=candidate.variant_name(built.recorded),
        signature=source.signature,
        engine=candidate.engine,
        graphs={MAIN: file},
        files={file: built.model, **built.beside} | ({text.processing.tokenize.file: text.tokenizer} if text else {}),
        golden=(),
        source_bounds={},
        rerun_bounds={},
        labels=source.labels,
        preprocessing=(text.processing.tokenize,) if text else (),
        hardware=hardware(candidate.engine.name) if candidate.bound else None,
    )
