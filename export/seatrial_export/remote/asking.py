"""The agent's child that asks one bundle what nobody times: `python -P -m seatrial_export.remote.asking job.json`."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from seatrial.bundle import open_bundle
from seatrial_export import child
from seatrial_export.deltas.look import look
from seatrial_export.remote.prove import Asked
from seatrial_export.remote.wire import pack, unpack
from seatrial_export.samples import Inputs, Outputs
from seatrial_serving.engines import open_engine, proof
from seatrial_training.evaluation import Score

ANSWERS = "answers.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What is asked, one call after the other."""

    calls: tuple[Inputs, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """`calls` as they were asked; `rows` or `score` is what `look` finds."""

    calls: tuple[Outputs, ...] = ()
    rows: Outputs | None = None
    score: Score | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`calls` is a file with `Calls`, `questions` one with `Asked`; either may be empty. With `replay`, the bundle's golden
    requests are asked too."""

    bundle: str
    threads: int
    calls: str = ""
    questions: str = ""
    replay: bool = False


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """`ANSWERS` in the child's folder holds `Answers`; `golden` is how many golden requests were repeated."""

    golden: int = 0


def step(job: Job) -> Asking:
    bundle = open_bundle(Path(job.bundle))
    with closing(open_engine(bundle, threads=job.threads)) as engine:
        answers = Answers()
        if job.calls:
            asked = unpack(Path(job.calls), Calls).calls
            answers = Answers(calls=tuple(engine.predict(inputs) for inputs in asked))
        elif job.questions:
            questions = unpack(Path(job.questions), Asked)
            found = look(engine.predict, questions.exam, questions.held_out)
            answers = Answers(score=found) if isinstance(found, Score) else Answers(rows=found)
        pack(answers, Path(ANSWERS))
        return Asking(golden=proof.replay(engine, bundle) if job.replay else 0)


if __name__ == "__main__":
    child.work(Job, step)
