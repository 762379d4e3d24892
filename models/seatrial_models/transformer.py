"""A Transformer encoder that classifies text: Vaswani et al., "Attention is all you need" (2017), section 3.

The encoder's layers normalise before each sub-layer (Xiong et al., "On layer normalization in the Transformer
architecture", 2020), which trains without a long warm-up; positions are learned. A text is padded at the end with token
id 0; the mask comes from the ids, so nobody can forget to send it.

B batch · T tokens · D features · H heads · E features of a head · K classes
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seatrial.errors import InvalidRecipe
from seatrial_models.architecture import PADDING, Architecture, Rate, Size, example_text, text_classifier

UNSEEN = -1e4
"""What a padded token's attention score gets. Its weight is exactly 0 in single and half precision, as with minus
infinity, but a row of nothing but padding stays a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTransformerConfig:
    vocabulary: Size
    max_tokens: Size
    classes: Size
    width: Size = 128
    depth: Size = 2
    heads: Size = 4
    feed_forward: Size = 512
    dropout: Rate = 0.1
    pooling: Literal["mean", "cls"] = "mean"
    """What stands for the text: the mean over its tokens, or a learned token put before them."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InvalidRecipe(
                f"architecture 'text-transformer': width {self.width} cannot be shared evenly by {self.heads} heads"
            )


class TextTransformer(nn.Module):
    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.cls = nn.Parameter(torch.empty(1, 1, config.width)) if config.pooling == "cls" else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.classes)
        self._initialise()

    def forward(self, token_ids: Tensor) -> Tensor:
        present_BT = token_ids != PADDING
        x_BTD = self.tokens(token_ids) + self.positions[: token_ids.shape[1]]
        if self.cls is not None:
            x_BTD = torch.cat([self.cls.expand(token_ids.shape[0], -1, -1), x_BTD], dim=1)
            present_BT = functional.pad(present_BT, (1, 0), value=True)
        bias_B11T = bias_of(present_BT, x_BTD.dtype)
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias_B11T)
        logits_BK: Tensor = self.output(self._pool(self.norm(x_BTD), present_BT))
        return logits_BK

    def _pool(self, x_BTD: Tensor, present_BT: Tensor) -> Tensor:
        if self.cls is not None:
            return x_BTD[:, 0]
        return mean_of(x_BTD, present_BT)

    def _initialise(self) -> None:
        """Embeddings small, as GPT and BERT do: they are added to one another, and every layer normalises."""
        for embedding in (self.tokens.weight, self.positions, *([self.cls] if self.cls is not None else [])):
            nn.init.normal_(embedding, std=0.02)
        with torch.no_grad():
            self.tokens.weight[PADDING].zero_()


def bias_of(present_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores, B11T, so that padding gets no weight."""
    return torch.where(present_BT, 0.0, UNSEEN).to(dtype)[:, None, None, :]


def mean_of(x_BTD: Tensor, present_BT: Tensor) -> Tensor:
    """The mean, BD, over the tokens that are there; zeros where none is."""
    weight_BT1 = present_BT.to(x_BTD.dtype)[:, :, None]
    return (x_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1)


class EncoderLayer(nn.Module):
    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, heads=config.heads, dropout=config.dropout)
        self.norm2 = nn.LayerNorm(config.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, config.feed_forward), nn.GELU(), nn.Linear(config.feed_forward, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        attended_BTD: Tensor = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), bias_B11T))
        fed_BTD: Tensor = attended_BTD + self.dropout(self.feed_forward(self.norm2(attended_BTD)))
        return fed_BTD


class SelfAttention(nn.Module):
    """Scaled dot-product attention of several heads (sections 3.2.1 and 3.2.2)."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (self._split(f(x_BTD)) for f in (self.query, self.key, self.value))
        scores_BHTT = q_BHTE @ k_BHTE.transpose(-2, -1) / math.sqrt(q_BHTE.shape[-1]) + bias_B11T
        weights_BHTT = functional.dropout(scores_BHTT.softmax(dim=-1), self.dropout, self.training)
        mixed_BTD = (weights_BHTT @ v_BHTE).transpose(1, 2).flatten(start_dim=2)
        y_BTD: Tensor = self.output(mixed_BTD)
        return y_BTD

    def _split(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        return x_BTD.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


TEXT_TRANSFORMER = Architecture(
    name="text-transformer",
    config=TextTransformerConfig,
    build=TextTransformer,
    signature=lambda config: text_classifier(config.max_tokens, config.classes),
    example=lambda config, batch: example_text(config.vocabulary, config.max_tokens, batch),
    small=(
        TextTransformerConfig(
            vocabulary=50, max_tokens=12, classes=5, width=16, depth=2, heads=4, feed_forward=32, dropout=0.1
        ),
        TextTransformerConfig(
            vocabulary=50, max_tokens=12, classes=5, width=16, depth=1, heads=2, feed_forward=32, pooling="cls"
        ),
    ),
)
