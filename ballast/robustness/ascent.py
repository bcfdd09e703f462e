"""Projected gradient ascent whose step size sets itself.

Auto-PGD: Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, algorithm 1. The first step spans the whole ball, so that from zero the
first iterate is the single-step attack; at checkpoints the step is halved, and the search returns to its
best point, unless most steps since the last one gained (rho and momentum are theirs). The best iterate is
kept.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ballast.robustness.objective import Point

RHO, MOMENTUM = 0.75, 0.75


class Climbed(Protocol):
    """What gives the gain at a perturbation: an Objective, or one seen through an encoder."""

    def at(self, delta: Tensor, with_gradient: bool = True) -> Point: ...


class Bounds(Protocol):
    """What bounds a perturbation: a Ball, or that of pictures."""

    def steepest(self, gradient: Tensor) -> Tensor: ...
    def projected(self, delta: Tensor) -> Tensor: ...
    def random(self, like: Tensor, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Found:
    """The best perturbation met. trace: the best mean gain after each evaluation, the start's first."""

    delta: Tensor
    gain: float
    trace: tuple[float, ...] = ()


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size is looked at: 22 % of them, then ever shorter periods (eq. 3).

    >>> checkpoints(10), checkpoints(100)
    ([3, 5, 6, 7, 8, 9, 10], [22, 41, 57, 70, 80, 87, 93, 99])
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    places = [math.ceil(round(share * steps, 9)) for share in shares[1:]]
    return sorted({place for place in places if place <= steps})


def climb(objective: Climbed, bounds: Bounds, start: Tensor, steps: int) -> Found:
    """The best of `start` and `steps` iterates after it, each within the bounds."""
    here, point = start, objective.at(start)
    assert point.gradient is not None
    best, best_gain, best_gradient = here, point.gain, point.gradient
    trace, previous, gradient, last_gain = [best_gain], here, point.gradient, point.gain
    step, gained, since = 2.0, 0, 0
    was_halved, gain_then, looks = False, best_gain, set(checkpoints(steps))
    for number in range(1, steps + 1):
        straight = bounds.projected(here + step * bounds.steepest(gradient))
        moved = MOMENTUM * (straight - here) + (1 - MOMENTUM) * (here - previous)
        previous, here = here, straight if number == 1 else bounds.projected(here + moved)
        point = objective.at(here, with_gradient=number < steps)
        gained, since = gained + (point.gain > last_gain), since + 1
        last_gain, gradient = point.gain, point.gradient if point.gradient is not None else gradient
        if point.gain > best_gain:
            best, best_gain, best_gradient = here, point.gain, gradient
        trace.append(best_gain)
        if number in looks:
            is_stuck = gained < RHO * since or (not was_halved and gain_then == best_gain)
            if is_stuck:
                step /= 2
                here, previous, gradient, last_gain = best, best, best_gradient, best_gain
            was_halved, gain_then, gained, since = is_stuck, best_gain, 0, 0
    return Found(best, best_gain, tuple(trace))
