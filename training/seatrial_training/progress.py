"""A training run on a terminal: one bar, and what the last epoch measured."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar(Callback):
    """Counts steps. Where nobody watches (a log file), prints one line for each epoch instead."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._progress.update(self._task, total=trainer.estimated_stepping_batches, completed=trainer.global_step)
        self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self._progress.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        measured = trainer.callback_metrics
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"loss {measured['training_loss']:.3f}  validation accuracy {measured['validation_accuracy']:.2%}"
        )
        self._progress.update(self._task, description=line)
        if not self._console.is_terminal:
            self._console.print(line, highlight=False)

    def on_train_end(self, *_: object) -> None:
        self._progress.stop()

    def on_exception(self, *_: object) -> None:
        self._progress.stop()
