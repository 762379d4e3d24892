"""One run of a variant over the rows by which it is set beside its source."""

from seatrial_export.exam import ROWS_AT_ONCE, Exam
from seatrial_export.quality import HeldOut
from seatrial_export.samples import Outputs, Predict, answers
from seatrial_training.evaluation import Score, score


def look(predict: Predict, exam: Exam, held_out: HeldOut | None) -> Score | Outputs:
    """Its score on the held-out rows, or without labels its answers to the rows that everybody was asked."""
    if held_out is None:
        return answers(predict, exam.signature, exam.rows, size=ROWS_AT_ONCE)
    return score(predict, held_out.split, batch_size=held_out.batch_size)
