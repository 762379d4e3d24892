"""Train a module on a data set as a recipe says, with Lightning's loop.

Knows optimisation, checkpoints and how to go on from one. Knows nothing of MLflow: `on_epoch` tells whoever wants to
know what was measured. All randomness is drawn anew, from the seed, at the start of each epoch, so that a run that was
interrupted after any epoch ends with the same weights as one that was not (on equal hardware and thread counts).
"""

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler

from seatrial.errors import InvalidRecipe
from seatrial_models import architecture
from seatrial_models.architecture import Inputs
from seatrial_training import data
from seatrial_training.augment import Augmentation, augmentations, shrink
from seatrial_training.distill import Ask, Lesson, as_it_is
from seatrial_training.precision import choose_precision
from seatrial_training.pruning import Sparsifier, epoch_of_all_zeros
from seatrial_training.recipe import Distillation, Optimizer, Recipe, Schedule
from seatrial_training.rounding import Rounding

MONITORED = "validation_accuracy"
EVALUATION_BATCH = 256
UNTUNED = ("averaging", "early_stopping", "quantization", "small_images")
"""What fine-tuning leaves out of a recipe. Small images would undo what it knows of whole ones."""
GIVEN = "that was given"
"""What a teacher is called that has no name in a registry."""
FIRST_PART = 0.1
"""Of the time for training, in which nobody can say yet how fast it is: the first steps are slow."""
NARROW = 8
"""Channels that fill a vector register of single precision."""

Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What was measured in one epoch, counted from 1."""

    number: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """`module` is in eval mode, with the weights of the epoch `best`: averaged ones, where the recipe averages."""

    module: nn.Module
    epochs: tuple[Epoch, ...]
    best: int
    hurried: bool = False
    """Whether a bound on the time changed anything: the last epoch may not be whole, and some may be missing."""


def build_module(recipe: Recipe, dataset: data.Dataset) -> nn.Module:
    """The recipe's module with its initial weights. Raises `InvalidRecipe` where it does not fit the data set."""
    chosen = architecture(recipe.architecture.name)
    config = chosen.configure(recipe.architecture.config)
    signature = chosen.signature(config)
    [logits] = signature.outputs
    if logits.shape[-1] != len(dataset.labels):
        raise InvalidRecipe(
            f"recipe '{recipe.name}' has {logits.shape[-1]} classes, the data set '{dataset.name}' has "
            f"{len(dataset.labels)}; set architecture.config.classes={len(dataset.labels)}"
        )
    for spec in signature.inputs:
        rows = dataset.train.inputs.get(spec.name)
        if rows is None or any(size not in (-1, found) for size, found in zip(spec.shape, rows.shape, strict=True)):
            found = {name: list(array.shape[1:]) for name, array in dataset.train.inputs.items()}
            raise InvalidRecipe(
                f"recipe '{recipe.name}' wants input '{spec.name}' with rows of shape {list(spec.shape[1:])}, "
                f"the data set '{dataset.name}' has {found}; set architecture.config"
            )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        module: nn.Module = chosen.build(config)
        _rehearse(module, recipe, dataset)
    return module


def _rehearse(module: nn.Module, recipe: Recipe, dataset: data.Dataset) -> None:
    """Do to a few rows what training will do to all. Raises `InvalidRecipe` where a part of the recipe does not fit."""
    rows = Rows(dataset.train, augmentations(recipe.augment))
    try:
        inputs, _ = rows.__getitems__([0, _row_with_the_highest_id(dataset.train)])
        if recipe.small_images:
            inputs = shrink(inputs, recipe.small_images.scale)
        with torch.inference_mode():
            module.eval()(**inputs)
    except (KeyError, IndexError, RuntimeError) as error:
        raise InvalidRecipe(
            f"recipe '{recipe.name}' does not fit together: {type(error).__name__} ({error}) on rows of '{dataset.name}'; "
            "compare its augment, small_images and architecture.config with the data set and the architecture"
        ) from error
    module.train()


