"""Softmax over the items that a batch has as targets, each counted once.

What pre-training on pooled domains uses (UniSRec: Hou et al., KDD 2022, arXiv 2206.05941; ANT: Peng et al.,
arXiv 2309.10195): the other targets of the batch are the negatives, whatever domain they are from, and an
item that several positions have as their target is one candidate, so that no target is its own negative.
The cost does not depend on the catalogue. No correction for popularity, as published.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ballast.models.layers import item_rows
from ballast.models.losses import Loss, Score, weighted_mean


class Objective(Loss):
    """Mean of log sum_{j in the batch's targets} exp(s_j) - s_target."""

    is_sampled = True

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        table: Tensor,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        items, place = targets.unique(return_inverse=True)  # (C,) candidates, (M,) the target's among them
        logits = hidden @ item_rows(items, table).T  # (M, C)
        return weighted_mean(_cross_entropy(logits, place), weights)

    def of_candidates(
        self,
        score: Score,
        targets: Tensor,
        num_items: int,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        items, place = targets.unique(return_inverse=True)
        logits = score(items.expand(len(targets), -1))  # (M, C)
        return weighted_mean(_cross_entropy(logits, place), weights)


def _cross_entropy(logits: Tensor, place: Tensor) -> Tensor:
    """(M,) of (M, C) logits, in float32 at least: under autocast these are products in bfloat16."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(wide, place, reduction="none")
