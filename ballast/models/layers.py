"""Layers that several backbones share."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class TableRows:
    """Some rows of an (I, D) item table, in its place where items are looked up by `item_rows` alone.

    vectors: (U, D) the rows held. place: (I,) int64, where each item's row is among them. read: all ids that
    were looked up, in (*) tensors of int64.
    """

    vectors: Tensor
    place: Tensor
    read: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.place)


def item_rows(ids: Tensor, table: Tensor | TableRows, padding: int | None = None) -> Tensor:
    """ids of any shape to their rows of the (I, D) table; row `padding`, 0 if any, gets no gradient.

    A table marked `has_sparse_gradient` gets a sparse gradient: with a large catalogue a step then costs
    what its items cost, not what the catalogue costs.
    """
    if isinstance(table, TableRows):
        table.read.append(ids)
        ids, table = table.place[ids], table.vectors
    is_sparse = getattr(table, "has_sparse_gradient", False)
    return functional.embedding(ids, table, padding_idx=padding, sparse=is_sparse)


def small_embedding(rows: int, dim: int, std: float = 0.02) -> nn.Embedding:
    """A table of normal vectors (rows, dim) whose row 0, padding, is zero and not trained."""
    table = nn.Embedding(rows, dim, padding_idx=0)
    nn.init.normal_(table.weight, std=std)
    with torch.no_grad():
        table.weight[0] = 0
    return table


def small_linear(features: int, dim: int, std: float = 0.02) -> nn.Linear:
    """A linear map (features to dim) with normal weights and no bias."""
    layer = nn.Linear(features, dim, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


class Dropout(nn.Module):
    """Dropout that draws eight elements from each 64-bit random number.

    On a CPU torch draws each element anew, which took a tenth of a training step at D = 64. The rate is
    rounded to 1/256; kept elements are scaled by the rounded rate, so that the mean is exact.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.rate)
        kept = round((1 - self.rate) * 256)
        if kept == 256:  # a rate below half a step: a byte cannot say "less than 256"
            return values
        if kept == 0:
            return torch.zeros_like(values)
        words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64)
        words.random_(-(2**63), None)
        drawn = words.view(torch.uint8)[: values.numel()].view(values.shape)
        return values * (drawn < kept).to(values.dtype).mul_(256 / kept)


def attention_mask(is_real: Tensor, is_causal: bool = True) -> Tensor:
    """(B, L) real positions to the (B, 1, L, L) keys that each position sees.

    A padded position sees itself alone: a row without any key would be NaN.
    """
    length = is_real.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=is_real.device)
    seen = torch.ones(length, length, dtype=torch.bool, device=is_real.device)
    if is_causal:
        seen = seen.tril()
    return ((seen & is_real[:, None, :]) | itself)[:, None]


class TransformerLayer(nn.Module):
    """Multi-head self-attention and a feed-forward layer of `ffn_ratio` D, each with residual and norm."""

    def __init__(
        self, dim: int, heads: int, ffn_ratio: int, activation: str, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.is_pre = heads, norm == "pre"
        self.project = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, ffn_ratio * dim)
        self.narrow = nn.Linear(ffn_ratio * dim, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.activation = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.dropout = Dropout(dropout)
        for linear in (self.project, self.output, self.widen, self.narrow):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        """states: (B, L, D). visible: (B, 1, L, L) bool, the keys that each position sees."""
        if self.is_pre:
            states = states + self._attend(self.norms[0](states), visible)
            return states + self._feed(self.norms[1](states))
        states = self.norms[0](states + self._attend(states, visible))
        return self.norms[1](states + self._feed(states))

    def _attend(self, states: Tensor, visible: Tensor) -> Tensor:
        size, length, dim = states.shape
        parts = self.project(states).view(size, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (B, H, L, D / H) each
        if self.training and self.dropout.rate > 0 and states.device.type == "cpu":
            # The library's kernel with dropout is a plain one on a CPU, with the slow draws besides.
            scores = (query * (dim // self.heads) ** -0.5) @ key.transpose(2, 3)  # (B, H, L, L)
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            mixed = self.dropout(weights).to(value.dtype) @ value
        else:
            rate = self.dropout.rate if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, visible, dropout_p=rate)
        mixed = mixed.transpose(1, 2).reshape(size, length, dim)  # (B, L, D)
        return self.dropout(self.output(mixed))

    def _feed(self, states: Tensor) -> Tensor:
        return self.dropout(self.narrow(self.activation(self.widen(states))))


class PaddedGRU(nn.Module):
    """GRU over left-padded sequences that starts from a zero state at each one's first real item.

    Real items are moved to the left and states back again, so that the padding comes after them, where
    it cannot matter: running through it first would make a state depend on its amount.
    """

    def __init__(self, dim: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, hidden, layers, batch_first=True)

    def forward(self, vectors: Tensor, is_real: Tensor) -> Tensor:
        """(B, L, D) vectors and (B, L) bool to (B, L, H) states, zero where padded."""
        length = vectors.shape[1]
        padding = is_real.int().argmax(1)[:, None]  # (B, 1) places before the first real item
        place = torch.arange(length, device=vectors.device)
        aligned = _moved(vectors, (place - padding) % length)
        states = self.gru(aligned.to(next(self.gru.parameters()).dtype))[0]  # (B, L, H)
        return _moved(states, (place + padding) % length) * is_real[:, :, None]


def _moved(values: Tensor, places: Tensor) -> Tensor:
    """(B, L, X) values with step l of row b at places[b, l]; `places` permutes each row.

    Scattered, not gathered: the gradient of this is a gather, which on a GPU is deterministic.
    """
    return torch.zeros_like(values).scatter(1, places[:, :, None].expand_as(values), values)
