"""What sequence methods share: an item table, a backbone over it, and a loss on its states."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.models import backbones, losses
from ballast.models.method import DatasetInfo, Method


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
        """(B, L) item ids to (B, L, D) states, each seeing what its backbone lets it see."""
        states: Tensor = self.backbone(history, table)
        return states

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        table = self.item_table()
        view = self.backbone.training_view(batch, rng)
        parts = {"next_item": self.next_item_loss(view, table, table, rng)}
        parts |= self.backbone.extra_losses(batch, table, rng)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def next_item_loss(self, batch: Batch, inputs: Tensor, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """Mean loss of the batch's targets; the (I, D) tables are those of the history and of the scores."""
        assert batch.targets is not None
        is_target = batch.targets != 0
        hidden = self.encode(batch.history, inputs)[is_target]  # (M, D)
        exclude = None
        if self.loss.needs_exclude:
            whole = torch.cat([batch.history, batch.targets], dim=1)  # (B, 2 L)
            exclude = whole[torch.nonzero(is_target)[:, 0]]  # (M, 2 L)
        loss: Tensor = self.loss(hidden, batch.targets[is_target], outputs, exclude, rng)
        return loss

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        table = self.item_table()
        state = self.backbone.query(batch.history, table)  # (B, D)
        # Whatever the encoder's precision: bfloat16 scores of neighbours in rank would be equal.
        with torch.autocast(state.device.type, enabled=False):
            return state.float() @ table.float().T
