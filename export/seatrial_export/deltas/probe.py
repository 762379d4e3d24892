"""The child that asks a source and its variant what takes many questions.

`python -P -m seatrial_export.deltas.probe job.json`. Rows that the world has spoiled, rows that were made to be answered
wrongly, and on what in a row an answer hangs.
"""

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from seatrial.bundle import open_bundle
from seatrial.tensors import Signature
from seatrial_export import child
from seatrial_export.deltas.attack import ATTACKS, REACHES, attacked
from seatrial_export.deltas.attribution import Explained, Explanations, Material, Row, explain
from seatrial_export.deltas.confusion import name
from seatrial_export.deltas.gradients import Differentiable
from seatrial_export.deltas.pairs import Right, pair
from seatrial_export.deltas.pictures import Pictures
from seatrial_export.deltas.probed import Curve, Point, Probed
from seatrial_export.deltas.texts import Texts
from seatrial_export.exam import ROWS_AT_ONCE
from seatrial_export.program import reference
from seatrial_export.samples import Inputs, Predict, read_arrays, take
from seatrial_serving.engines import open_engine
from seatrial_training.data import Split
from seatrial_training.evaluation import score

ROWS = 512
"""Most held-out rows that are spoiled; the first `ATTACKED` of them are attacked, the first `EXPLAINED` explained."""
ATTACKED, EXPLAINED = 256, 24


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` is an .npz of inputs, whose classes are `truth` and whose places among the held-out rows `numbers`.

    `bundle` is the variant's; `variant_program` what it was converted from, where that is another program than the
    source's and it answers alike. Nothing is begun after `for_s`.
    """

    program: str
    bundle: str
    variant_program: str
    tokenizer: str
    rows: str
    truth: tuple[int, ...]
    numbers: tuple[int, ...]
    labels: tuple[str, ...]
    threads: int
    for_s: float


def probe(job: Job) -> Probed:
    with closing(open_engine(open_bundle(Path(job.bundle)), threads=job.threads)) as engine:
        rows = read_arrays(Path(job.rows))
        source = Path(job.program)
        return _Asking(
            job=job,
            signature=engine.signature,
            source=reference(source, engine.signature),
            variant=engine.predict,
            rows=Split(inputs=rows, labels=np.array(job.truth, np.int64)),
            until=time.monotonic() + job.for_s,
        ).everything()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    job: Job
    signature: Signature
    source: Predict
    variant: Predict
    rows: Split
    until: float

    def everything(self) -> Probed:
        tokenizer = Path(self.job.tokenizer) if self.job.tokenizer else None
        material = Pictures.of(self.signature, self.rows.inputs) or Texts.of(self.signature, tokenizer)
        gradients = Differentiable(Path(self.job.program), self.signature)
        floats = any(array.dtype.kind == "f" for array in self.rows.inputs.values())
        notes = []
        if material is None:
            notes.append("its rows are neither pictures nor texts, so no part of them was spoiled or hidden")
        if not floats:
            notes.append("an attack moves numbers a little, and this model takes none but the ids of tokens")
        found = Probed(
            corruptions=self._curves(material.corrupted(self.rows.inputs), self.rows) if material else (),
            attacks=self._attacks(gradients) if floats else (),
            explanations=self._explanations(material, gradients) if material and self._in_time() else None,
        )
        if not self._in_time():
            notes.append(f"{self.job.for_s:g} s were over before everything was asked")
        return msgspec.structs.replace(found, notes=tuple(notes))

    def _attacks(self, gradients: Differentiable) -> tuple[Curve, ...]:
        rows = self.rows.take(slice(ATTACKED))
        return self._curves(
            (
                (attack, reach, attacked(attack, gradients, rows.inputs, rows.labels, reach=reach, size=self._at_once))
                for attack in ATTACKS
                for reach in REACHES
            ),
            rows,
        )

    def _explanations(self, material: Material, gradients: Differentiable) -> Explanations:
        program = self.job.variant_program
        variant = Differentiable(Path(program), self.signature) if program else None
        rows = self.rows.take(slice(EXPLAINED))
        classes = score(self.source, rows, batch_size=self._at_once).predicted.tolist()
        return explain(
            Explained(name="source", predict=self.source, gradients=gradients),
            Explained(name="variant", predict=self.variant, gradients=variant),
            material,
            self.signature,
            [
                Row(
                    inputs=take(rows.inputs, slice(place, place + 1)),
                    number=self.job.numbers[place],
                    label=label,
                    name=name(label, self.job.labels),
                )
                for place, label in enumerate(classes)
            ],
        )

    def _curves(self, spoilt: Iterable[tuple[str, float, Inputs]], rows: Split) -> tuple[Curve, ...]:
        clean = self._right(rows)
        found: dict[str, list[tuple[float, Right, Right]]] = {}
        for kind, at, inputs in spoilt:
            found.setdefault(kind, []).append((at, *self._right(replace(rows, inputs=inputs))))
            if not self._in_time():
                break
        among = sum(map(len, found.values()))
        return tuple(
            Curve(
                name=kind,
                points=tuple(
                    Point(at=at, pairs=pair(source, variant, among=among))
                    for at, source, variant in [(0.0, *clean), *points]
                ),
            )
            for kind, points in found.items()
        )

    def _right(self, rows: Split) -> tuple[Right, Right]:
        """Whether each row is answered rightly by the source, and whether by the variant."""
        source, variant = (score(asked, rows, batch_size=self._at_once) for asked in (self.source, self.variant))
        return source.correct, variant.correct

    @property
    def _at_once(self) -> int:
        return min(ROWS_AT_ONCE, self.signature.batch.max) if self.signature.batch else 1

    def _in_time(self) -> bool:
        return time.monotonic() < self.until


if __name__ == "__main__":
    child.work(Job, probe)
