"""VBPR: He & McAuley, VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback, AAAI 2016.

  s_ui = p_u . q_i + theta_u . (E c_i) + b_i + beta . c_i,
  loss = mean over triples of -log sigmoid(s_ui - s_uj)
         + penalties on p_u, theta_u, q_i, q_j, b_i, b_j, E, beta.

The global and the user's bias of the paper's score cancel in every difference and every ranking, and are
left out. Several modalities: E c_i and beta . c_i are sums over them.

Departs from the paper: Adam on batches of users in place of one triple at a time (see
`ballast.models.pairwise`); features are divided by their largest absolute value; E and beta are penalised
once a batch, as in the paper, whatever its size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ballast.models.layers import small_embedding
from ballast.models.method import DatasetInfo
from ballast.models.pairwise import ContentPairwiseMethod, Count, Pairs, Weight


class Vbpr(ContentPairwiseMethod):
    """Matrix factorisation beside a factorisation of features with users of its own."""

    surfaces: ClassVar[dict[str, str]] = {"items": "items.weight"}

    @dataclass(frozen=True, kw_only=True)
    class Config(ContentPairwiseMethod.Config):
        content_dim: Count = 64
        user_penalty: Weight = 0.01
        item_penalty: Weight = 0.01

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data, config.content_dim)
        self.items = small_embedding(data.num_items + 1, config.dim, config.init_scale)
        self.content_users = small_embedding(data.num_users + 1, config.content_dim, config.init_scale)
        self.content_bias = nn.ParameterDict(
            {
                modality: nn.Parameter(torch.zeros(projection.shape[1]))
                for modality, projection in self.projections.items()
            }
        )

    def user_vectors(self, user_id: Tensor) -> Tensor:
        return torch.cat([self.users(user_id), self.content_users(user_id)], dim=1)  # (B, D)

    def item_table(self, items: Tensor | None = None) -> Tensor:
        own = self.items.weight if items is None else self.items.weight.index_select(0, items)
        return torch.cat([own, self.content(items)], dim=1)  # (R, D)

    def item_bias(self, items: Tensor | None = None) -> Tensor | None:
        own = super().item_bias(items)
        parts = [] if own is None else [own]
        for modality, weight in self.content_bias.items():
            features = getattr(self, f"features_{modality}")
            parts.append((features if items is None else features.index_select(0, items)) @ weight)
        return torch.stack(parts).sum(0)

    def penalty(self, user: Tensor, items: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        # Of an item q_i and b_i are its own; E and beta are penalised by themselves.
        own = super().item_bias(pairs.items)
        whole = super().penalty(user, items[:, : self.config.dim], own, pairs)
        if self.config.projection_penalty > 0:
            for weight in self.content_bias.values():
                whole = whole + self.config.projection_penalty * weight.square().sum()
        return whole
