"""Backbones: histories of item ids to hidden states, position t seeing positions <= t only."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ballast.data.sequences import Batch
from ballast.models.layers import item_rows
from ballast.strict import Strict, parse_named

# The id of an item that is hidden from the backbone; only those that hide items meet it.
MASK = -1


class Backbone(nn.Module):
    """Base of the backbones: one file each, whose class is named `Encoder`.

    Most only say what `forward` computes. One that is trained in another way than by predicting the next
    item at every position overrides `training_view`, `query` or `extra_losses`. One that
    `reads_candidates` has no states: it overrides `candidate_scores` instead of `forward`.
    """

    reads_candidates: ClassVar[bool] = False
    # Standard deviation that item vectors start with. Where no norm stands behind them, small ones reach the
    # layers as next to nothing and are not learned from for many epochs.
    table_std: ClassVar[float] = 0.02

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        """Settings of the backbone; `name` chooses its file."""

        name: str

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.config = config

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        """(B, L) int64 item ids, left-padded with 0, and (I, D) item vectors to (B, L, D) states."""
        raise NotImplementedError

    def candidate_scores(self, history: Tensor, items: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(B, L) histories and candidates, (B, C) or (C,) for all rows, to (B, C) scores.

        inputs and outputs: the (I, D) tables that the history and the candidates are read from.
        """
        raise NotImplementedError

    def training_view(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch as it is trained on: the same, unless the backbone hides items of its own choice."""
        return batch

    def query(self, history: Tensor, table: Tensor) -> Tensor:
        """(B, D) states that score the item after the history."""
        states: Tensor = self(history, table)
        return states[:, -1]

    def extra_losses(self, batch: Batch, table: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Named terms to be added to the loss, weighted as they are to count."""
        return {}


def item_vectors(history: Tensor, table: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, L) item ids to their (B, L, D) rows of the table; padding gives row 0, without a gradient.

    Where the id is MASK, the (D,) vector `mask` stands in.
    """
    if mask is None:
        return item_rows(history, table, padding=0)
    vectors = item_rows(history.clamp(min=0), table, padding=0)
    return torch.where((history == MASK)[:, :, None], mask.to(vectors.dtype), vectors)


def whole_sequences(batch: Batch, max_len: int) -> Tensor:
    """(B, L) each user's history with the last target behind it, its most recent `max_len` items."""
    if batch.targets is None:
        return batch.history[:, -max_len:]
    return torch.cat([batch.history, batch.targets[:, -1:]], dim=1)[:, -max_len:]


def known() -> list[str]:
    """Names of the backbones: the files of this folder."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def configure(settings: dict[str, Any], where: str) -> tuple[type[Backbone], Any]:
    """The class named by `settings["name"]` and its Config; raises BallastError on what it does not know."""
    return parse_named(settings, known(), _find, "backbone", where)


def build(settings: dict[str, Any], dim: int, max_len: int, dropout: float, where: str) -> Backbone:
    """The backbone that the settings describe."""
    kind, config = configure(settings, where)
    return kind(config, dim, max_len, dropout)


def _find(name: str) -> type[Backbone]:
    kind: type[Backbone] = importlib.import_module(f"{__name__}.{name}").Encoder
    return kind
