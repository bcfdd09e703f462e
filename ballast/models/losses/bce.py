"""Binary cross entropy of one positive against N uniform negatives (SASRec, ICDM 2018, eq. 6).

Negatives are drawn outside the user's history, anew for each position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ballast.data.sequences import sample_negatives
from ballast.models.losses import Loss, SampledLoss


class Objective(SampledLoss):
    """Mean of -log sigmoid(s_target) - sum_n log(1 - sigmoid(s_n))."""

    needs_exclude = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 1

    def draw(
        self, targets: Tensor, num_items: int, exclude: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        assert exclude is not None
        return sample_negatives((len(targets), self.config.negatives), num_items, exclude, rng), None

    def terms(
        self, positive: Tensor, negative: Tensor, is_target: Tensor, drawn: Tensor | None, num_items: int
    ) -> Tensor:
        return functional.softplus(-positive) + functional.softplus(negative).sum(-1)
