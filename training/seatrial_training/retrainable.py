"""The files beside a registered program from which the model can be built, and trained, anew.

A program is a graph: it cannot be pruned or trained any further. What can is a module, and these files rebuild it without
unpickling anything. Whoever registers writes them; whoever compresses reads them, and reads why not where they are absent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file, save_file
from torch import nn

from seatrial.errors import InvalidRecipe
from seatrial.tensors import Signature
from seatrial_models import architecture, build
from seatrial_models.gated import add_gates, gates
from seatrial_models.narrow import load_narrow
from seatrial_training.recipe import Recipe, load_recipe

FOLDER = "extra_files"
"""Where MLflow puts them, below a model's directory."""
WEIGHTS, ARCHITECTURE, SIGNATURE = "weights.safetensors", "architecture.json", "signature.json"
RECIPE, LABELS, TOKENIZER = "recipe.yaml", "labels.json", "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrainable:
    """`weights` and `tokenizer` are files; `tokenizer` is None where the model takes no text. `gates` are as in `gated.py`."""

    architecture: str
    config: Mapping[str, Any]
    weights: Path
    recipe: Recipe
    labels: tuple[str, ...]
    tokenizer: Path | None
    gates: Mapping[str, int] = field(default_factory=dict)

    def module(self) -> nn.Module:
        """The module with its weights, in eval mode: as narrow as they are."""
        module = build(self.architecture, self.config)
        add_gates(module, self.gates)
        load_narrow(module, load_file(self.weights))
        return module.eval()

    @property
    def signature(self) -> Signature:
        chosen = architecture(self.architecture)
        return chosen.signature(chosen.configure(self.config))


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRetrainable:
    reason: str


def write_retrainable(
    folder: Path, *, module: nn.Module, recipe: Recipe, labels: tuple[str, ...], tokenizer: str | None
) -> list[Path]:
    """Write the files into `folder`, for `read_retrainable` to read; their paths."""
    network = recipe.architecture
    chosen = architecture(network.name)
    texts = {
        ARCHITECTURE: json.dumps(
            {"architecture": network.name, "config": network.config, "gates": gates(module)}, indent=2
        ),
        SIGNATURE: msgspec.json.encode(chosen.signature(chosen.configure(network.config))).decode(),
        RECIPE: recipe.as_yaml(),
        LABELS: json.dumps(labels, indent=2),
    }
    if tokenizer is not None:
        texts[TOKENIZER] = tokenizer
    for name, text in texts.items():
        (folder / name).write_text(text)
    save_file(module.state_dict(), folder / WEIGHTS)
    return [folder / WEIGHTS, *(folder / name for name in texts)]


def read_retrainable(model: Path) -> Retrainable | NotRetrainable:
    """Read what lies in `model`, the directory of a model as MLflow downloads it."""
    folder = model / FOLDER
    for name in (ARCHITECTURE, WEIGHTS, RECIPE, LABELS):
        if not (folder / name).is_file():
            return NotRetrainable(reason=f"the model has no {FOLDER}/{name}: it was not trained by `seatrial train`")
    described = json.loads((folder / ARCHITECTURE).read_text())
    try:
        architecture(described["architecture"]).configure(described["config"])
        recipe = load_recipe(str(folder / RECIPE))
    except InvalidRecipe as error:
        return NotRetrainable(reason=f"this Seatrial cannot build the model: {error}")
    return Retrainable(
        architecture=described["architecture"],
        config=described["config"],
        weights=folder / WEIGHTS,
        recipe=recipe,
        labels=tuple(json.loads((folder / LABELS).read_text())),
        tokenizer=folder / TOKENIZER if (folder / TOKENIZER).is_file() else None,
        gates=described.get("gates", {}),
    )
