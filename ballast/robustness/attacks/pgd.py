"""Projected gradient ascent: Madry et al., ICLR 2018, arXiv 1706.06083, with Auto-PGD's step sizes.

The first restart is from zero: its first iterate is FGM's (FGSM's) perturbation. Each further one is from
the border of the ball, the first of them from the very point that the random attack takes with the same
generator. The best iterate of all is kept, so that PGD gains at least what FGM does and, with two restarts,
at least what random does. See ballast/robustness/ascent.py for the step sizes, which need no tuning.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from ballast.robustness.ascent import Found, climb
from ballast.robustness.attacks import Attack
from ballast.robustness.ball import Ball
from ballast.robustness.objective import Objective


class Adversary(Attack):
    """The best of some climbs of the gain within the ball."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        steps: Annotated[int, Field(ge=1)] = 10
        restarts: Annotated[int, Field(ge=1)] = 2

    def search(self, objective: Objective, ball: Ball, rng: torch.Generator) -> Found:
        values = objective.surface.values
        best = climb(objective, ball, torch.zeros_like(values), self.config.steps)
        for _ in range(1, self.config.restarts):
            found = climb(objective, ball, ball.random(values, rng), self.config.steps)
            best = found if found.gain > best.gain else best
        return best
