"""From a built file to a variant: opened as a server would open it, verified, scored, and timed against the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seatrial.bundle import MAIN, Bundle, Draft, ModelName, write_bundle
from seatrial.bundle.evidence import Quality
from seatrial.engines import fingerprint
from seatrial.errors import SeatrialError
from seatrial_export.build import Built
from seatrial_export.candidate import Candidate, Lost, Verdict
from seatrial_export.choose import Variant
from seatrial_export.exam import Exam, set_exam
from seatrial_export.measure import measure, throughput_batch
from seatrial_export.program import reference
from seatrial_export.quality import HeldOut, by_agreement, by_labels, hold_out
from seatrial_export.samples import Inputs, Predict, calls, count, repeat
from seatrial_export.source import Source
from seatrial_export.verify import Proof, Unfaithful, verify
from seatrial_serving.engines import Engine, open_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What every candidate is asked, and what the source model answered; `answer` asks the source more."""

    answer: Predict
    exam: Exam
    held_out: HeldOut | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A candidate that answers as it should, not yet timed. Its engine is open."""

    candidate: Candidate
    draft: Draft
    bundle: Bundle
    engine: Engine
    proof: Proof
    quality: Quality


def ask_source(source: Source) -> Questions:
    answer = reference(source.program, source.signature)
    return Questions(
        answer=answer,
        exam=set_exam(source.signature, source.rows, answer),
        held_out=hold_out(source.held_out, answer, max_batch=source.max_batch) if source.held_out else None,
    )


def examine(built: Built, source: Source, questions: Questions, *, store: Path, threads: int) -> Verified | Lost:
    """Write `built` as a provisional bundle into `store`, open it, verify and score it."""
    draft = _draft(built, source)
    bundle = write_bundle(draft, store)
    candidate = built.candidate
    try:
        engine = open_engine(bundle, threads=threads)
    except SeatrialError as error:
        return Lost(candidate=candidate, verdict=Verdict.NOT_BUILT, reason=f"the engine cannot open it: {error}")
    program = reference(built.program, source.signature) if built.program and not candidate.quantized else None
    try:
        proof = verify(candidate, engine.predict, questions.exam, program=program)
        quality = _score(engine, proof, questions)
    except Unfaithful as why:
        engine.close()
        return Lost(candidate=candidate, verdict=Verdict.UNFAITHFUL, reason=str(why))
    return Verified(
        candidate=candidate,
        draft=draft,
        bundle=bundle,
        engine=engine,
        proof=proof,
        quality=quality,
    )


def _score(engine: Engine, proof: Proof, questions: Questions) -> Quality:
    if questions.held_out is None:
        return by_agreement(proof.agreement, rows=count(questions.exam.rows))
    return by_labels(engine.predict, questions.held_out)


def _draft(built: Built, source: Source) -> Draft:
    """The bundle without what is recorded last: golden requests and their bounds."""
    candidate, file = built.candidate, f"model{built.model.suffix}"
    return Draft(
        model=ModelName(name=source.version.name, version=source.version.version),
        variant=candidate.variant_name(built.recorded),
        signature=source.signature,
        engine=candidate.engine,
        graphs={MAIN: file},
        files={file: built.model},
        golden=(),
        source_bounds={},
        rerun_bounds={},
        labels=source.labels,
        hardware=fingerprint(candidate.engine.name) if candidate.bound else None,
    )


def time_all(verified: Sequence[Verified], rows: Inputs, *, threads: int, for_s: float) -> list[Variant]:
    """Time them against each other, at one row and at the throughput batch; nothing else of ours may run meanwhile."""
    if not verified:
        return []
    signature = verified[0].engine.signature
    predicts = {each.candidate.name: each.engine.predict for each in verified}

    def rows_of(size: int) -> Inputs:
        return repeat(rows, size) if signature.batch else next(calls(signature, rows, size=size))

    one = rows_of(1)
    many = rows_of(throughput_batch(predicts.values(), rows_of, limit=signature.batch.max)) if signature.batch else one
    alone = measure(predicts, one, batch=count(one), threads=threads, for_s=for_s)
    throughput = measure(predicts, many, batch=count(many), threads=threads, for_s=for_s)
    return [
        Variant(
            candidate=each.candidate,
            proof=each.proof,
            quality=each.quality,
            alone=alone[each.candidate.name],
            throughput=throughput[each.candidate.name],
            size_bytes=each.bundle.file(each.bundle.manifest.graphs[MAIN]).stat().st_size,
        )
        for each in verified
    ]
