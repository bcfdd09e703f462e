"""FDSA: one self-attention network over items, another over their features.

Zhang, Zhao, Liu, Sheng, Xu, Wang, Liu, Zhou, Feature-level Deeper Self-Attention Network for Sequential
Recommendation, IJCAI 2019, doi 10.24963/ijcai.2019/600. An item's modalities are weighed by attention
(equation 3), f = sum_m a_m (W_m x_m), a = softmax(w . W_m x_m); a sequence is read twice, as ids and as
such vectors, and the two last states together make the query: [h_id; h_feature] W, scored against the id
vectors (equations 8 and 9).

Departs from the paper: both networks are whichever backbone is configured; features are frozen vectors of
text, image and price, whitened, where the paper embeds category, brand and topic words; any loss.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ballast.content import whitening
from ballast.errors import BallastError
from ballast.models import backbones
from ballast.models.layers import small_linear
from ballast.models.method import DatasetInfo
from ballast.models.sequential import IdMethod


class Fdsa(IdMethod):
    """Two streams over one history, joined at its end."""

    @dataclass(frozen=True, kw_only=True)
    class Config(IdMethod.Config):
        modalities: list[str] = field(default_factory=lambda: ["text"])

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if not config.modalities:
            raise BallastError("model.modalities: name at least one")
        if self.backbone.reads_candidates:
            raise BallastError(f"model.backbone: {config.backbone['name']} has no states to join")
        self.feature_backbone = backbones.build(
            config.backbone, config.dim, config.max_len, config.dropout, "model.backbone"
        )
        self.surfaces = {"items": "items.weight"} | {  # type: ignore[misc]
            name: f"features_{name}" for name in config.modalities
        }
        self.projections = nn.ModuleDict()
        for name in config.modalities:
            whitened = whitening.unit(data.features[name], data.missing[name])
            self.register_buffer(f"features_{name}", whitened)
            self.projections[name] = small_linear(whitened.shape[1], config.dim)
        # Without a bias: all modalities would get the same, which a softmax does not see.
        self.attention = nn.Linear(config.dim, 1, bias=False) if len(config.modalities) > 1 else None
        self.merge = nn.Linear(2 * config.dim, config.dim)
        nn.init.normal_(self.merge.weight, std=0.02)
        nn.init.zeros_(self.merge.bias)

    def feature_table(self) -> Tensor:
        """(I, D) one vector an item, its modalities weighed by attention; row 0 zero."""
        made = [layer(getattr(self, f"features_{name}")) for name, layer in self.projections.items()]
        stacked = torch.stack(made, dim=1)  # (I, modalities, D)
        if self.attention is None:
            return stacked[:, 0]
        known = [(getattr(self, f"features_{name}") != 0).any(1) for name in self.projections]
        is_known = torch.stack(known, dim=1)[:, :, None]  # (I, modalities, 1)
        # What is missing has no weight; where all is, the weights do not matter: the vectors are zero.
        logits = self.attention(stacked).masked_fill(~is_known, torch.finfo(stacked.dtype).min)
        return (logits.softmax(1) * stacked).sum(1)

    def encode(self, history: Tensor, table: Tensor) -> Tensor:
        features = self.feature_backbone(history, self.feature_table())
        return self._merged(super().encode(history, table), features)

    def _merged(self, ids: Tensor, features: Tensor) -> Tensor:
        merged: Tensor = self.merge(torch.cat([ids, features.to(ids.dtype)], dim=-1))
        return merged

    def query(self, history: Tensor, table: Tensor) -> Tensor:
        of_features = self.feature_backbone.query(history, self.feature_table())
        return self._merged(super().query(history, table), of_features)
