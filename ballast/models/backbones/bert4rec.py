"""BERT4Rec: Sun, Liu, Wu, Pei, Lin, Ou & Jiang, CIKM 2019, arXiv 1904.06690.

A bidirectional Transformer. Training is a cloze: a share of the items is replaced by [mask], and each
hidden item is predicted from both sides. To rank, [mask] is appended to the history. The state of a mask
goes through a head, GELU(h W + b), before the product with the item table.

Departs from the paper: no output bias an item, which would be a popularity term that no other backbone has.
Layer norms behind the embedding and in the head, as in the authors' code. Departs from the authors' code:
masks are drawn anew in every epoch and position by position, rather than a fixed number a sequence in ten
copies made once; the copy that hides the last item alone (one in eleven there, for what is asked at test
time) is a share `last_rate` of the sequences here; long histories are cut to their end, not to sliding
windows; a padded position never is a key, and positions count from the end.

With the mask at the end a history holds at most max_len - 1 items when it is scored.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.backbones import MASK, Backbone, item_vectors, whole_sequences
from ballast.models.layers import Dropout, TransformerLayer, attention_mask


class Encoder(Backbone):
    """Bidirectional self-attention, trained to fill in items that are hidden."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        layers: int = 2
        heads: int = 2
        ffn_ratio: int = 4
        mask_rate: float = 0.2
        last_rate: float = 0.1

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        if dim % config.heads:
            raise BallastError(f"backbone bert4rec: dim {dim} is not a multiple of heads {config.heads}")
        self.max_len, self.mask_rate, self.last_rate = max_len, config.mask_rate, config.last_rate
        self.mask = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, config.heads, config.ffn_ratio, "gelu", "post", dropout)
            for _ in range(config.layers)
        )
        self.head = nn.Linear(dim, dim)
        self.head_norm = nn.LayerNorm(dim)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        """As for every backbone, except that ids may be MASK and that a state sees both sides."""
        return self._predict(self._encode(history, table))

    def query(self, history: Tensor, table: Tensor) -> Tensor:
        asked = torch.full_like(history[:, :1], MASK)
        masked = torch.cat([history, asked], dim=1)[:, -self.max_len :]
        return self._predict(self._encode(masked, table)[:, -1])

    def training_view(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Some items of each sequence hidden, at least one; they alone are targets."""
        items = whole_sequences(batch, self.max_len)  # (B, L)
        is_real = items != 0
        place = torch.arange(items.shape[1], device=items.device)
        newest = (place * is_real).amax(1, keepdim=True)  # (B, 1)
        is_last = (place == newest) & is_real
        drawn = torch.rand(items.shape, generator=rng, device=items.device) < self.mask_rate
        is_hidden = drawn & is_real
        only_last = torch.rand(len(items), generator=rng, device=items.device) < self.last_rate
        only_last = only_last | ~is_hidden.any(1)
        is_hidden = torch.where(only_last[:, None], is_last, is_hidden)
        return batch.replaced(history=items.masked_fill(is_hidden, MASK), targets=items * is_hidden)

    def _encode(self, history: Tensor, table: Tensor) -> Tensor:
        vectors = item_vectors(history, table, self.mask)
        states = self.dropout(self.input_norm(vectors + self.positions[-history.shape[1] :]))  # (B, L, D)
        visible = attention_mask(history != 0, is_causal=False)
        for layer in self.layers:
            states = layer(states, visible)
        return states

    def _predict(self, states: Tensor) -> Tensor:
        normed: Tensor = self.head_norm(functional.gelu(self.head(states)))
        return normed
