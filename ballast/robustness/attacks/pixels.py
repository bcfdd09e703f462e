"""Projected gradient ascent on pictures, through the encoder and the method to the ranking.

PGD on pixels: Madry et al., ICLR 2018; on recommenders' pictures: Di Noia, Malitesta & Merra, TAaMR, DSN-W
2020, who attack the classifier; here the gain is the ranking's own. A budget of b moves each channel of
each pixel by at most b / 255, within [0, 1]. Pictures are stored in whole levels, so that the result is
rounded to them: a budget below 1 changes nothing unless `is_rounded` is false. They are changed at the size
that the encoder reads, after resizing.

Untargeted, the pictures of the users' held-out items are changed; promoted, that of the pushed item.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.robustness.ascent import climb
from ballast.robustness.attacks import Attack, Perturbed
from ballast.robustness.objective import Objective, Point, Sample
from ballast.robustness.pictures import BATCH, Lift, Pictures, lift_of
from ballast.robustness.surface import surface


@dataclass(frozen=True, kw_only=True)
class PerturbedPictures(Perturbed):
    """Besides the rows: items (K,) int64 whose pictures changed, and their pixels (K, 3, S, S) in [0, 1]."""

    items: Tensor
    pixels: Tensor


class Adversary(Attack):
    """Auto-PGD within the levels of a picture; give it the pictures by `on` before it is asked."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        surface: str = "image"
        norm: Literal["linf"] = "linf"
        rows: Literal["all", "aimed"] | None = "aimed"
        steps: Annotated[int, Field(ge=1)] = 10
        restarts: Annotated[int, Field(ge=1)] = 1
        is_rounded: bool = True

    pictures: Pictures | None = None

    def on(self, pictures: Pictures) -> "Adversary":
        """This attack, on a catalogue's pictures; raises BallastError if they are not the features'."""
        pictures.check()
        self.pictures = pictures
        return self

    def perturb(self, method: Method, sample: Sample, budget: float, rng: torch.Generator) -> Perturbed:
        """As `Attack.perturb`; budget in levels of 255."""
        if self.pictures is None:
            raise BallastError("attack 'pixels' needs pictures: call on(pictures) first")
        target = surface(method, self.config.surface)
        may_move = target.is_real.clone()
        rows = self.movable(sample, target)
        may_move &= may_move if rows is None else rows
        device = target.values.device
        chosen = may_move[self.pictures.items.to(device)]
        items = self.pictures.items.to(device)[chosen]
        clean = self.pictures.pixels.to(device)[chosen].float() / 255
        objective = self.objective(method, sample, target)
        lift = lift_of(method, self.config.surface, self.pictures, target)
        seen = _Seen(objective, self.pictures, lift, items, clean)
        box = _Box(clean, budget, self.config.is_rounded)
        zero = torch.zeros_like(clean)
        found = climb(seen, box, zero, self.config.steps if budget > 0 and len(items) else 0)
        for _ in range(1, self.config.restarts if budget > 0 else 1):
            other = climb(seen, box, box.random(clean, rng), self.config.steps)
            found = other if other.gain > found.gain else found
        stored = box.stored(found.delta)
        delta = seen.rows(stored)
        gains = objective.at(delta, with_gradient=False).gains
        size = 255 * float(stored.abs().amax()) if len(items) else 0.0
        return PerturbedPictures(
            target.moved(delta), delta, size, gains, found.trace, items=items, pixels=clean + stored
        )


@dataclass(frozen=True)
class _Box:
    """Changes of pictures of at most `levels` of 255 that keep each value in [0, 1]."""

    clean: Tensor
    levels: float
    is_rounded: bool

    def steepest(self, gradient: Tensor) -> Tensor:
        return self.levels / 255 * gradient.nan_to_num(0.0).sign()

    def projected(self, delta: Tensor) -> Tensor:
        near = delta.clamp(-self.levels / 255, self.levels / 255)
        return (self.clean + near).clamp(0, 1) - self.clean

    def random(self, like: Tensor, rng: torch.Generator) -> Tensor:
        drawn = torch.rand(like.shape, generator=rng, dtype=like.dtype).to(like.device) - 0.5
        return self.projected(self.levels / 255 * drawn.sign())

    def stored(self, delta: Tensor) -> Tensor:
        """The change as a file holds it: whole levels, still within the budget."""
        if not self.is_rounded:
            return delta
        whole = int(self.levels)
        return (255 * delta).round().clamp(-whole, whole) / 255


@dataclass(frozen=True)
class _Seen:
    """The objective as pictures see it: their rows replace the items' own on the surface."""

    objective: Objective
    pictures: Pictures
    lift: Lift
    items: Tensor
    clean: Tensor

    def at(self, delta: Tensor, with_gradient: bool = True) -> Point:
        point = self.objective.at(self.rows(delta), with_gradient)
        if point.gradient is None:
            return point
        parts = []
        wanted = point.gradient[self.items]  # (K, F)
        blocks = zip(self.clean.split(BATCH), delta.split(BATCH), wanted.split(BATCH), strict=True)
        for clean, moved, upstream in blocks:
            moved = moved.detach().requires_grad_()
            made = self.lift(self.pictures.encoder(clean + moved))
            parts.append(torch.autograd.grad(made, moved, upstream)[0])
        return Point(point.gains, torch.cat(parts) if parts else torch.zeros_like(delta))

    @torch.no_grad()
    def rows(self, delta: Tensor) -> Tensor:
        """(I, F) change of the surface: zero, bit for bit, where a picture is as it was."""
        change = torch.zeros_like(self.objective.surface.values)
        blocks = zip(self.items.split(BATCH), self.clean.split(BATCH), delta.split(BATCH), strict=True)
        for items, clean, moved in blocks:
            encoder, lift = self.pictures.encoder, self.lift
            change[items] = lift(encoder(clean + moved)) - lift(encoder(clean))
        return change
