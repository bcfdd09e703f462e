"""CL4SRec: Xie, Sun, Liu, Wu, Gao, Zhang, Ding & Cui, Contrastive Learning for Sequential Recommendation,
ICDE 2022, arXiv 2010.14395.

SASRec's Transformer with a second task. Two views of each of the B sequences are made, each by an operator
drawn at random: crop keeps floor(crop * n) items in a row of the n; mask replaces floor(mask * n) items by
[mask]; reorder shuffles floor(reorder * n) items in a row. With z the last states of the 2B views,
loss = next item + contrast * mean of -log softmax_j(z_i . z_j / temperature) at i's other view, j over all
views but i (NT-Xent); `temperature` 1 is the paper's plain dot product.

Departs from the paper: crop keeps at least one item, or a short sequence would have an empty view; the
encoder is this package's SASRec (see sasrec.py: norm after the residual, GELU). Written from the paper,
without sight of the authors' code.
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
    """Causal self-attention whose last state should not change when the sequence does a little."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        layers: int = 2
        heads: int = 2
        ffn_ratio: int = 4
        contrast: float = 0.1
        temperature: float = 1.0
        crop: float = 0.6
        mask: float = 0.3
        reorder: float = 0.6

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        if dim % config.heads:
            raise BallastError(f"backbone cl4srec: dim {dim} is not a multiple of heads {config.heads}")
        self.max_len = max_len
        self.mask = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.02))
        self.input_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, config.heads, config.ffn_ratio, "gelu", "post", dropout)
            for _ in range(config.layers)
        )

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        vectors = item_vectors(history, table, self.mask)
        states = self.dropout(self.input_norm(vectors + self.positions[-history.shape[1] :]))  # (B, L, D)
        visible = attention_mask(history != 0)
        for layer in self.layers:
            states = layer(states, visible)
        return states

    def extra_losses(self, batch: Batch, table: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        items = whole_sequences(batch, self.max_len)
        views = torch.cat([self.augmented(items, rng), self.augmented(items, rng)])  # (2 B, L)
        states = self(views, table)[:, -1]
        return {"contrast": self.config.contrast * nt_xent(states, self.config.temperature)}

    def augmented(self, items: Tensor, rng: torch.Generator) -> Tensor:
        """(B, L) sequences, each after an operator of its own."""
        config = self.config
        views = torch.stack([
            crop(items, config.crop, rng),
            mask(items, config.mask, rng),
            reorder(items, config.reorder, rng),
        ])  # fmt: skip
        chosen = torch.randint(len(views), (len(items),), generator=rng, device=items.device)
        return views[chosen, torch.arange(len(items), device=items.device)]


def nt_xent(states: Tensor, temperature: float) -> Tensor:
    """() mean over 2B states (2B, D), of which i and i + B are views of one sequence."""
    count = len(states)
    states = states.float()
    # In full precision: a dot product of normed states is of the size of D, and bfloat16 has 8 bits.
    with torch.autocast(states.device.type, enabled=False):
        likeness = states @ states.T / temperature  # (2 B, 2 B)
    itself = torch.eye(count, dtype=torch.bool, device=states.device)
    other = (torch.arange(count, device=states.device) + count // 2) % count
    return functional.cross_entropy(likeness.masked_fill(itself, -torch.inf), other)


def crop(items: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """A random run of floor(rate * n) of the n real items of each row (B, L), at least one."""
    places, count = _places(items)
    kept = _share(count, rate).clamp(min=1)
    start = _start(count, kept, rng)
    inside = (places >= start) & (places < start + kept)
    columns = torch.arange(items.shape[1], device=items.device) - (count - start - kept)
    return (items * inside).gather(1, columns.remainder(items.shape[1]))  # what wraps around is zero


def mask(items: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """MASK in place of floor(rate * n) random ones of the n real items of each row (B, L)."""
    _, count = _places(items)
    drawn = torch.rand(items.shape, generator=rng, device=items.device)
    rank = drawn.masked_fill(items == 0, 2.0).argsort(dim=1, stable=True).argsort(1)
    return items.masked_fill(rank < _share(count, rate), MASK)


def reorder(items: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """A random run of floor(rate * n) of the n real items of each row (B, L) shuffled."""
    places, count = _places(items)
    moved = _share(count, rate)
    start = _start(count, moved, rng)
    inside = (places >= start) & (places < start + moved)
    # Sorting by these keys leaves what is before the run before it, and what is after it after.
    drawn = start + moved * torch.rand(items.shape, generator=rng, device=items.device)
    order = torch.where(inside, drawn, places.to(drawn.dtype)).argsort(dim=1, stable=True)
    return items.gather(1, order)


def _places(items: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) each column's place among the row's real items, negative where padded; (B, 1) their number."""
    count = (items != 0).sum(1, keepdim=True)
    columns = torch.arange(items.shape[1], device=items.device)
    return columns - (items.shape[1] - count), count


def _share(count: Tensor, rate: float) -> Tensor:
    """floor(rate * count) as in decimal arithmetic: 0.29 * 100 is 29, not 28.999999999999996."""
    return (rate * count.double() + 1e-9).floor().long()


def _start(count: Tensor, run: Tensor, rng: torch.Generator) -> Tensor:
    """(B, 1) a uniform first place of a run of `run` among `count` items."""
    drawn = torch.rand(count.shape, generator=rng, device=count.device)
    last = count - run
    return torch.minimum((drawn * (last + 1)).long(), last)
