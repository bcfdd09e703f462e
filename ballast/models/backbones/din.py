"""DIN: Zhou, Zhu, Song, Fan, Zhu, Ma, Yan, Jin, Li & Gai, Deep Interest Network for Click-Through Rate
Prediction, KDD 2018, arXiv 1706.06978.

With history items h and a candidate c, r(c) = sum_h a(h, c) e_h, where
a(h, c) = v . act(W [e_h; e_c; e_h * e_c]) is not normalised, and score(c) = u . act(U [r; e_c; r * e_c]).
Each candidate has a history vector of its own: there is no state that all share, no inner product to rank by.

Departs from the paper: next-item prediction from ids alone, without user profile and context; e_h - e_c is
left out of the attention's input, since the linear layer makes it from e_h and e_c; PReLU for Dice, whose
statistics over the batch would let a user's score depend on the others'; one hidden layer of each kind;
r * e_c is added to the last layer's input.

The weight a(h, c) depends on the pair alone, so that where many users are scored on the same candidates it is
computed once for each different item of their histories, in blocks of candidates.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ballast.models.backbones import Backbone
from ballast.models.layers import Dropout, item_rows

# Numbers that a block of candidates holds at once: about 256 MB of float32.
HELD = 1 << 26


class Encoder(Backbone):
    """Attention from a candidate over the history, and a small network on the two."""

    reads_candidates = True
    table_std: ClassVar[float] = 0.3

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        attention: int = 36
        hidden: int = 64

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        self.attend = _PairLayer(dim, config.attention)
        self.judge = _PairLayer(dim, config.hidden)
        self.dropout = Dropout(dropout)

    def candidate_scores(self, history: Tensor, items: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        if items.dim() == 1:
            return self._shared(history, items, inputs, outputs)
        past = self.dropout(item_rows(history, inputs, padding=0))  # (B, L, D)
        goal = item_rows(items, outputs)  # (B, C, D)
        weight = self.attend(past[:, None], goal[:, :, None])  # (B, C, L)
        weight = weight * (history != 0)[:, None]
        return self.judge(self.dropout(weight @ past), goal)

    def _shared(self, history: Tensor, items: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(B, L) histories, (C,) candidates: weights of pairs of different items, then of all users."""
        known, place = torch.unique(history, return_inverse=True)  # (K,), (B, L)
        first = self.dropout(item_rows(known, inputs, padding=0))  # (K, D)
        past = first[place]  # (B, L, D)
        width = first.shape[1] + max(self.config.attention, self.config.hidden)
        together = max(1, HELD // (max(len(known), len(history)) * width + place.numel()))
        parts = []
        for block in items.split(together):
            goal = item_rows(block, outputs)  # (C, D)
            weight = self.attend(first[:, None], goal[None]) * (known != 0)[:, None]  # (K, C)
            pooled = torch.einsum("blc,bld->bcd", weight[place], past)
            parts.append(self.judge(self.dropout(pooled), goal[None]))  # (B, C)
        return torch.cat(parts, dim=1)


class _PairLayer(nn.Module):
    """v . act(W [x; y; x * y] + b) for pairs of vectors; x and y are projected before they are paired."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.left = nn.Linear(dim, hidden)
        self.right = nn.Linear(dim, hidden, bias=False)
        self.both = nn.Linear(dim, hidden, bias=False)
        self.activation = nn.PReLU()
        self.weigh = nn.Linear(hidden, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(..., D) and (..., D) that broadcast, to (...) numbers."""
        inner = self.left(left) + self.right(right) + self.both(left * right)
        found: Tensor = self.weigh(self.activation(inner))[..., 0]
        return found
