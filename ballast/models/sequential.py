"""What sequence methods share: an item table, a backbone over it, and a loss on its states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models import backbones, losses
from ballast.models.layers import small_embedding
from ballast.models.method import DatasetInfo, Method
from ballast.params import TrainingParams


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

    def query(self, history: Tensor, table: Tensor) -> Tensor:
        """(B, L) item ids to the (B, D) states that score the next item."""
        state: Tensor = self.backbone.query(history, table)
        return state

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        table = self.item_table()
        view = self.backbone.training_view(batch, rng)
        loss = self.next_item_loss(view, table, table, rng)
        extra = self.backbone.extra_losses(batch, table, rng)
        return {"loss": added(loss, extra), "next_item": loss, **extra} if extra else {"loss": loss}

    def next_item_loss(
        self,
        batch: Batch,
        inputs: Tensor,
        outputs: Tensor,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of the batch's targets, each counting its sequence's weight (B,).

        inputs and outputs: the (I, D) tables that the history and the scores are read from.
        """
        assert batch.targets is not None
        row, place = torch.nonzero(batch.targets, as_tuple=True)  # (M,) each
        targets = batch.targets[row, place]
        exclude = None
        if self.loss.needs_exclude:
            exclude = torch.cat([batch.history, batch.targets], dim=1)[row]  # (M, 2 L)
        each = None if weights is None else weights[row]
        if self.backbone.reads_candidates:
            steps = torch.arange(batch.history.shape[1], device=row.device)
            seen = batch.history[row] * (steps <= place[:, None])  # (M, L)

            def score(items: Tensor) -> Tensor:
                return self.backbone.candidate_scores(seen, items, inputs, outputs)

            return self.loss.of_candidates(score, targets, len(outputs) - 1, exclude, rng, each)
        hidden = self.encode(batch.history, inputs)[row, place]  # (M, D)
        loss: Tensor = self.loss(hidden, targets, outputs, exclude, rng, each)
        return loss

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        table = self.item_table()
        if self.backbone.reads_candidates:
            every = torch.arange(len(table), device=table.device)
            with torch.autocast(table.device.type, enabled=False):  # as below
                return self.backbone.candidate_scores(batch.history, every, table, table)
        state = self.query(batch.history, table)  # (B, D)
        # Whatever the encoder's precision: bfloat16 scores of neighbours in rank would be equal.
        with torch.autocast(state.device.type, enabled=False):
            return state.float() @ table.float().T


def added(loss: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
    """() the loss and a backbone's further terms."""
    return torch.stack([loss, *extra.values()]).sum() if extra else loss


class IdMethod(SequentialMethod):
    """An item is one learned vector, tied for input, targets and scores."""

    surfaces: ClassVar[dict[str, str]] = {"items": "items.weight"}

    @dataclass(frozen=True, kw_only=True)
    class Config(SequentialMethod.Config):
        # `sparse` suits catalogues of millions under a sampled loss: only rows in play are stepped, so
        # that Adam's moments of the others stand still instead of fading.
        item_gradient: Literal["dense", "sparse"] = "dense"

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if config.item_gradient == "sparse" and not self.loss.is_sampled:
            raise BallastError(
                f"model.item_gradient: sparse has no use under loss {config.loss['name']}: it steps all items"
            )
        self.items = small_embedding(data.num_items + 1, config.dim, self.backbone.table_std)
        self.items.weight.has_sparse_gradient = config.item_gradient == "sparse"  # type: ignore[attr-defined]

    def item_table(self) -> Tensor:
        return self.items.weight

    def optimizers(self, training: TrainingParams) -> list[torch.optim.Optimizer]:
        if self.config.item_gradient == "dense":
            return super().optimizers(training)
        if training.weight_decay:
            raise BallastError("training.weight_decay: not with model.item_gradient: sparse")
        others = [weight for weight in self.parameters() if weight is not self.items.weight]
        return [
            torch.optim.SparseAdam([self.items.weight], lr=training.learning_rate),
            torch.optim.Adam(others, lr=training.learning_rate, fused=True),
        ]
