"""Fast gradient method: Miyato, Dai & Goodfellow, ICLR 2017, arXiv 1605.07725, eq. 5.

Delta = epsilon g / ||g||_2, g the gradient of the gain with respect to the surface; of each row by itself
(`scope: row`) or of the whole table (`scope: table`, the paper's, where a sequence of embeddings is one).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ballast.robustness.ascent import Found
from ballast.robustness.attacks import Attack
from ballast.robustness.ball import Ball
from ballast.robustness.objective import Objective


class Adversary(Attack):
    """One step along the gradient, scaled to the budget."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        norm: Literal["l2"] = "l2"

    def search(self, objective: Objective, ball: Ball, rng: torch.Generator) -> Found:
        gradient = objective.at(torch.zeros_like(objective.surface.values)).gradient
        assert gradient is not None
        return Found(ball.projected(ball.steepest(gradient)), float("nan"))
