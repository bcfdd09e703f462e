"""Budgets of attacks: the set of perturbations of one size, in units that hold for every method.

With b the budget, m the mean Euclidean norm of a surface's real rows, F its width and n the rows that may
move, a perturbation D is within the ball where

  l2, row:    ||D_i||_2 <= b m         for each row i
  l2, table:  ||D||_F <= b m sqrt(n)   all rows together, so that some may move more at others' cost
  linf, row:  |D_ij| <= b m / sqrt(F)  for each entry

At one b each row of the linf ball is within the l2 ball of rows, and that within the ball of the table.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ballast.perturbation import Norm as Scope
from ballast.perturbation import direction, projected, random_direction, sizes
from ballast.robustness.surface import Surface

Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class Ball:
    """All perturbations (I, F) of at most `budget`, in `norm` and `scope`, on the rows in `is_movable`.

    radius: the bound, in the surface's own numbers. is_movable: (I, 1) bool.
    """

    budget: float
    radius: float
    norm: Norm
    scope: Scope
    is_movable: Tensor

    @classmethod
    def around(
        cls, surface: Surface, budget: float, norm: Norm, scope: Scope, rows: Tensor | None = None
    ) -> "Ball":
        """The ball on a surface; of its real rows, those in `rows` (I,) bool alone may move, if given."""
        is_movable = surface.is_real if rows is None else surface.is_real & rows
        radius = budget * surface.unit
        if norm == "linf":
            radius /= math.sqrt(surface.values.shape[1])
        elif scope == "table":
            radius *= math.sqrt(max(1, int(is_movable.sum())))
        return cls(budget, radius, norm, scope, is_movable[:, None])

    def steepest(self, gradient: Tensor) -> Tensor:
        """(I, F) what the ball holds that goes furthest along the gradient; zero where there is none."""
        gradient = gradient.where(self.is_movable & gradient.isfinite(), 0.0)
        if self.norm == "linf":
            return self.radius * gradient.sign()
        # Gradients of a mean over users are small: scaled, so that no row of them counts as none.
        scale = gradient.abs().amax().clamp(min=torch.finfo(gradient.dtype).tiny)
        return self.radius * direction(gradient / scale, self.scope)

    def projected(self, delta: Tensor) -> Tensor:
        """(I, F) the nearest perturbation within the ball."""
        delta = delta.where(self.is_movable, 0.0)
        if self.norm == "linf":
            return delta.clamp(-self.radius, self.radius)
        return projected(delta, self.radius, self.scope)

    def random(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """(I, F) a random perturbation as large as the ball allows: a direction, or a sign an entry.

        `rng` is on the CPU whatever the device of `like`, so that every device sees the same draws.
        """
        drawn = random_direction(torch.zeros(like.shape, dtype=like.dtype), self.scope, rng).to(like.device)
        return self.steepest(drawn)

    def size(self, delta: Tensor) -> float:
        """The budget that `delta` takes, its largest part compared with what one unit of budget allows."""
        if self.radius == 0:
            return 0.0 if not bool(delta.any()) else math.inf
        largest = delta.abs().amax() if self.norm == "linf" else sizes(delta, self.scope).amax()
        return float(largest) / self.radius * self.budget
