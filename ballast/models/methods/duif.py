"""DUIF: Geng, Zhang, Bian, Chua, Learning Image and User Features for Recommendation in Social Networks.

ICCV 2015.

  s_ui = p_u . (E c_i),
  loss = mean over triples of -log sigmoid(s_ui - s_uj) + penalties on p_u and E c_i.

An item is nothing but its features: what no user has met can be scored.

Departs from the paper: features are frozen vectors and E one linear map, as in the comparisons of later
papers (He & McAuley, AAAI 2016; Tang et al., TKDE 2019), where the paper trains a network on the pictures
and structures it by the users' network; the loss is BPR's, as in those comparisons.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ballast.models.method import DatasetInfo
from ballast.models.pairwise import ContentPairwiseMethod, Weight


class Duif(ContentPairwiseMethod):
    """Users' vectors over projected features; items have no vector of their own."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ContentPairwiseMethod.Config):
        has_bias: bool = False
        user_penalty: Weight = 0.01
        item_penalty: Weight = 0.001

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data, config.dim)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.content(items)
