"""Next-item prediction from item ids: any backbone under any loss.

With backbone `sasrec` and loss `bce` this is SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781, loss
of eq. 7); with `cross_entropy` the same model under the softmax over the full catalogue, which alone
explains much of what later papers report as gains.

Departs from the paper: see ballast/models/backbones/sasrec.py; item vectors are not multiplied by
sqrt(D), since the layer norm that follows removes the scale.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ballast.models.method import DatasetInfo
from ballast.models.sequential import SequentialMethod


class NextItem(SequentialMethod):
    """A sequence encoder whose last state scores every item by a dot product."""

    surfaces: ClassVar[dict[str, str]] = {"items": "items.weight"}

    def __init__(self, config: SequentialMethod.Config, data: DatasetInfo) -> None:
        super().__init__(config, data)
        self.items = nn.Embedding(data.num_items + 1, config.dim, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0

    def item_table(self) -> Tensor:
        return self.items.weight
