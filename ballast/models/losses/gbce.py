"""Generalised binary cross entropy: Petrov & Macdonald, gSASRec, RecSys 2023, arXiv 2308.07192.

BCE with N of I negatives makes a model overconfident. gBCE raises the positive's probability to the power
beta, chosen so that the scores of a fully trained model are calibrated to a degree t: with the sampling
rate alpha = N / (I - 1), beta = alpha (t (1 - 1 / alpha) + 1 / alpha). t = 0 is plain BCE, t = 1 is fully
calibrated.

Departs from the paper: with `sharing: batch` one set of negatives serves all positions, which makes their
scores one matrix product (`position` restores the paper), and a negative that is the position's own target
counts nothing; `is_shifted` adds log(beta / N) to every score, where the pulls of the positive and of N
untrained negatives cancel (`false` restores the paper). No ranking sees a constant, but without it the
first epochs push all item vectors one way: with a patience of 15 epochs SASRec ended there on
MovieLens-100K, at the NDCG@10 of popularity. Departs from the authors' code: -log(sigmoid(s)^beta) is
computed as beta * softplus(-s), so that no transformed logit has to be computed in float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ballast.models.losses import Loss, SampledLoss, Sharing, sets


class Objective(SampledLoss):
    """Mean of -beta log sigmoid(s_target) - sum_n log(1 - sigmoid(s_n)), N negatives a position.

    s: the score and log(beta / N), or the score alone without `is_shifted`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 256
        t: float = 0.75
        sharing: Sharing = "group"
        is_shifted: bool = True

    def draw(
        self, targets: Tensor, num_items: int, exclude: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        shape = (sets(self.config.sharing, len(targets)), self.config.negatives)
        return torch.randint(1, num_items + 1, shape, generator=rng, device=targets.device), None

    def terms(
        self, positive: Tensor, negative: Tensor, is_target: Tensor, drawn: Tensor | None, num_items: int
    ) -> Tensor:
        power = self._power(num_items)
        shift = math.log(power / self.config.negatives) if self.config.is_shifted else 0.0
        terms = functional.softplus(negative + shift).masked_fill(is_target, 0.0).sum(-1)
        return terms + power * functional.softplus(-(positive + shift))

    def _power(self, num_items: int) -> float:
        rate = min(1.0, self.config.negatives / max(1, num_items - 1))
        return float(rate * (self.config.t * (1 - 1 / rate) + 1 / rate))
