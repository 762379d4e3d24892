"""Pruned, then taught, then rounded: three versions, each from the one before, and the last one's INT8."""

from pathlib import Path

import pytest

from seatrial.registry import ModelRef
from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_export.candidate import named
from seatrial_export.export import attempt
from seatrial_export.request import Request
from seatrial_training.recipe import Recipe, load_recipe
from seatrial_training.train import train
from tests.digits import ExportedDigits

STATIC = "onnx-cpu-int8-static"


def step(start: str, *changes: str) -> Recipe:
    plain = ("distillation=null", "quantization=null", "model=small-digits", f"start={start}")
    return load_recipe("digits-cnn-int8", changes=[*plain, "optimizer.learning_rate=2e-3", "epochs=10", *changes])


@pytest.mark.slow
def test_a_pruned_and_taught_and_rounded_model_is_a_fraction_of_its_source_and_nearly_as_good(
    exported_digits: ExportedDigits, tmp_path: Path
) -> None:
    settings = Settings(home=exported_digits.copy(tmp_path / "home").home, export={"measure_s": 0.5})
    pruned = train(step("models:/digits-cnn/1", "pruning.kind=channels"), settings)
    taught = train(step(str(pruned.version), "distillation.teacher=models:/digits-cnn/1"), settings)
    rounded = train(
        step(str(taught.version), "distillation.teacher=models:/digits-cnn/1", "quantization.weight_bits=7"), settings
    )

    registry = EmbeddedRegistry(settings)
    tags = registry.resolve(ModelRef(name="small-digits", version="3")).tags
    assert tags["seatrial.start"] == "models:/small-digits/2"
    assert tags["seatrial.teacher"] == "models:/digits-cnn/1"
    before = exported_digits.report
    request = Request(ref=ModelRef(name="small-digits", version="3"), candidates=named(["onnx-cpu-fp32", STATIC]))
    rows = {row.name: row for row in attempt(request, settings).report.rows}
    [source] = [row for row in before.rows if row.name == "onnx-cpu-fp32"]
    int8 = rows[STATIC]
    assert int8.quality is not None
    assert source.quality is not None
    assert int8.size_bytes is not None
    assert source.size_bytes is not None
    assert int8.size_bytes < source.size_bytes / 4
    assert int8.quality.value > source.quality.value - 0.03
    assert int8.quality.value > rounded.trained.score.value - 0.02
