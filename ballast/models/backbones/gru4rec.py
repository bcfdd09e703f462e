"""GRU4Rec: Hidasi, Karatzoglou, Baltrunas & Tikk, ICLR 2016, arXiv 1511.06939; its losses and dropout
after Hidasi & Karatzoglou, CIKM 2018, arXiv 1706.03847.

h_t = GRU(e_t, h_{t-1}), h_0 = 0; item i scores h_t . e_i, with h_t projected to D where the GRU's width
is another.

Departs from the paper and the authors' code: all positions of a user are trained at once rather than
session-parallel mini-batches that carry states over, since users are whole here; the item table is tied
(the 2018 paper's constrained embeddings); the loss is whichever is chosen, TOP1 and BPR-max are not
among them; Adam instead of Adagrad; dropout falls on the item vectors only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ballast.models.backbones import Backbone, item_vectors
from ballast.models.layers import Dropout, PaddedGRU


class Encoder(Backbone):
    """A GRU of `layers` layers over the history; `hidden` is its width, 0 for that of the items."""

    table_std: ClassVar[float] = 0.1

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        layers: int = 1
        hidden: int = 0

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        hidden = config.hidden or dim
        self.dropout = Dropout(dropout)
        self.gru = PaddedGRU(dim, hidden, config.layers)
        self.output = nn.Identity() if hidden == dim else nn.Linear(hidden, dim)

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        vectors = self.dropout(item_vectors(history, table))  # (B, L, D)
        states: Tensor = self.output(self.gru(vectors, history != 0))
        return states
