"""What a budget means: sizes, steps and projections of perturbations, for training and attacks alike.

A perturbation of a table is measured as a whole (`table`: the Frobenius norm) or row by row (`row`: the
largest Euclidean norm of a row).
"""

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["table", "row"]

# Below this a gradient has no direction: the perturbation stays where it is.
TINY = 1e-12


def sizes(delta: Tensor, norm: Norm) -> Tensor:
    """(1, 1) or (I, 1) Euclidean norms of the parts of (I, D) that a budget bounds."""
    return delta.norm().view(1, 1) if norm == "table" else delta.norm(dim=1, keepdim=True)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """(I, D) steepest ascent of size 1: the gradient over its norm, zero where there is none."""
    length = sizes(gradient, norm)
    return torch.where(length > TINY, gradient / length.clamp(min=TINY), 0.0)


def projected(delta: Tensor, radius: float, norm: Norm) -> Tensor:
    """(I, D) the nearest perturbation within the ball of `radius`."""
    length = sizes(delta, norm)
    return delta * (radius / length.clamp(min=TINY)).clamp(max=1.0)


def random_direction(like: Tensor, norm: Norm, rng: torch.Generator) -> Tensor:
    """(I, D) a uniform direction of size 1 on the rows of `like` but the first, which is padding."""
    drawn = torch.randn(like.shape, generator=rng, device=like.device, dtype=like.dtype)
    drawn[0] = 0
    return direction(drawn, norm)