def _row_with_the_highest_id(split: data.Split) -> int:
    """Of token ids: an embedding that has that one has all. 0 where the inputs are no ids."""
    for array in split.inputs.values():
        if array.dtype.kind == "i":
            return int(array.reshape(len(array), -1).max(axis=1).argmax())
    return 0


def fit(
    module: nn.Module,
    recipe: Recipe,
    dataset: data.Dataset,
    *,
    teacher: nn.Module | None = None,
    place: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    callbacks: Sequence[Callback] = (),
    deadline: "Deadline | None" = None,
) -> Fitted:
    """Train `module`, which is changed; `teacher` is whom it learns from where the recipe has a distillation.

    With a `place`, a checkpoint is kept there after every epoch, and a call that finds one goes on from it. `on_epoch`
    is told each epoch before its checkpoint is written: after an interruption it may be told one a second time. Raises
    `OutOfTime` where the `deadline` came before there was anything to keep.
    """
    deadline = deadline or Deadline(None)
    if place is None:
        with tempfile.TemporaryDirectory(prefix="seatrial-fit-") as aside:
            return fit(
                module, recipe, dataset,
                teacher=teacher, place=Path(aside), on_epoch=on_epoch, callbacks=callbacks, deadline=deadline,
            )  # fmt: skip
    history = History(on_epoch)
    best, last = _checkpoints(place / "checkpoints", recipe)
    with _quiet(), _threads(recipe.threads), _sound_gradients(module), torch.random.fork_rng():
        lesson = _lesson(module, recipe, dataset, teacher)
        trainer = pl.Trainer(
            max_epochs=recipe.epochs,
            precision=choose_precision(recipe.precision),
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.gradient_clip,
            callbacks=[*_as_the_recipe_wants(recipe), history, *callbacks, deadline, best, last],
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=place,
        )
        written = place / "checkpoints" / "last.ckpt"
        try:
            trainer.fit(
                Learner(_laid_out(module.train(), torch.channels_last), recipe, lesson, deadline),
                _training_batches(dataset.train, recipe),
                _batches(dataset.validation),
                ckpt_path=written if written.exists() else None,
                weights_only=True,
            )
        except SystemExit as asked_to:  # so Lightning ends at SIGINT, and at SIGTERM as if all were well
            raise KeyboardInterrupt from asked_to
    if not best.best_model_path:
        raise OutOfTime("the time for training was over before all the zeros were there that the recipe wants")
    kept = trainer.strategy.load_checkpoint(best.best_model_path, weights_only=True)
    module.load_state_dict(_of_module(kept["state_dict"]))
    module = _laid_out(module.to("cpu"), torch.contiguous_format)
    return Fitted(module=module.eval(), epochs=tuple(history.epochs), best=kept["epoch"] + 1, hurried=deadline.hurried)


def _lesson(module: nn.Module, recipe: Recipe, dataset: data.Dataset, teacher: nn.Module | None) -> Lesson | None:
    if recipe.distillation is None:
        return None
    assert teacher is not None, "a distillation, and nobody who teaches: this is a bug"
    torch.manual_seed(recipe.seed)
    example, _ = Rows(dataset.train, augmentations(recipe.augment)).__getitems__([0, 1])
    try:
        return Lesson(recipe.distillation, teacher=teacher, student=module.eval(), example=example)
    except (RuntimeError, TypeError, IndexError) as error:
        raise InvalidRecipe(
            f"the teacher {recipe.distillation.teacher} cannot be asked rows of '{dataset.name}': {error}"
        ) from error


