"""Softmax over the target and a sample of the catalogue, log-Q corrected (Bengio & Senecal, 2008).

`sampling: uniform` draws N items from the catalogue; a kept negative then stands for items / N items.
`sampling: batch` takes the other targets of the batch, which come as often as they are popular: their
logits lose log(N q), where q is their share of the batch. `sharing: batch` draws one set of negatives
for all positions, which makes the scores one matrix product; `position` draws anew for each. A negative
that is the position's own target is masked out.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ballast.models.layers import item_rows
from ballast.models.losses import Loss, weighted_mean


class Objective(Loss):
    """Mean of log(exp(s_target) + sum_n exp(s_n - log(N q_n))) - s_target."""

    is_sampled = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 256
        sampling: Literal["uniform", "batch"] = "uniform"
        sharing: Literal["batch", "position"] = "batch"
        is_corrected: bool = True

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        table: Tensor,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        num_items = len(table) - 1
        positive = (hidden * item_rows(targets, table)).sum(-1, keepdim=True)  # (M, 1)
        rows = 1 if self.config.sharing == "batch" else len(targets)
        shape = (rows, self.config.negatives)
        if self.config.sampling == "batch":
            place = torch.randint(len(targets), shape, generator=rng, device=hidden.device)
            drawn = targets[place]  # (1 or M, N)
            share = torch.bincount(targets, minlength=num_items + 1)[drawn] / len(targets)
        else:
            drawn = torch.randint(1, num_items + 1, shape, generator=rng, device=hidden.device)
            share = torch.full(shape, 1 / num_items, device=hidden.device)
        vectors = item_rows(drawn, table)  # (1 or M, N, D)
        negative = (vectors @ hidden[:, :, None])[:, :, 0] if rows > 1 else hidden @ vectors[0].T  # (M, N)
        if self.config.is_corrected:
            negative = negative - share.log() - math.log(self.config.negatives)
        negative = negative.masked_fill(drawn == targets[:, None], -torch.inf)
        logits = torch.cat([positive, negative], dim=1)  # (M, 1 + N)
        terms = functional.cross_entropy(logits, torch.zeros_like(targets), reduction="none")
        return weighted_mean(terms, weights)
