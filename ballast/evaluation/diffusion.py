"""What a diffusion model's ranks owe to its schedule, to its random draws and to its reverse chain."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from ballast.data.sequences import SequenceStore
from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.ranking import Ranking, rank_targets
from ballast.models.method import Method

PASSES = 10
TOPK = 10


def account(model: Method, store: SequenceStore, targets: Tensor, batch_size: int) -> dict[str, Any] | None:
    """The schedule, how single sampled passes rank, and ranks by the chain's length; None without diffusion.

    alpha_bar: (T,) share of the signal's variance left after each step. Of methods that sample: passes, the
    NDCG@10 of each of PASSES single ones; overlap@10, the share of a user's top 10 that two passes have in
    common, mean over users and neighbouring passes. Of those with a reverse chain: reverse_steps, NDCG@10 by
    the number of steps, 1, 2, 4 ... T and the configured one, with the configured draws. The weights are
    the same throughout.
    """
    schedule = getattr(model, "schedule", None)
    if schedule is None:
        return None
    found: dict[str, Any] = {"alpha_bar": [round(float(value), 6) for value in schedule.alpha_bar]}
    if model.is_sampled:
        passes = []
        for place in range(PASSES):
            with configured(model, draws=1, draw_seed=model.config.draw_seed + place):
                passes.append(rank_targets(model, store, targets, batch_size, TOPK))
        found["passes"] = [_headline(ranking) for ranking in passes]
        lists = [ranking.topk.numpy() for ranking in passes if ranking.topk is not None]  # (U, 10) each
        found["overlap@10"] = float(np.mean([_overlap(*pair) for pair in pairwise(lists)]))
    if model.chain_steps:
        found["reverse_steps"] = {}
        for count in sorted({*lengths(model.chain_steps), model.config.reverse_steps or model.chain_steps}):
            with configured(model, reverse_steps=count):
                found["reverse_steps"][str(count)] = _headline(
                    rank_targets(model, store, targets, batch_size)
                )
    return found


def lengths(longest: int) -> list[int]:
    """Powers of two up to the whole chain, which is always among them.

    >>> lengths(8), lengths(20)
    ([1, 2, 4, 8], [1, 2, 4, 8, 16, 20])
    """
    powers = [2**exponent for exponent in range(longest.bit_length())]
    return [*powers, *([longest] if powers[-1] != longest else [])]


@contextlib.contextmanager
def configured(model: Method, **changes: Any) -> Iterator[None]:
    """The same weights under other settings of inference."""
    config = model.config
    model.config = replace(config, **changes)
    try:
        yield
    finally:
        model.config = config


def _headline(ranking: Ranking) -> float:
    return float(metrics.value(HEADLINE, ranking.rank.numpy()).mean())


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Share of a list that the other one has too, mean over users; (U, K) each, K = min(10, items)."""
    return float((one[:, :, None] == other[:, None, :]).any(axis=2).mean())
