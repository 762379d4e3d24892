"""From a trained model to a version in the registry, with everything that somebody will want to know about it.

What is registered is code-free: the bare module's `torch.export` program, and beside it the files of `retrainable`.
Every step can be done again, so that a process that was killed among them is finished by the next.
"""

import importlib.metadata
import logging
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import msgspec
import numpy as np
import torch
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema
from mlflow.types import TensorSpec as MlflowTensorSpec
from torch import nn

from seatrial import __version__
from seatrial.errors import ConversionFailed
from seatrial.machine import this_machine
from seatrial.registry import ModelRef, ModelVersion
from seatrial.tensors import BATCH, Array, Signature, TensorSpec
from seatrial_models import architecture
from seatrial_training.data import Dataset
from seatrial_training.evaluation import Score, class_results, confusion_matrix, predictor
from seatrial_training.figures import confusion_picture, learning_curves
from seatrial_training.fit import Epoch
from seatrial_training.model_card import model_card
from seatrial_training.recipe import Recipe
from seatrial_training.retrainable import write_retrainable
from seatrial_training.run import Run

EXAMPLE_ROWS = 8
CLOSE = 1e-4
"""How far the program's logits may lie from the module's, absolutely and relatively: float rounding, no more."""
PACKAGES = ("torch", "lightning", "mlflow", "numpy", "safetensors", "scikit-learn", "tokenizers", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """`module` is bare, on the CPU, in eval mode; `score` is on the test split; `best` the epoch of the weights."""

    recipe: Recipe
    dataset: Dataset
    module: nn.Module
    epochs: tuple[Epoch, ...]
    best: int
    score: Score

    @property
    def signature(self) -> Signature:
        chosen = architecture(self.recipe.architecture.name)
        return chosen.signature(chosen.configure(self.recipe.architecture.config))

    @property
    def example(self) -> dict[str, Array]:
        """Real rows, more than one: the exporter would fix the batch axis at 1."""
        return dict(self.dataset.validation.take(slice(EXAMPLE_ROWS)).inputs)


def register(trained: TrainedModel, run: Run) -> ModelVersion:
    """Log `trained` in `run`, and register it as a version of the recipe's model. Twice is once."""
    name = trained.recipe.model_name
    if (version := _registered(run, name)) is not None:
        return version
    with _quiet():
        run.log_epochs(trained.epochs)
        _log_about(trained, run)
        model_id = _log_program(trained, run)
        _create_model(run, name)
        created = run.client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run.id,
            model_id=model_id,
            description=_card(trained),
            tags=dict(run.ancestry.tags),
        )
    return run.registry.resolve(ModelRef(name=name, version=str(created.version)))


def _registered(run: Run, name: str) -> ModelVersion | None:
    found = run.client.search_model_versions(f"name = '{name}' and run_id = '{run.id}'")
    return run.registry.resolve(ModelRef(name=name, version=str(found[0].version))) if found else None


def _create_model(run: Run, name: str) -> None:
    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_about(trained: TrainedModel, run: Run) -> None:
    score, dataset = trained.score, trained.dataset
    truth = dataset.test.labels
    classes = class_results(score.predicted, truth, labels=dataset.labels)
    matrix = confusion_matrix(score.predicted, truth, classes=len(dataset.labels))
    run.client.log_figure(run.id, learning_curves(trained.epochs, best=trained.best), "figures/learning-curves.png")
    run.client.log_figure(run.id, confusion_picture(matrix, dataset.labels), "figures/confusion-matrix.png")
    run.client.log_dict(run.id, {"classes": [asdict(result) for result in classes]}, "classes.json")
    run.client.log_dict(run.id, environment(), "environment.json")
    run.client.log_text(run.id, trained.recipe.as_yaml(), "recipe.yaml")
    run.client.log_text(run.id, _card(trained), "model-card.md")


