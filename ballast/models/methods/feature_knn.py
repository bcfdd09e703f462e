"""Whitened-feature kNN: items that look, read or cost like the history. A sanity row without training.

For a modality m, x_m are whitened features of unit length, zero where missing. With a(h) the steps since
item h of the history (0 for the newest) and c(h) = decay^a(h),

  s_m(u, i) = sum_h c(h) x_m(h) . x_m(i) / sum_h c(h) [h has m]
  score(u, i) = sum_m w_m s_m(u, i) / sum_m w_m, over the modalities that both i and u's history have,

and 0 where there is none: an item without content is neither like nor unlike the history. Whitening
before cosine: see `ballast.content.whitening`; it is fitted on the whole catalogue, which uses no
interaction.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ballast.content import whitening
from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.method import DatasetInfo, Method

Share = Annotated[float, Field(ge=0, le=1)]


class FeatureKnn(Method):
    """Decayed cosine between the history and every item, averaged over modalities."""

    is_trained_by_steps = False
    vectors: Tensor  # (I, F) unit vectors of all modalities side by side, F their summed width
    present: Tensor  # (I, M) 1 where the item has the modality
    owner: Tensor  # (M, F) 1 where the column belongs to the modality

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        modalities: Annotated[list[str], Field(min_length=1)]
        decay: Share = 0.8
        max_len: Annotated[int, Field(ge=1)] = 50
        weights: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
        """Weight of a modality; those not named weigh 1."""
        shrinkage: Share = 0.01

        def __post_init__(self) -> None:
            unknown = set(self.weights) - set(self.modalities)
            if unknown:
                raise ValueError(f"weights only for modalities that are used, not {sorted(unknown)}")

    def __init__(self, config: Config, data: DatasetInfo) -> None:
        super().__init__(config, data)
        parts, present = [], []
        self.whitenings: dict[str, whitening.Whitening] = {}
        for modality in config.modalities:
            unknown = torch.zeros(data.num_items + 1, 0), torch.ones(data.num_items + 1, dtype=torch.bool)
            unit, missing = unknown  # a saved state brings its features; see _load_from_state_dict
            if modality in data.features:
                raw, missing = data.features[modality], data.missing[modality].clone()
                missing[0] = True
                self.whitenings[modality] = whitening.fit(raw, missing, config.shrinkage)
                unit = self.feature_rows(modality, raw).masked_fill(missing[:, None], 0.0)
            parts.append(unit)  # (I, F_m)
            present.append(~missing)
        widths = torch.tensor([part.shape[1] for part in parts])
        owner = functional.one_hot(torch.arange(len(parts)).repeat_interleave(widths), len(parts)).T  # (M, F)
        self.register_buffer("vectors", torch.cat(parts, dim=1))
        self.register_buffer("present", torch.stack(present, dim=1).to(torch.float32))
        self.register_buffer("owner", owner.to(torch.float32))

    @property
    def surfaces(self) -> dict[str, str]:  # type: ignore[override]
        """Each modality's columns of the vectors: the width of the features is data."""
        places = {}
        for modality, own in zip(self.config.modalities, self.owner, strict=True):
            columns = own.nonzero()[:, 0].tolist()
            if columns:
                places[modality] = f"vectors[{columns[0]}:{columns[-1] + 1}]"
        return places

    @property
    def missing_marks(self) -> dict[str, tuple[str, float]]:
        """What says that an item has a modality, and the value that says it has not."""
        return {name: (f"present[{k}:{k + 1}]", 0.0) for k, name in enumerate(self.config.modalities)}

    def feature_rows(self, modality: str, vectors: Tensor) -> Tensor:
        """(N, F) features to the (N, F) unit rows that the method makes of them; differentiable."""
        return functional.normalize(self.whitenings[modality].apply(vectors), dim=1)

    def _load_from_state_dict(self, state_dict, prefix, *rest):  # type: ignore[no-untyped-def]
        # The width of the features is data: a saved state brings its own.
        for name in ("vectors", "owner"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def fit_sequences(self, items: Tensor, offsets: Tensor) -> None:
        """Nothing to fit: the features come with the dataset. Raises BallastError if they did not."""
        empty = [name for name, own in zip(self.config.modalities, self.owner, strict=True) if not own.any()]
        if empty:
            raise BallastError(f"feature_knn needs {empty[0]} features: run the dataset's features stage")

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        history = batch.history  # (B, L)
        age = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
        recency = torch.where(history > 0, self.config.decay ** age.to(torch.float32), 0.0)  # (B, L)
        profile = _weighted_sum(self.vectors, history, recency)  # (B, F)
        mass = _weighted_sum(self.present, history, recency)  # (B, M)
        names = self.config.modalities
        weight = torch.tensor([self.config.weights.get(name, 1.0) for name in names], device=history.device)
        scale = torch.where(mass > 0, weight / mass.clamp(min=1e-30), 0.0)  # (B, M)
        total = (profile * (scale @ self.owner)) @ self.vectors.T  # (B, I)
        shared = ((mass > 0) * weight) @ self.present.T  # (B, I)
        return torch.where(shared > 0, total / shared.clamp(min=1e-30), 0.0)


def _weighted_sum(table: Tensor, history: Tensor, weight: Tensor) -> Tensor:
    """(I, C) rows at (B, L) ids, times (B, L) weights, summed over L: (B, C), without a (B, L, C) tensor."""
    return functional.embedding_bag(history, table, mode="sum", per_sample_weights=weight)
