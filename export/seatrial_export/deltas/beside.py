"""Sets a chosen variant beside its source: asks its engine, and where somebody wants it, the child that asks more."""

import time
from pathlib import Path

import msgspec
import numpy as np

from seatrial.errors import ConversionFailed
from seatrial_export import child
from seatrial_export.child import Limits
from seatrial_export.deltas import Deltas, compare, judge, probe
from seatrial_export.deltas.look import look
from seatrial_export.deltas.probed import Probed
from seatrial_export.elsewhere import Elsewhere
from seatrial_export.quality import HeldOut
from seatrial_export.samples import take, write_arrays
from seatrial_export.source import SEED, Source
from seatrial_export.stand import Stand
from seatrial_export.trial import Questions, Verified
from seatrial_training.evaluation import Score
from seatrial_training.retrainable import Retrainable


def set_beside(
    verified: Verified, source: Source, questions: Questions, *, stand: Stand, elsewhere: Elsewhere | None = None
) -> Deltas:
    """On the held-out rows, or without labels on the rows that everybody was asked. One run over them.

    Raises `ConversionFailed` where the process of its engine is lost, `EngineFailed` where it refuses rows.
    """
    name, held_out = verified.candidate.name, questions.held_out
    if elsewhere:
        found = elsewhere.look(verified.bundle, questions)
    else:
        with stand.opened(verified.bundle) as predict:
            found = look(predict, questions.exam, held_out)
    if isinstance(found, Score):
        assert held_out is not None, "a score without labels: this is a bug"
        return judge(name, held_out.source, found, held_out.split, signature=source.signature, labels=source.labels)
    return compare(name, questions.exam.source, found)


def ask_more(
    deltas: Deltas, verified: Verified, source: Source, held_out: HeldOut | None, *, folder: Path, limits: Limits
) -> Deltas:
    """`deltas` with what a child in `folder`, which is new, found out. A child that fails costs that alone."""
    if held_out is None:
        why = "no labels came with the model, and spoiled rows are judged by theirs"
        return msgspec.structs.replace(deltas, probed=Probed(notes=(why,)))
    drawn = np.random.default_rng(SEED).permutation(len(held_out.split))[: probe.ROWS]
    rows = folder.with_name(f"{folder.name}-rows.npz")
    write_arrays(rows, take(held_out.split.inputs, drawn))
    tokenizer = source.retrainable.tokenizer if isinstance(source.retrainable, Retrainable) else None
    job = probe.Job(
        program=str(source.program),
        bundle=str(verified.bundle.path),
        variant_program=str(verified.program or ""),
        tokenizer=str(tokenizer or ""),
        rows=str(rows),
        truth=tuple(held_out.split.labels[drawn].tolist()),
        numbers=tuple(drawn.tolist()),
        labels=source.labels,
        threads=limits.threads,
        for_s=min(limits.time_s, limits.until - time.monotonic()) / 2,
    )
    try:
        probed = child.run(probe.__name__, job, folder=folder, answer=Probed, limits=limits)
    except ConversionFailed as error:
        probed = Probed(notes=(f"the child that asks more {error.reason}",), log=error.log, command=error.command)
    return msgspec.structs.replace(deltas, probed=probed)