def _card(trained: TrainedModel) -> str:
    return model_card(
        trained.recipe,
        trained.dataset,
        signature=trained.signature,
        parameters=sum(weight.numel() for weight in trained.module.parameters()),
        epochs=len(trained.epochs),
        best=trained.best,
        score=trained.score,
        classes=class_results(trained.score.predicted, trained.dataset.test.labels, labels=trained.dataset.labels),
    )


def environment() -> dict[str, Any]:
    """What the model was trained with and on."""
    return {
        "seatrial": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": msgspec.to_builtins(this_machine()),
        "threads": torch.get_num_threads(),
    }


def _log_program(trained: TrainedModel, run: Run) -> str:
    """Log the program and the files beside it as a LoggedModel of the run; its id. What a kill left is removed."""
    for left in run.client.search_logged_models([run.experiment], filter_string=f"source_run_id = '{run.id}'"):
        run.client.delete_logged_model(left.model_id)
    example = tuple(trained.example.values())
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run.id):
        files = write_retrainable(
            Path(folder),
            module=trained.module,
            recipe=trained.recipe,
            labels=trained.dataset.labels,
            tokenizer=trained.dataset.tokenizer,
        )
        logged = mlflow.pytorch.log_model(
            trained.module,
            name="model",
            serialization_format="pt2",
            signature=_mlflow_signature(trained.signature),
            input_example=example[0] if len(example) == 1 else example,
            extra_files=[str(file) for file in files],
            pip_requirements=[f"torch=={importlib.metadata.version('torch').partition('+')[0]}", "numpy"],
            step=trained.best,
        )
    _check_program(mlflow.pytorch.load_model(logged.model_uri), trained)
    run.client.log_metric(
        run.id, "test_accuracy", trained.score.value, step=trained.best, model_id=logged.model_id,
        dataset_name=trained.dataset.name, dataset_digest=trained.dataset.digest[:36],
    )  # fmt: skip
    return str(logged.model_id)


def _check_program(program: nn.Module, trained: TrainedModel) -> None:
    """Ask the program that was logged, read back from where it was logged to: the same logits at other sizes?

    Raises `ConversionFailed`. The exporter fixes an axis in silence, and only another size brings it to light.
    """
    answered, expected = (predictor(each, trained.signature) for each in (program, trained.module))
    for inputs in _other_sizes(trained):
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        try:
            got = answered(inputs)["logits"]
        except (RuntimeError, AssertionError) as error:
            raise ConversionFailed(f"the exported program does not take {shapes}: {error}") from error
        if not np.allclose(got, expected(inputs)["logits"], atol=CLOSE, rtol=CLOSE):
            raise ConversionFailed(f"the exported program answers {shapes} differently from the module")


def _other_sizes(trained: TrainedModel) -> Iterator[dict[str, Array]]:
    """Real rows, in other numbers than the example has: whole, and with each axis beside the batch cut to its half."""
    for rows in (1, EXAMPLE_ROWS - 1, EXAMPLE_ROWS + 1):
        inputs = dict(trained.dataset.test.take(slice(rows)).inputs)
        yield inputs
        for axis in trained.signature.dynamic_axes:
            if axis.name != BATCH:
                halves = {name: index for name, index in axis.at.items() if name in inputs}
                yield inputs | {name: _half(inputs[name], index) for name, index in halves.items()}


def _half(array: Array, axis: int) -> Array:
    return np.take(array, np.arange((array.shape[axis] + 1) // 2), axis=axis)


def _mlflow_signature(signature: Signature) -> ModelSignature:
    """Tensors by name, but one input alone has none: with a name, MLflow's own `pyfunc` could not call the model."""
    named = len(signature.inputs) > 1
    return ModelSignature(
        inputs=Schema([_mlflow_spec(spec, named=named) for spec in signature.inputs]),
        outputs=Schema([_mlflow_spec(spec, named=named) for spec in signature.outputs]),
    )


def _mlflow_spec(spec: TensorSpec, *, named: bool) -> MlflowTensorSpec:
    return MlflowTensorSpec(spec.datatype.numpy, spec.shape, spec.name if named else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's remarks on what it is doing."""
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # type: ignore[no-untyped-call]
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
