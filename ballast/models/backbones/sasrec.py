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
from torch.nn import functional

from ballast.errors import BallastError
from ballast.models.backbones import Backbone


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
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(config, dim, dropout) for _ in range(config.layers))
        self.output_norm = nn.LayerNorm(dim) if config.norm == "pre" else nn.Identity()

    def forward(self, vectors: Tensor, is_real: Tensor) -> Tensor:
        length = vectors.shape[1]
        states = self.dropout(self.input_norm(vectors + self.positions[-length:]))
        causal = torch.ones(length, length, dtype=torch.bool, device=vectors.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=vectors.device)
        # A padded position sees itself alone: a row without any key would be NaN.
        visible = (causal & is_real[:, None, :]) | itself  # (B, L, L)
        for layer in self.layers:
            states = layer(states, visible[:, None])
        return self.output_norm(states)


class _Layer(nn.Module):
    """One Transformer layer."""

    def __init__(self, config: Any, dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.is_pre = config.heads, config.norm == "pre"
        self.project = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, config.ffn_ratio * dim)
        self.narrow = nn.Linear(config.ffn_ratio * dim, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        for linear in (self.project, self.output, self.widen, self.narrow):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        if self.is_pre:
            states = states + self._attend(self.norms[0](states), visible)
            return states + self._feed(self.norms[1](states))
        states = self.norms[0](states + self._attend(states, visible))
        return self.norms[1](states + self._feed(states))

    def _attend(self, states: Tensor, visible: Tensor) -> Tensor:
        size, length, dim = states.shape
        parts = self.project(states).view(size, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (B, H, L, D / H) each
        rate = self.dropout.p if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, visible, dropout_p=rate)
        mixed = mixed.transpose(1, 2).reshape(size, length, dim)  # (B, L, D)
        return self.dropout(self.output(mixed))

    def _feed(self, states: Tensor) -> Tensor:
        return self.dropout(self.narrow(self.activation(self.widen(states))))
