"""Full ranking: every item is scored, padding and history masked, ties broken against the method."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError
from ballast.models.method import Batch, Method


@dataclass(frozen=True)
class Ranking:
    """Ranks of U users, in the order of the store's rows, on the CPU.

    rank: (U,) int32 from 1, history masked. rank_unmasked: the same with history among the
    candidates. n_candidates: items that competed, the target included. n_ties: other candidates with
    the target's very score. topk: (U, K) int64 items by masked score, or None.
    """

    rank: Tensor
    rank_unmasked: Tensor
    n_candidates: Tensor
    n_ties: Tensor
    topk: Tensor | None


@torch.inference_mode()
def rank_targets(
    method: Method, store: SequenceStore, targets: Tensor, batch_size: int = 512, topk: int = 0
) -> Ranking:
    """Rank `targets` (U,) int64, one a row of `store`, whose items are each user's history.

    The history the method sees is cut to its max_len; the mask covers the whole history, except the
    target itself where a user meets it again. Raises BallastError on a score that is not finite.
    """
    order = torch.argsort(store.lengths, stable=True)  # like lengths together: less padding
    parts = [
        _rank_batch(method, store, rows, targets.to(store.items.device)[rows], topk)
        for rows in order.split(batch_size)
    ]
    columns = [
        torch.cat(column).cpu() if column[0] is not None else None for column in zip(*parts, strict=True)
    ]
    back = torch.argsort(order).cpu()
    return Ranking(*(column[back] if column is not None else None for column in columns))  # type: ignore[arg-type]


def _rank_batch(
    method: Method, store: SequenceStore, rows: Tensor, target: Tensor, topk: int
) -> tuple[Tensor | None, ...]:
    history = store.histories(rows)  # (B, all)
    batch = Batch(user_id=store.user_ids[rows], history=history[:, -method.max_len :])
    scores = method.score(batch)  # (B, I)
    # Adding up is several times cheaper than looking at each score, and keeps any NaN or infinity.
    if not bool(torch.isfinite(scores.sum(1)).all()):
        raise BallastError("a score is not finite: the model diverged; lower training.learning_rate")
    own = scores.gather(1, target[:, None])
    # One pass counts over the catalogue; what the mask takes away is counted on the history alone.
    masked = _masked_items(history, target)  # (B, all), 0 where nothing is masked
    masked_scores = scores.gather(1, masked).masked_fill(masked == 0, -torch.inf)
    padding = scores[:, 0]
    above = _count(scores >= own) - (padding >= own[:, 0]).int()  # the target counts itself: rank from 1
    ties = _count(scores == own) - (padding == own[:, 0]).int() - 1
    rank = above - _count(masked_scores >= own)
    n_ties = ties - _count(masked_scores == own)
    n_candidates = scores.shape[1] - 1 - _count(masked != 0)
    best = None
    if topk:
        hidden = scores.scatter(1, masked, -torch.inf)
        hidden[:, 0] = -torch.inf
        best = hidden.topk(min(topk, scores.shape[1] - 1)).indices
    return rank, above, n_candidates, n_ties, best


def _count(condition: Tensor) -> Tensor:
    """(B, X) bool to (B,) int32; int64 sums take several times as long."""
    return condition.sum(1, dtype=torch.int32)


def _masked_items(history: Tensor, target: Tensor) -> Tensor:
    """(B, L) each history item once, without the target, 0 elsewhere."""
    items = history.sort(1).values
    is_repeat = torch.zeros_like(items, dtype=torch.bool)
    is_repeat[:, 1:] = items[:, 1:] == items[:, :-1]
    return items.masked_fill(is_repeat | (items == target[:, None]), 0)


def ndcg_at(rank: Tensor, cutoff: int = 10) -> float:
    """Mean NDCG@cutoff of one relevant item a user: 1 / log2(1 + rank) within the cutoff, else 0.

    >>> round(ndcg_at(torch.tensor([1, 3, 11])), 4)
    0.5
    """
    gain = 1.0 / torch.log2(1.0 + rank.to(torch.float64))
    return float(torch.where(rank <= cutoff, gain, 0.0).mean())
