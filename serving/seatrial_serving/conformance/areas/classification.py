"""An output as its highest classes."""

import numpy as np

from seatrial.protocol import Tensor
from seatrial.tensors import DataType
from seatrial_serving.conformance.check import Failed, NotApplicable, check
from seatrial_serving.conformance.expectations import expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Output, Wire


@check("classification.best", extension="classification")
def the_best_class_is_the_highest_value(wire: Wire, subject: Subject) -> str:
    scores = _scores(subject)
    answer = wire.infer(subject.ask(outputs=(Output(scores.name, {"classification": 1}),)))
    expect(answer.names, [scores.name], of="outputs")
    [classes] = answer.outputs
    expect(classes.datatype, DataType.BYTES, of=f"datatype of '{classes.name}'")
    best = np.argmax(scores.array.reshape(len(scores.array), -1), axis=1)
    expect([_index(text) for text in classes.array.ravel()], best.tolist(), of="classes")
    return f"such as {classes.array.ravel()[0].decode(errors='replace')}"


def _scores(subject: Subject) -> Tensor:
    """An output of numbers, a row of them for each row of the request."""
    for tensor in subject.reference.outputs:
        if subject.batched and tensor.array.ndim == 2 and tensor.datatype in (DataType.FP32, DataType.FP64):
            return tensor
    raise NotApplicable("the model has no output of one score for each class")


def _index(text: bytes) -> int:
    """Of `value:index` or `value:index:label`."""
    parts = text.split(b":")
    if len(parts) < 2 or not parts[1].isdigit():
        raise Failed(found=repr(text), expected="value:index or value:index:label")
    return int(parts[1])