def _of_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a learner's weights that are the module's own."""
    own = "module."
    return {name.removeprefix(own): value for name, value in weights.items() if name.startswith(own)}


def fine_tune(
    module: nn.Module,
    recipe: Recipe,
    dataset: data.Dataset,
    *,
    epochs: int,
    learning_rate: float,
    for_s: float | None = None,
    teacher: nn.Module | None = None,
) -> Fitted:
    """Train `module`, which is changed, for a few more epochs on its recipe's data, or for so long as there is time.

    It learns the answers of `teacher` too, where there is one: with the temperature and the weight of the recipe's own
    distillation, if it has one, but no features.
    """
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": learning_rate})
    usual = recipe.distillation or Distillation(teacher=GIVEN)
    lesson = usual.model_copy(update={"teacher": GIVEN, "features": {}}) if teacher else None
    changes = {"epochs": epochs, "optimizer": optimizer, "distillation": lesson, **dict.fromkeys(UNTUNED)}
    return fit(module, recipe.model_copy(update=changes), dataset, teacher=teacher, deadline=Deadline(for_s))


class Learner(pl.LightningModule):
    """What Lightning trains: the module, its loss and its optimizer. Never leaves this file."""

    def __init__(self, module: nn.Module, recipe: Recipe, lesson: Lesson | None, deadline: "Deadline") -> None:
        super().__init__()
        self.module = module
        self.projections = lesson.projections if lesson else nn.ModuleList()
        self.rounding = Rounding(recipe.quantization, module) if recipe.quantization else None
        self._recipe = recipe
        self._lesson = lesson
        self._deadline = deadline

    def training_step(self, batch: Batch, _: int) -> Tensor:
        inputs, labels = batch
        if (small := self._recipe.small_images) and self.current_epoch < small.epochs * self._recipe.epochs:
            inputs = shrink(inputs, small.scale)
        loss = self._loss(inputs, labels)
        if not loss.isfinite():
            raise InvalidRecipe(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}; "
                f"lower optimizer.learning_rate, which is {self._recipe.optimizer.learning_rate}"
            )
        self.log("training_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def _loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        smoothing = self._recipe.label_smoothing
        if self._lesson is None:
            return functional.cross_entropy(self._ask(self.module, inputs), labels, label_smoothing=smoothing)
        logits, apart = self._lesson.attend(self.module, inputs, self._ask)
        labelled = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return self._lesson.labels_weight * labelled + apart

    @property
    def _ask(self) -> Ask:
        return self.rounding.ask if self.rounding else as_it_is

    def validation_step(self, batch: Batch, _: int) -> None:
        inputs, labels = batch
        logits = self._ask(self.module, inputs)
        self.log("validation_loss", functional.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(MONITORED, (logits.argmax(dim=-1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = _optimizer(self, self._recipe.optimizer)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(self._deadline.moved_on(step, steps), steps, self._recipe.schedule),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate_factor(step: int, steps: int, schedule: Schedule) -> float:
    """What part of the highest learning rate `step`, counted from 0, of `steps` takes."""
    rising = round(schedule.warmup * steps)
    if step < rising:
        return (step + 1) / rising
    falling = (step - rising) / max(1, steps - rising)
    return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * min(1.0, falling))) / 2


class History(Callback):
    """Keeps what each epoch measured, through checkpoints too."""

    def __init__(self, on_epoch: Callable[[Epoch], None] | None) -> None:
        self.epochs: list[Epoch] = []
        self._on_epoch = on_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        metrics["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.epochs.append(Epoch(number=trainer.current_epoch + 1, metrics=metrics))
        if self._on_epoch:
            self._on_epoch(self.epochs[-1])

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": [dict(epoch.metrics) for epoch in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [Epoch(number=i, metrics=metrics) for i, metrics in enumerate(state_dict["metrics"], start=1)]


class Deadline(Callback):
    """Ends training after `for_s`, with a validation, in the middle of an epoch if need be.

    Where there will not be time for all steps the learning rate falls with the time that has passed, so that a training that is
    cut short ends as calmly as a shorter one.
    """

    def __init__(self, for_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._for_s, self._clock = for_s, clock
        self._began: float | None = None
        self.hurried = False

    def moved_on(self, step: int, steps: int) -> int:
        """The step that training should be at by now, if that is later than `step`."""
        due = min(steps, int(self._part * steps)) if self._part > FIRST_PART else 0
        self.hurried |= due > step
        return max(step, due)

    @property
    def _part(self) -> float:
        if self._for_s is None or self._began is None:
            return 0.0
        return (self._clock() - self._began) / self._for_s if self._for_s > 0 else 1.0

    def on_train_start(self, *_: Any) -> None:
        self._began = self._clock()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._part >= 1:
            self.hurried = trainer.should_stop = True


class OutOfTime(Exception):
    """There is nothing that training could end with; the message is the reason."""


class Rows(Dataset[Batch]):
    """A split as tensors, fetched a batch at a time."""

    def __init__(self, split: data.Split, augment: Sequence[Augmentation] = ()) -> None:
        self._inputs = {name: torch.from_numpy(array) for name, array in split.inputs.items()}
        self._labels = torch.from_numpy(split.labels)
        self._augment = augment

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, rows: list[int]) -> Batch:
        chosen = torch.tensor(rows)
        inputs = {name: tensor[chosen] for name, tensor in self._inputs.items()}
        for augment in self._augment:
            inputs = augment(inputs)
        return inputs, self._labels[chosen]


class Shuffled(Sampler[int]):
    """All rows, in an order that the seed and the epoch decide, as they decide all that is drawn during the epoch.

    Lightning tells the epoch. NOTE: torch is seeded here, because `on_train_epoch_start` is not called for the epoch that
    an interrupted run goes on with.
    """

    def __init__(self, rows: int, *, seed: int) -> None:
        self._rows, self._seed, self._epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        torch.manual_seed(self._seed * 100_003 + self._epoch)
        return iter(torch.randperm(self._rows).tolist())


def _training_batches(split: data.Split, recipe: Recipe) -> DataLoader[Batch]:
    return DataLoader(
        Rows(split, augmentations(recipe.augment)),
        batch_size=recipe.batch_size,
        sampler=Shuffled(len(split), seed=recipe.seed),
        drop_last=len(split) > recipe.batch_size,
        collate_fn=_as_it_is,
    )


def _batches(split: data.Split) -> DataLoader[Batch]:
    return DataLoader(Rows(split), batch_size=EVALUATION_BATCH, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    """`Rows.__getitems__` has put the batch together already."""
    return batch


def _laid_out(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    return module.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]  # torch's overloads leave it out


def _as_the_recipe_wants(recipe: Recipe) -> Iterator[Callback]:
    if recipe.pruning and recipe.pruning.makes_zeros:
        yield Sparsifier(recipe.pruning)
    if recipe.averaging:
        yield EMAWeightAveraging(decay=recipe.averaging.decay)
    if recipe.early_stopping:
        yield LightningEarlyStopping(
            MONITORED, mode="max", patience=recipe.early_stopping.patience, check_on_train_epoch_end=True
        )


def _checkpoints(folder: Path, recipe: Recipe) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Of the best epoch and of the last. NOTE: `save_last` would not do: it writes only when a new best was found."""
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = Best(folder, filename="best", monitor=MONITORED, mode="max", **options)
    best.from_epoch = epoch_of_all_zeros(recipe)
    return best, ModelCheckpoint(folder, filename="last", **options)


