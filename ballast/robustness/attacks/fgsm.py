"""Fast gradient sign method: Goodfellow, Shlens & Szegedy, ICLR 2015, arXiv 1412.6572.

Delta = epsilon sign(g), g the gradient of the gain with respect to the surface: one step to the corner of
the linf ball that a linear model would fear most.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from ballast.robustness.ascent import Found
from ballast.robustness.attacks import Attack
from ballast.robustness.ball import Ball
from ballast.robustness.objective import Objective


class Adversary(Attack):
    """One step along the sign of the gradient."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        norm: Literal["linf"] = "linf"

    def search(self, objective: Objective, ball: Ball, rng: torch.Generator) -> Found:
        gradient = objective.at(torch.zeros_like(objective.surface.values)).gradient
        assert gradient is not None
        return Found(ball.projected(ball.steepest(gradient)), float("nan"))
