"""What is left of a network when weights were taken out: it is taught by what it was."""

import dataclasses
from pathlib import Path

import pytest
import torch

from seatrial.settings import Settings
from seatrial_export.prune import taught
from seatrial_training.data import load_dataset
from seatrial_training.fit import build_module, fit
from seatrial_training.recipe import Pruning, load_recipe
from seatrial_training.retrainable import Retrainable, read_retrainable, write_retrainable

pytestmark = pytest.mark.xdist_group("training")


def test_what_is_left_learns_the_answers_of_the_whole_model_and_not_its_labels_alone(tmp_path: Path) -> None:
    """All labels are the same here, and say nothing beside a teacher who has the whole weight."""
    config = "{hidden: [32], classes: 10, pixels: [1, 8, 8]}"
    changes = ["epochs=12", "averaging=null", "early_stopping=null", f"architecture.config={config}"]
    lesson = "distillation={teacher: models:/other/1, weight: 1, temperature: 2}"
    untaught, recipe = (load_recipe("digits-mlp", changes=each) for each in (changes, [*changes, lesson]))
    digits = load_dataset("digits", Settings())
    whole = fit(build_module(untaught, digits), untaught, digits).module
    folder = tmp_path / "extra_files"
    folder.mkdir()
    write_retrainable(folder, module=whole, recipe=recipe, labels=digits.labels, tokenizer=None)
    retrainable = read_retrainable(tmp_path)
    assert isinstance(retrainable, Retrainable)

    same = dataclasses.replace(digits.train, labels=digits.train.labels * 0)
    pruning = Pruning(kind="channels", sparsity=0.75)
    made = taught(retrainable, pruning, dataclasses.replace(digits, train=same), epochs=6).module
    assert made.get_submodule("hidden.0").out_features == 8
    pixels = torch.from_numpy(digits.test.inputs["pixels"])
    with torch.inference_mode():
        right = (made(pixels).argmax(dim=1).numpy() == digits.test.labels).mean()
    assert right > 0.8

    cut_short = taught(retrainable, pruning, digits, epochs=6, for_s=0)
    assert cut_short.hurried
    assert len(cut_short.epochs) == 1
    assert cut_short.module.get_submodule("hidden.0").out_features == 8
