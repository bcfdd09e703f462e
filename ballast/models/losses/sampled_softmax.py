"""Softmax over the target and a sample of the catalogue, log-Q corrected (Bengio & Senecal, 2008).

`sampling: uniform` draws N items from the catalogue; a kept negative then stands for items / N items.
`sampling: batch` takes the other targets of the batch, which come as often as they are popular: their
logits lose log(N q), where q is their share of the batch. `sharing: group` draws a set of negatives for
eight positions in a row, `position` for each, `batch` one for all, which makes the scores one matrix
product. A negative that is the position's own target is masked out.

One set for a whole batch reaches few items a step, each with the weight of many, which Adam's step sizes
do not make up for: with 256 of them SASRec has a validation NDCG@10 of .0914 on MovieLens-100K and .0590
on Amazon Beauty, with sets for eight positions .1065 and .0652 (seed 0).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ballast.models.losses import Loss, SampledLoss, Sharing, sets


class Objective(SampledLoss):
    """Mean of log(exp(s_target) + sum_n exp(s_n - log(N q_n))) - s_target."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 256
        sampling: Literal["uniform", "batch"] = "uniform"
        sharing: Sharing = "group"
        is_corrected: bool = True

    def draw(
        self, targets: Tensor, num_items: int, exclude: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """The negatives, and the share q of each in what they are drawn from."""
        shape = (sets(self.config.sharing, len(targets)), self.config.negatives)
        if self.config.sampling == "batch":
            items = targets[torch.randint(len(targets), shape, generator=rng, device=targets.device)]
            return items, torch.bincount(targets, minlength=num_items + 1)[items] / len(targets)
        items = torch.randint(1, num_items + 1, shape, generator=rng, device=targets.device)
        return items, torch.full((1, 1), 1 / num_items, device=targets.device)

    def terms(
        self, positive: Tensor, negative: Tensor, is_target: Tensor, drawn: Tensor | None, num_items: int
    ) -> Tensor:
        assert drawn is not None
        if self.config.is_corrected:
            negative = negative - drawn.log() - math.log(self.config.negatives)
        negative = negative.masked_fill(is_target, -torch.inf)
        logits = torch.cat([positive[:, None], negative], dim=1)  # (M, 1 + N)
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return functional.cross_entropy(logits, first, reduction="none")
