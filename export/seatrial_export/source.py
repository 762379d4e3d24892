"""A model version as the export stage reads it: a code-free program, rows to ask it, and labels if any came with it.

Ours come with a recipe, hence data: training rows calibrate, held-out rows judge. Others come with an example, and with
what somebody gives in `--samples`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seatrial.errors import DataMissing, InvalidRecipe, InvalidSource
from seatrial.registry import ModelVersion
from seatrial.settings import Settings
from seatrial.tensors import Array, Signature
from seatrial_export.logged import Logged, Trust, open_logged
from seatrial_export.quality import ENOUGH_ROWS
from seatrial_export.samples import Inputs, count, draw, fitted, joined, read_arrays, read_samples, take
from seatrial_export.text import LINES, Text
from seatrial_training.data import PADDING_ID, Dataset, Split, load_dataset
from seatrial_training.retrainable import NotRetrainable, Retrainable, read_retrainable

SEED = 0
AGREEMENT_ROWS = 512
"""Most rows that agreement is taken over where labels decide anyway."""
SPARE_ROWS = 32
"""How many sample rows beyond those that judge it takes to calibrate on them alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`rows` are put to every candidate, `calibration` sets the ranges of INT8, `held_out` has labels if any came.

    `files` is the model's directory. `dataset` is where the rows come from, if the model brought a recipe. `notes` are
    sentences for the report.
    """

    version: ModelVersion
    files: Path
    program: Path
    signature: Signature
    rows: Inputs
    calibration: Inputs
    held_out: Split | None
    dataset: Dataset | None
    retrainable: Retrainable | NotRetrainable
    text: Text | None
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        if isinstance(self.retrainable, Retrainable):
            return self.retrainable.labels
        return self.text.processing.labels if self.text else ()

    @property
    def embeds(self) -> bool:
        """Whether it takes texts, by their tokens, and answers with one vector for each."""
        return self.text is not None and not self.text.processing.labels

    @property
    def max_batch(self) -> int:
        return self.signature.batch.max if self.signature.batch else 1

    @property
    def basis(self) -> str:
        """How variants are judged, in a sentence."""
        if self.held_out is not None:
            return f"Judged by its labels: {len(self.held_out)} held-out rows of the data set that it was trained on."
        return f"Judged by agreement with the source model on {count(self.rows)} rows; no labels came with it."

    @property
    def calibration_digest(self) -> str:
        content = b"".join(name.encode() + array.tobytes() for name, array in sorted(self.calibration.items()))
        return f"sha256:{hashlib.sha256(content).hexdigest()}"


def open_source(
    version: ModelVersion, settings: Settings, *, files: Path, trust: Trust, samples: Path | None
) -> Source:
    """Read `version`, whose `files` were downloaded.

    Raises `Untrusted` where that takes running somebody's code and nobody allowed it, `InvalidSource` for what cannot
    be exported.
    """
    logged = open_logged(
        files,
        what=str(version),
        trust=trust,
        max_batch=settings.export.max_batch,
        rows=read_arrays(samples) if samples and samples.suffix != LINES else None,
    )
    retrainable = read_retrainable(files)
    dataset, notes = _load_dataset(retrainable, settings)
    rows = settings.export.calibration_rows
    material = _from_dataset(dataset, rows=rows) if dataset else _from_samples(logged, samples, rows=rows)
    if dataset and samples:
        notes += (f"{samples} was not needed: the model came with labelled data, which says more",)
    return Source(
        version=version,
        files=files,
        program=logged.program,
        signature=logged.signature,
        rows=material.rows,
        calibration=material.calibration,
        held_out=material.held_out,
        dataset=dataset,
        retrainable=retrainable,
        text=logged.text,
        notes=logged.notes + notes + material.notes,
    )


def _load_dataset(
    retrainable: Retrainable | NotRetrainable, settings: Settings
) -> tuple[Dataset | None, tuple[str, ...]]:
    """The data set of the model's recipe; None for a model without one, or with a note where its files are absent."""
    if isinstance(retrainable, NotRetrainable):
        return None, ()
    try:
        return load_dataset(retrainable.recipe.data, settings), ()
    except (DataMissing, InvalidRecipe) as error:
        return None, (f"the recipe's data is not here, so there were no labels to judge by: {error}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Material:
    """What to ask and to judge by."""

    rows: Inputs
    calibration: Inputs
    held_out: Split | None = None
    notes: tuple[str, ...] = ()


def _from_dataset(dataset: Dataset, *, rows: int) -> _Material:
    """Validation and test rows judge: no variant is fitted to either, fine-tuning stops by rows of its own."""
    parts = dataset.validation, dataset.test
    held_out = Split(
        inputs=joined(_as_long([part.inputs for part in parts])),
        labels=np.concatenate([part.labels for part in parts]),
    )
    return _Material(
        rows=draw(held_out.inputs, AGREEMENT_ROWS, seed=SEED),
        calibration=draw(dataset.train.inputs, rows, seed=SEED),
        held_out=held_out,
    )


def _as_long(parts: Sequence[Inputs]) -> list[Inputs]:
    """`parts` of a data set's rows, the shorter padded: each split of texts is as long as its longest."""
    longest = {
        name: max(part[name].shape[1] for part in parts)
        for name, array in parts[0].items()
        if array.dtype.kind == "i" and array.ndim == 2
    }
    return [
        {
            name: np.pad(array, ((0, 0), (0, longest[name] - array.shape[1])), constant_values=PADDING_ID)
            if name in longest
            else array
            for name, array in part.items()
        }
        for part in parts
    ]


def _from_samples(logged: Logged, samples: Path | None, *, rows: int) -> _Material:
    notes: tuple[str, ...] = ()
    if samples is not None:
        given = _read_samples(samples, logged)
    elif logged.example:
        given = fitted(logged.example, logged.signature, whose="the model's input example")
    else:
        given = noise(logged.signature)
        notes += ("it came without an input example and was asked noise; give real rows with --samples FILE",)
    judging, calibrating = _shared_out(given, most=rows)
    if calibrating is judging:
        notes += ("INT8 ranges were calibrated on the rows that judge them: there are too few to set some aside",)
    return _Material(rows=judging, calibration=draw(calibrating, rows, seed=SEED), notes=notes)


def _read_samples(path: Path, logged: Logged) -> Inputs:
    if path.suffix != LINES:
        return read_samples(path, logged.signature)
    if logged.text is None:
        raise InvalidSource(f"{path} is text, and the model came without a tokenizer; give rows as .npz or Parquet")
    return fitted(logged.text.read_lines(path), logged.signature, whose=str(path))


def _shared_out(given: Inputs, *, most: int) -> tuple[Inputs, Inputs]:
    """The rows that judge and those that calibrate: apart where there are enough."""
    spare = min(most, count(given) - ENOUGH_ROWS)
    if spare < SPARE_ROWS:
        return given, given
    return take(given, slice(spare, None)), take(given, slice(spare))


def noise(signature: Signature, rows: int = 8) -> dict[str, Array]:
    """Seeded inputs for a model that came with none: normal numbers, small integers."""
    generator = np.random.default_rng(SEED)
    smallest = {(name, index): axis.min for axis in signature.dynamic_axes for name, index in axis.at.items()}
    made = {}
    for spec in signature.inputs:
        shape = [max(4, smallest.get((spec.name, i), 1)) if size < 0 else size for i, size in enumerate(spec.shape)]
        if signature.batch:
            shape[0] = rows
        numbers = generator.normal(size=shape) if spec.datatype.numpy.kind == "f" else generator.integers(0, 2, shape)
        made[spec.name] = numbers.astype(spec.datatype.numpy)
    return made
