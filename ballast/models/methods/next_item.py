"""Next-item prediction from item ids: any backbone under any loss.

With backbone `sasrec` and loss `bce` this is SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781, loss
of eq. 7); with `cross_entropy` the same model under the softmax over the full catalogue, which alone
explains much of what later papers report as gains.

Departs from the paper: see ballast/models/backbones/sasrec.py; item vectors are not multiplied by
sqrt(D), since the layer norm that follows removes the scale.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ballast.errors import BallastError
from ballast.models.method import DatasetInfo
from ballast.models.sequential import SequentialMethod
from ballast.params import TrainingParams


class NextItem(SequentialMethod):
    """A sequence encoder whose last state scores every item by a dot product."""

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
        self.items = nn.Embedding(data.num_items + 1, config.dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0
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
