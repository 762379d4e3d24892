"""Architectures of the zoo as programs, as small as they come, and how far from them an engine answers."""

from pathlib import Path
from typing import Any

import torch

from seatrial_export.candidate import Candidate
from seatrial_export.exam import set_exam
from seatrial_export.program import reference
from seatrial_export.verify import verify
from seatrial_models import architecture
from seatrial_models.architecture import Architecture
from seatrial_models.program import to_program
from seatrial_serving.engines import Engine

TRANSFORMER = architecture("text-transformer")
"""It computes with its sizes: heads are cut out of, and put back into, batches of any size and length."""
CONFIG = TRANSFORMER.small[0]
SIGNATURE = TRANSFORMER.signature(CONFIG)


def program_of(place: Path, zoo: Architecture[Any] = TRANSFORMER) -> Path:
    config = zoo.small[0]
    torch.manual_seed(0)
    torch.export.save(to_program(zoo.build(config).eval(), zoo.example(config, 3), zoo.signature(config)), place)
    return place


def greatest_distance(
    candidate: Candidate, engine: Engine, program: Path, zoo: Architecture[Any] = TRANSFORMER
) -> float:
    """At every size and in company. Raises what `verify` does."""
    config = zoo.small[0]
    signature = zoo.signature(config)
    rows = {name: tensor.numpy() for name, tensor in zoo.example(config, 24).items()}
    exam = set_exam(signature, rows, reference(program, signature))
    assert {axis.name for axis in signature.dynamic_axes} == {case.axis for case in exam.cases if case.axis}
    return verify(candidate, engine.predict, exam).agreement.max_absolute
