"""Random directions of the full budget: what noise of that size does, and the least that an attack must beat.

With `tries` above one it is a black-box search: the best of so many draws, without any gradient.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from ballast.robustness.ascent import Found
from ballast.robustness.attacks import Attack
from ballast.robustness.ball import Ball
from ballast.robustness.objective import Objective


class Adversary(Attack):
    """A uniform direction (l2) or a uniform sign of each entry (linf), on the border of the ball."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        tries: Annotated[int, Field(ge=1)] = 1

    def search(self, objective: Objective, ball: Ball, rng: torch.Generator) -> Found:
        drawn = [ball.random(objective.surface.values, rng) for _ in range(self.config.tries)]
        if len(drawn) == 1:
            return Found(drawn[0], float("nan"))
        gains = [objective.at(delta, with_gradient=False).gain for delta in drawn]
        best = max(range(len(drawn)), key=gains.__getitem__)
        return Found(drawn[best], gains[best])
