"""NARM: Li, Ren, Chen, Ren, Lian & Ma, Neural Attentive Session-based Recommendation, CIKM 2017,
arXiv 1711.04725.

h_j = GRU(e_j, h_{j-1}); the global encoder's state is h_t, the local encoder's is sum_{j <= t} alpha_tj h_j
with alpha_tj = v . sigmoid(A1 h_t + A2 h_j), not normalised. Item i scores
e_i . B [h_t; local_t].

Departs from the paper: both encoders read one GRU, as in the authors' code; one dropout rate for the item
vectors and for [h_t; local_t], where the authors have .25 and .5. Departs from the authors' code: there a
softmax over the history normalises alpha, which the paper's equations do not have: `attention: softmax`
restores it; a sigmoid proper instead of its piecewise linear stand-in; all positions are trained at once,
not each prefix as a row of its own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ballast.models.backbones import Backbone, item_vectors
from ballast.models.layers import Dropout, PaddedGRU


class Encoder(Backbone):
    """A GRU whose states up to now are summed by their likeness to the newest one."""

    table_std: ClassVar[float] = 0.1

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        hidden: int = 0
        attention: Literal["sum", "softmax"] = "sum"

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        hidden = config.hidden or dim
        self.dropout = Dropout(dropout)
        self.gru = PaddedGRU(dim, hidden)
        self.newest = nn.Linear(hidden, hidden, bias=False)  # A1
        self.earlier = nn.Linear(hidden, hidden, bias=False)  # A2
        self.weigh = nn.Parameter(torch.empty(hidden).normal_(std=hidden**-0.5))  # v
        self.bilinear = nn.Linear(2 * hidden, dim, bias=False)  # B

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        return self._decode(history, table, history.shape[1])

    def query(self, history: Tensor, table: Tensor) -> Tensor:
        return self._decode(history, table, 1)[:, 0]

    def _decode(self, history: Tensor, table: Tensor, last: int) -> Tensor:
        """(B, Q, D) states of the `last` Q positions."""
        is_real = history != 0
        states = self.gru(self.dropout(item_vectors(history, table)), is_real)  # (B, L, H)
        whole = states[:, -last:]  # (B, Q, H)
        weights = self._likeness(whole, states)
        seen = torch.ones(len(states[0]), len(states[0]), dtype=torch.bool, device=history.device).tril()
        visible = seen[-last:] & is_real[:, None]  # (B, Q, L)
        if self.config.attention == "softmax":
            # Not -inf: a padded position sees nothing, and its row would be NaN.
            weights = weights.masked_fill(~visible, torch.finfo(weights.dtype).min).softmax(-1)
        local = weights.masked_fill(~visible, 0.0) @ states.to(weights.dtype)  # (B, Q, H)
        decoded: Tensor = self.bilinear(self.dropout(torch.cat([whole.to(local.dtype), local], dim=2)))
        return decoded

    def _likeness(self, newest: Tensor, states: Tensor) -> Tensor:
        """(B, Q, H) newest and (B, L, H) all states to (B, Q, L) weights, without normalisation."""
        pairs = self.newest(newest)[:, :, None] + self.earlier(states)[:, None]  # (B, Q, L, H)
        return pairs.sigmoid_() @ self.weigh  # in place: this is by far the largest tensor
