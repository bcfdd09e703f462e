"""BPR-MF: Rendle, Freudenthaler, Gantner, Schmidt-Thieme, BPR: Bayesian Personalized Ranking, UAI 2009.

  s_ui = p_u . q_i + b_i,
  loss = mean over triples of -log sigmoid(s_ui - s_uj) + penalties on p_u, q_i, q_j, b_i, b_j.

Departs from the paper: Adam on batches of users in place of one triple at a time (see
`ballast.models.pairwise`); items have a bias, as in the authors' library MyMediaLite; both items of a
triple share one penalty.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ballast.models.layers import small_embedding
from ballast.models.method import DatasetInfo
from ballast.models.pairwise import PairwiseMethod, Weight


class BprMf(PairwiseMethod):
    """Matrix factorisation under the BPR loss."""

    surfaces: ClassVar[dict[str, str]] = {"items": "items.weight"}

    @dataclass(frozen=True, kw_only=True)
    class Config(PairwiseMethod.Config):
        user_penalty: Weight = 0.01
        item_penalty: Weight = 0.01

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        self.items = small_embedding(data.num_items + 1, config.dim, config.init_scale)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        return self.items.weight if items is None else self.items.weight.index_select(0, items)
