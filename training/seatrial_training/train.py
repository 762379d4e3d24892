"""From a recipe to a model version: all of `seatrial train`, and what `seatrial demo` begins with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from seatrial.machine import cores
from seatrial.registry import ModelVersion
from seatrial.settings import Settings
from seatrial_models import architecture
from seatrial_training.ancestor import ancestry, pinned
from seatrial_training.data import Dataset, load_dataset
from seatrial_training.evaluation import predictor, score
from seatrial_training.fit import EVALUATION_BATCH, build_module, fit
from seatrial_training.pretrained import begin_from
from seatrial_training.pruning import take_out
from seatrial_training.recipe import Recipe
from seatrial_training.registration import EXAMPLE_ROWS, TrainedModel, register
from seatrial_training.run import Run, open_run

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    trained: TrainedModel
    version: ModelVersion


def train(
    recipe: Recipe,
    settings: Settings,
    *,
    fresh: bool = False,
    tell: Tell = lambda _: None,
    callbacks: Sequence[Callback] = (),
) -> Registered:
    """Train and register. A call that was killed is finished by the next with an equal recipe, unless that is `fresh`.

    Takes the cores that the cgroup allows. `tell` gets a line at each step, `callbacks` are Lightning's, for a progress
    bar.
    """
    torch.set_num_threads(cores())
    recipe, dataset = pinned(recipe, settings), load_dataset(recipe.data, settings)
    ancestors = ancestry(recipe, dataset, settings)
    with open_run(recipe, dataset, settings, ancestry=ancestors, fresh=fresh) as run:
        if run.resumed:
            tell(f"going on with run {run.id}, which was interrupted")
        try:
            module = build_module(recipe, dataset)
            if recipe.pretrained:
                begin_from(recipe.pretrained, module, settings.data_folder)
            if ancestors.start:
                module = ancestors.start.module
            if recipe.pruning:
                example = dataset.train.take(slice(EXAMPLE_ROWS)).inputs
                take_out(module, recipe.pruning, {name: torch.from_numpy(rows) for name, rows in example.items()})
            trained = train_in(run, recipe, dataset, module, callbacks=callbacks)
        except KeyboardInterrupt:
            tell("interrupted; the same command goes on after the last whole epoch")
            raise
        tell(f"trained {len(trained.epochs)} epochs; logging and registering")
        version = register(trained, run)
        run.finish()
    return Registered(trained=trained, version=version)


def train_in(
    run: Run, recipe: Recipe, dataset: Dataset, module: nn.Module, *, callbacks: Sequence[Callback] = ()
) -> TrainedModel:
    """Train `module`, which is changed, in the place of `run`, and score the result on the test split."""
    fitted = fit(
        module,
        recipe,
        dataset,
        teacher=run.ancestry.teacher.module if run.ancestry.teacher else None,
        place=run.place,
        on_epoch=lambda epoch: run.log_epochs([epoch]),
        callbacks=callbacks,
    )
    chosen = architecture(recipe.architecture.name)
    signature = chosen.signature(chosen.configure(recipe.architecture.config))
    return TrainedModel(
        recipe=recipe,
        dataset=dataset,
        module=fitted.module,
        epochs=fitted.epochs,
        best=fitted.best,
        score=score(predictor(fitted.module, signature), dataset.test, batch_size=EVALUATION_BATCH),
    )
