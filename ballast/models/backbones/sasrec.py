"""SASRec's Transformer: Kang & McAuley, ICDM 2018, arXiv 1808.09781.

Departs from the paper: layer norm after the residual sum and GELU with a wider feed-forward layer, as
in BERT and most later re-implementations, because it trains faster here; `norm: pre`, `activation:
relu`, `ffn_ratio: 1` restore the paper. Departs from the authors' code: a padded position never is a
key, and positions count from the end, so that the amount of padding cannot change a score.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ballast.errors import BallastError
from ballast.models.backbones import Backbone, item_vectors
from ballast.models.layers import Dropout, TransformerLayer, attention_mask


class Encoder(Backbone):
    """Causal self-attention over the history, learned positions counted from its end."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        layers: int = 2
        heads: int = 2
        ffn_ratio: int = 4
        activation: Literal["gelu", "relu"] = "gelu"
        norm: Literal["post", "pre"] = "post"

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        if dim % config.heads:
            raise BallastError(f"backbone sasrec: dim {dim} is not a multiple of heads {config.heads}")
        self.positions = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, config.heads, config.ffn_ratio, config.activation, config.norm, dropout)
            for _ in range(config.layers)
        )
        self.output_norm = nn.LayerNorm(dim) if config.norm == "pre" else nn.Identity()

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        states = item_vectors(history, table) + self.positions[-history.shape[1] :]  # (B, L, D)
        states = self.dropout(self.input_norm(states))
        visible = attention_mask(history != 0)
        for layer in self.layers:
            states = layer(states, visible)
        normed: Tensor = self.output_norm(states)
        return normed
