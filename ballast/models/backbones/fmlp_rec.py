"""FMLP-Rec: Zhou, Yu, Zhao & Wen, Filter-enhanced MLP is All You Need for Sequential Recommendation,
WWW 2022, arXiv 2202.13556.

Each layer filters every channel along time, then mixes channels: x <- LN(x + dropout(filter(x))),
x <- LN(x + dropout(FFN(x))). Here filter(x)_t = sum_{s <= t} k_{t-s} * x_s, k (max_len, D) learnable.

Departs from the paper and the authors' code in the filter. The published one multiplies the Fourier
transform by a learnable complex vector, which is a circular convolution over the whole padded sequence:
every position sees the future, and padding counts as items. The authors therefore train on the last
position of each prefix. Here all positions are trained at once, so the filter is the causal, linear
convolution with the same number of taps; at the last position one such filter can express whatever a
circular one can. Padded positions count as zero, and positions count from the end. The feed-forward layer
uses GELU, as this package's Transformers do.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.models.backbones import Backbone, item_vectors
from ballast.models.layers import Dropout


class Encoder(Backbone):
    """Learnable causal filters over the history instead of attention."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        layers: int = 2

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        self.positions = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(FilterLayer(dim, max_len, dropout) for _ in range(config.layers))

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        states = item_vectors(history, table) + self.positions[-history.shape[1] :]  # (B, L, D)
        states = self.dropout(self.input_norm(states))
        is_real = (history != 0)[:, :, None]
        for layer in self.layers:
            states = layer(states, is_real)
        return states


class FilterLayer(nn.Module):
    """One learnable filter a channel, and a feed-forward layer of 4 D, each with residual and norm."""

    def __init__(self, dim: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.02))  # row n: weight of lag n
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.dropout = Dropout(dropout)
        for linear in (self.widen, self.narrow):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor, is_real: Tensor) -> Tensor:
        """states: (B, L, D). is_real: (B, L, 1) bool."""
        states = self.norms[0](states + self.dropout(self.filter(states * is_real)))
        wide = functional.gelu(self.widen(states))
        mixed: Tensor = self.norms[1](states + self.dropout(self.narrow(wide)))
        return mixed

    def filter(self, states: Tensor) -> Tensor:
        """(B, L, D) states, each channel convolved with its kernel.

        A triangular matrix a channel: unlike a Fourier transform it leaves exact zeros before their time.
        """
        place = torch.arange(states.shape[1], device=states.device)
        lag = place[:, None] - place  # (L, L) of position t and source s
        taps = functional.embedding(lag.clamp(min=0), self.kernel) * (lag >= 0)[:, :, None]  # (L, L, D)
        return torch.einsum("tsd,bsd->btd", taps, states)