class Best(ModelCheckpoint):
    """Of epochs that end with all the zeros that the recipe wants; before `from_epoch`, counted from 0, none does."""

    from_epoch = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch >= self.from_epoch:
            super().on_train_epoch_end(trainer, pl_module)


def _optimizer(module: nn.Module, choice: Optimizer) -> torch.optim.Optimizer:
    weights = list(module.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": choice.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    if choice.name == "sgd":
        return torch.optim.SGD(groups, lr=choice.learning_rate, momentum=choice.momentum, nesterov=choice.momentum > 0)
    return torch.optim.AdamW(groups, lr=choice.learning_rate)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(wanted or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _sound_gradients(module: nn.Module) -> Iterator[None]:
    """Without oneDNN for networks that it cannot train.

    NOTE: on one thread, with channels last, oneDNN in torch 2.13 writes the gradient of a strided 1x1 convolution of 2 to 7
    channels beyond its memory, and the process dies of it, or does not.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    narrow = any(
        layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels < NARROW for layer in convolutions
    )
    set_flags = cast(Callable[..., tuple[bool, ...]], torch.backends.mkldnn.set_flags)
    before, *_ = set_flags(_enabled=False if narrow else None, _fp32_precision=None)
    try:
        yield
    finally:
        set_flags(_enabled=before, _fp32_precision=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice: the data is in memory already, and a run may go on in a place that was begun before."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")]  # one after the other
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The '.*' does not have many workers")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
