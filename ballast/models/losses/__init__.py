"""Next-item losses, each a (weighted) mean over real positions; one file each, all work with any backbone.

Arguments are alike: hidden (M, D) float states of M real positions, targets (M,) int64 item ids,
table (I, D) item vectors whose row 0 is padding, exclude (M, X) int64 items that must not be drawn as
negatives, rng the generator of the negatives (on the device of `hidden`), weights (M,) what each position
counts, 1 if None; a gradient flows to them.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.errors import BallastError
from ballast.models.layers import item_rows
from ballast.strict import Strict, parse_named

Score = Callable[[Tensor], Tensor]
"""(M, C) int64 candidates of M positions to their (M, C) scores."""


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

    def of_candidates(
        self,
        score: Score,
        targets: Tensor,
        num_items: int,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        """() the same loss where scores are no inner products, and cost their number.

        Raises BallastError for a loss that scores the whole catalogue.
        """
        raise BallastError(
            f"model.loss: {self.config.name} scores all items at every position, which a backbone that reads "
            "the candidate cannot afford; take bce, gbce or sampled_softmax"
        )


# Positions that `sharing: group` gives one set of negatives: about a user of Amazon's.
GROUP = 8

Sharing = Literal["group", "position", "batch"]


class SampledLoss(Loss):
    """A loss of the target's score and of a few negatives'. A subclass draws and judges."""

    is_sampled = True

    def draw(
        self, targets: Tensor, num_items: int, exclude: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """(S, N) negatives, and what `terms` wants to know of the draw, (S, N) or (1, 1).

        Each of the S sets is for M / S positions that follow one another, rounded up: `sets` says how many.
        """
        raise NotImplementedError

    def terms(
        self, positive: Tensor, negative: Tensor, is_target: Tensor, drawn: Tensor | None, num_items: int
    ) -> Tensor:
        """(M,) losses of (M,) positive and (M, N) negative scores.

        is_target: (M, N) whether the negative is the target itself. drawn: the second part of `draw`.
        """
        raise NotImplementedError

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        table: Tensor,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        items, drawn = self.draw(targets, len(table) - 1, exclude, rng)
        positive = (hidden * item_rows(targets, table)).sum(-1)
        vectors = item_rows(items, table)  # (S, N, D)
        size = -(-len(hidden) // len(items))
        grouped = functional.pad(hidden, (0, 0, 0, size * len(items) - len(hidden)))
        grouped = grouped.view(len(items), size, -1)  # (S, M / S, D)
        negative = torch.bmm(grouped, vectors.transpose(1, 2)).flatten(0, 1)[: len(hidden)]  # (M, N)
        items, drawn = spread(items, len(hidden)), None if drawn is None else spread(drawn, len(hidden))
        terms = self.terms(positive, negative, items == targets[:, None], drawn, len(table) - 1)
        return weighted_mean(terms, weights)

    def of_candidates(
        self,
        score: Score,
        targets: Tensor,
        num_items: int,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        items, drawn = self.draw(targets, num_items, exclude, rng)
        items, drawn = spread(items, len(targets)), None if drawn is None else spread(drawn, len(targets))
        scores = score(torch.cat([targets[:, None], items], dim=1))  # (M, 1 + N)
        is_target = items == targets[:, None]
        return weighted_mean(self.terms(scores[:, 0], scores[:, 1:], is_target, drawn, num_items), weights)


def sets(sharing: Sharing, positions: int) -> int:
    """How many sets of negatives are drawn for so many positions."""
    return {"batch": 1, "position": positions, "group": -(-positions // GROUP)}[sharing]


def spread(values: Tensor, positions: int) -> Tensor:
    """(M, N) or (1, N): the row of its set for each position, from (S, N)."""
    if len(values) in (1, positions):
        return values.expand(positions, -1)
    return values.repeat_interleave(-(-positions // len(values)), 0)[:positions]


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """() sum of w_m v_m over sum of w_m, both (M,); the plain mean without weights."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def known() -> list[str]:
    """Names of the losses: the files of this folder."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def configure(settings: dict[str, Any], where: str) -> tuple[type[Loss], Any]:
    """The class named by `settings["name"]` and its Config; raises BallastError on what it does not know."""
    return parse_named(settings, known(), _find, "loss", where)


def build(settings: dict[str, Any], where: str) -> Loss:
    """The loss that the settings describe."""
    kind, config = configure(settings, where)
    return kind(config)


def _find(name: str) -> type[Loss]:
    kind: type[Loss] = importlib.import_module(f"{__name__}.{name}").Objective
    return kind
