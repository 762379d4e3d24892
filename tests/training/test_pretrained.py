"""Published weights come to where they belong, or it is said which does not fit."""

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from seatrial.errors import DataMissing, InvalidRecipe
from seatrial_models import build
from seatrial_training import pretrained
from seatrial_training.pretrained import PRETRAINED, begin_from

NAME = "all-minilm-l6-v2"
TINY = {"max_tokens": 12, "classes": 5, "vocabulary": 50, "positions": 16, "width": 16, "depth": 2, "heads": 4}
THEIRS = {
    r"^tokens\.weight": "embeddings.word_embeddings.weight",
    r"^positions": "embeddings.position_embeddings.weight",
    r"^segments": "embeddings.token_type_embeddings.weight",
    r"^norm\.": "embeddings.LayerNorm.",
    r"^layers\.(\d)\.attention\.(query|key|value)": r"encoder.layer.\1.attention.self.\2",
    r"^layers\.(\d)\.attention\.output": r"encoder.layer.\1.attention.output.dense",
    r"^layers\.(\d)\.norm1": r"encoder.layer.\1.attention.output.LayerNorm",
    r"^layers\.(\d)\.feed_forward\.0": r"encoder.layer.\1.intermediate.dense",
    r"^layers\.(\d)\.feed_forward\.2": r"encoder.layer.\1.output.dense",
    r"^layers\.(\d)\.norm2": r"encoder.layer.\1.output.LayerNorm",
}


def theirs(ours: str) -> str:
    [name] = [re.sub(pattern, name, ours) for pattern, name in THEIRS.items() if re.search(pattern, ours)]
    return name


@pytest.fixture
def published() -> nn.Module:
    torch.manual_seed(1)
    return build("bert", TINY)


@pytest.fixture
def folder(published: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network's weights in the place of the real ones, under the names that those have; none for its last layer."""
    weights = {theirs(name): weight for name, weight in encoder_of(published).items()}
    content = save({**weights, "embeddings.position_ids": torch.arange(16), "pooler.dense.bias": torch.ones(16)})
    known = PRETRAINED[NAME]
    file = replace(known.file, sha256=sha256(content).hexdigest())
    monkeypatch.setattr(pretrained, "PRETRAINED", {NAME: replace(known, file=file)})
    (tmp_path / file.name).write_bytes(content)
    return tmp_path


def encoder_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in module.state_dict().items() if not name.startswith("output.")}


def test_all_but_the_last_layer_begins_as_published(published: nn.Module, folder: Path) -> None:
    torch.manual_seed(2)
    module = build("bert", TINY)
    last = module.get_parameter("output.weight").clone()
    begin_from(NAME, module, folder)
    for name, weight in encoder_of(published).items():
        assert torch.equal(module.state_dict()[name], weight), name
    assert torch.equal(module.get_parameter("output.weight"), last)


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("bert", TINY | {"width": 32}, r" is \[.*16\] there, and the architecture has \[.*32\]"),
        ("bert", TINY | {"depth": 1}, r"'layers\.1\.\S+' is \[.+\] there, and the architecture has none"),
        (
            "lenet5",
            {"pixels": [1, 8, 8], "classes": 10},
            r"there, and the architecture has none; compare architecture\.config",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(folder: Path, architecture: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRecipe, match=said):
        begin_from(NAME, build(architecture, config), folder)


def test_unknown_ones_have_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="did you mean 'all-minilm-l6-v2'"):
        begin_from("all-minilm-l6", build("bert", TINY), tmp_path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / PRETRAINED[NAME].file.name).write_bytes(b"something else")
    with pytest.raises(DataMissing, match="SHA-256"):
        begin_from(NAME, build("bert", TINY), tmp_path)
