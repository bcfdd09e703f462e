"""The skeptic's row: SASRec on an id vector plus one linear projection of whitened frozen features.

No paper of its own: it is what a practitioner tries before any multimodal method, so every multimodal
gain has to be one over this. Backbone after Kang & McAuley (ICDM 2018); whitening of frozen features
as in WhitenRec (arXiv 2402.17535). Each modality is projected to D and added; an item without the
modality adds nothing. With `has_ids: false` items are known by their content alone.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ballast.content import whitening
from ballast.errors import BallastError
from ballast.models.layers import small_embedding, small_linear
from ballast.models.method import DatasetInfo
from ballast.models.sequential import SequentialMethod


class SasrecFeatures(SequentialMethod):
    """Item vector e_i = id_i + sum over modalities of W_m x_im; trained from scratch or adapted."""

    # A pre-trained sequence encoder fits any catalogue; ids and projections are learned anew.
    transferable: ClassVar[tuple[str, ...]] = ("backbone.",)

    @dataclass(frozen=True, kw_only=True)
    class Config(SequentialMethod.Config):
        modalities: list[str] = field(default_factory=lambda: ["text"])
        has_ids: bool = True

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if not (config.modalities or config.has_ids):
            raise BallastError("model.modalities: name at least one, or set has_ids: true")
        self.items = small_embedding(data.num_items + 1, config.dim) if config.has_ids else None
        # Which surfaces there are is the config's choice.
        ids = {} if self.items is None else {"items": "items.weight"}
        self.surfaces = ids | {name: f"features_{name}" for name in config.modalities}  # type: ignore[misc]
        self.projections = nn.ModuleDict()
        for modality in config.modalities:
            whitened = whitening.unit(data.features[modality], data.missing[modality])
            self.register_buffer(f"features_{modality}", whitened)
            self.projections[modality] = small_linear(whitened.shape[1], config.dim)

    def item_table(self) -> Tensor:
        parts = [] if self.items is None else [self.items.weight]
        for modality, projection in self.projections.items():
            parts.append(projection(getattr(self, f"features_{modality}")))  # (I, D)
        return torch.stack(parts).sum(0)
