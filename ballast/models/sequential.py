"""What sequence methods share: an item table, a backbone over it, and a loss on its states."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ballast.models import backbones, losses
from ballast.models.method import Batch, DatasetInfo, Method


class SequentialMethod(Method):
    """Any backbone under any loss; the item table is tied for input, targets and scores.

    A subclass says what the table is. All positions are trained at once, never by prefixes.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        backbone: dict[str, Any] = field(default_factory=lambda: {"name": "sasrec"})
        loss: dict[str, Any] = field(default_factory=lambda: {"name": "cross_entropy"})
        dim: int = 64
        max_len: int = 50
        dropout: float = 0.5

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        self.backbone = backbones.build(
            config.backbone, config.dim, config.max_len, config.dropout, "model.backbone"
        )
        self.loss = losses.build(config.loss, "model.loss")

    def item_table(self) -> Tensor:
        """(I, D) vectors of all items, row 0 zero."""
        raise NotImplementedError

    def encode(self, history: Tensor, table: Tensor) -> Tensor:
        """(B, L) item ids to (B, L, D) states, each seeing its past alone."""
        vectors = functional.embedding(history, table, padding_idx=0)
        states: Tensor = self.backbone(vectors, history != 0)
        return states

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        assert batch.targets is not None
        table = self.item_table()
        is_target = batch.targets != 0
        hidden = self.encode(batch.history, table)[is_target]  # (M, D)
        exclude = None
        if self.loss.needs_exclude:
            whole = torch.cat([batch.history, batch.targets[:, -1:]], dim=1)  # (B, L + 1)
            exclude = whole[torch.nonzero(is_target)[:, 0]]  # (M, L + 1)
        return {"loss": self.loss(hidden, batch.targets[is_target], table, exclude, rng)}

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        table = self.item_table()
        return self.encode(batch.history, table)[:, -1] @ table.T
