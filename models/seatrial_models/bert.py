"""A BERT encoder that classifies text: Devlin et al., "BERT: pre-training of deep bidirectional transformers" (2018).

Each sub-layer is followed by the normalisation, as in Vaswani et al. (2017); what stands for a text is the mean over its
tokens, as in Reimers and Gurevych, "Sentence-BERT" (2019). MiniLM (Wang et al., 2020) is this network with fewer and
narrower layers. Names of dimensions as in `transformer`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seatrial.errors import InvalidRecipe
from seatrial_models.architecture import PADDING, Architecture, Rate, Size, example_text, text_classifier
from seatrial_models.transformer import SelfAttention, bias_of, mean_of

SEGMENTS = 2
"""BERT can tell two texts in one row apart. Ours are one text, all of it segment 0."""
EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    max_tokens: Size
    """With those that begin and end a text; the signature's longest."""
    classes: Size
    vocabulary: Size = 30522
    positions: Size = 512
    width: Size = 384
    depth: Size = 6
    heads: Size = 12
    feed_forward: Size = 1536
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InvalidRecipe(
                f"architecture 'bert': width {self.width} cannot be shared evenly by {self.heads} heads"
            )
        if self.max_tokens > self.positions:
            raise InvalidRecipe(
                f"architecture 'bert': max_tokens {self.max_tokens} is more than the {self.positions} positions"
            )


class Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.empty(config.positions, config.width))
        self.segments = nn.Parameter(torch.empty(SEGMENTS, config.width))
        self.norm = nn.LayerNorm(config.width, eps=EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.depth))
        self.output = nn.Linear(config.width, config.classes)
        self.apply(_initialise)
        for embedding in (self.positions, self.segments):
            nn.init.normal_(embedding, std=0.02)

    def forward(self, token_ids: Tensor) -> Tensor:
        present_BT = token_ids != PADDING
        x_BTD = self.tokens(token_ids) + self.positions[: token_ids.shape[1]] + self.segments[0]
        x_BTD = self.dropout(self.norm(x_BTD))
        bias_B11T = bias_of(present_BT, x_BTD.dtype)
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias_B11T)
        logits_BK: Tensor = self.output(self.dropout(mean_of(x_BTD, present_BT)))
        return logits_BK


class BertLayer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, heads=config.heads, dropout=config.dropout)
        self.norm1 = nn.LayerNorm(config.width, eps=EPSILON)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, config.feed_forward), nn.GELU(), nn.Linear(config.feed_forward, config.width)
        )
        self.norm2 = nn.LayerNorm(config.width, eps=EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        attended_BTD: Tensor = self.norm1(x_BTD + self.dropout(self.attention(x_BTD, bias_B11T)))
        fed_BTD: Tensor = self.norm2(attended_BTD + self.dropout(self.feed_forward(attended_BTD)))
        return fed_BTD


def _initialise(layer: nn.Module) -> None:
    """As BERT does. What was drawn for padding is zero again."""
    if isinstance(layer, nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, std=0.02)
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)
    if isinstance(layer, nn.Embedding):
        with torch.no_grad():
            layer.weight[PADDING].zero_()


BERT = Architecture(
    name="bert",
    config=BertConfig,
    build=Bert,
    signature=lambda config: text_classifier(config.max_tokens, config.classes),
    example=lambda config, batch: example_text(config.vocabulary, config.max_tokens, batch),
    small=(
        BertConfig(max_tokens=12, classes=5, vocabulary=50, positions=16, width=16, depth=2, heads=4, feed_forward=32),
    ),
)
