"""Next-item losses, each a (weighted) mean over real positions; one file each, all work with any backbone.

Arguments are alike: hidden (M, D) float states of M real positions, targets (M,) int64 item ids,
table (I, D) item vectors whose row 0 is padding, exclude (M, X) int64 items that must not be drawn as
negatives, rng the generator of the negatives (on the device of `hidden`), weights (M,) what each position
counts, 1 if None; a gradient flows to them.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ballast.errors import BallastError
from ballast.strict import Strict, parse


class Loss(nn.Module):
    """Base of the losses: a file's subclass is named `Objective`.

    `needs_exclude` tells whether `exclude` is read; `is_sampled` whether the rows of the table that are
    not in play get no gradient.
    """

    needs_exclude: ClassVar[bool] = False
    is_sampled: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        """Settings of the loss; `name` chooses its file."""

        name: str

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        table: Tensor,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        """() float32 mean loss of the M positions."""
        raise NotImplementedError


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """() sum of w_m v_m over sum of w_m, both (M,); the plain mean without weights."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def known() -> list[str]:
    """Names of the losses: the files of this folder."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def build(settings: dict[str, Any], where: str) -> Loss:
    """The loss named by `settings["name"]`; raises BallastError on an unknown name or setting."""
    name = settings.get("name")
    if name not in known():
        raise BallastError(f"{where}: unknown loss {name!r}; known: {', '.join(known())}")
    kind = importlib.import_module(f"{__name__}.{name}").Objective
    loss: Loss = kind(parse(kind.Config, settings, where))
    return loss
