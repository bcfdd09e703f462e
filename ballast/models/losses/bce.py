"""Binary cross entropy of one positive against N uniform negatives (SASRec, ICDM 2018, eq. 6).

Negatives are drawn outside the user's history, anew for each position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ballast.data.sequences import sample_negatives
from ballast.models.layers import item_rows
from ballast.models.losses import Loss, weighted_mean


class Objective(Loss):
    """Mean of -log sigmoid(s_target) - sum_n log(1 - sigmoid(s_n))."""

    needs_exclude = True
    is_sampled = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 1

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        table: Tensor,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        assert exclude is not None
        shape = (len(targets), self.config.negatives)
        drawn = sample_negatives(shape, len(table) - 1, exclude, rng)  # (M, N)
        positive = (hidden * item_rows(targets, table)).sum(-1)
        negative = torch.einsum("md,mnd->mn", hidden, item_rows(drawn, table))
        terms = functional.softplus(-positive) + functional.softplus(negative).sum(-1)
        return weighted_mean(terms, weights)
