"""Full ranking: every item is scored, padding and history masked, ties broken against the method."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ballast import parallel
from ballast.data.sequences import Batch, SequenceStore
from ballast.errors import BallastError
from ballast.models.method import Method


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


# Scores that are computed, and counted, at a time: a catalogue of millions fits in memory, and what is
# counted in the processor's cache.
COMPUTED, COUNTED = 1 << 25, 1 << 20

# Users of the first block, which tells how large the catalogue is.
PROBED = 16

# Sums of so many ones are exact in float32.
EXACT = 1 << 24


@torch.inference_mode()
def rank_targets(
    method: Method, store: SequenceStore, targets: Tensor, batch_size: int = 512, topk: int = 0
) -> Ranking:
    """Rank `targets` (U,) int64, one a row of `store`, whose items are each user's history.

    The history the method sees is cut to its max_len; the mask covers the whole history, except the
    target itself where a user meets it again. Under `torchrun` each process ranks its share of the users,
    and all get the whole. Raises BallastError on a score that is not finite.
    """
    device = store.items.device
    order = torch.argsort(store.lengths, stable=True)  # like lengths together: less padding
    share, processes = parallel.place()
    mine, targets = order[share::processes], targets.to(device)
    ranks = torch.zeros((4, len(targets)), dtype=torch.int32, device=device)
    best = torch.zeros((len(targets), 0), dtype=torch.int64, device=device)
    start, size = 0, min(batch_size, PROBED)
    with _item_vectors_once(method):
        while start < len(mine):
            rows = mine[start : start + size]
            ranks[:, rows], items, width = _rank_batch(method, store, rows, targets[rows], topk)
            if start == 0:
                size = max(1, min(batch_size, COMPUTED // width))
                best = best.new_zeros((len(targets), items.shape[1]))
            best[rows] = items
            start += len(rows)
    rank, unmasked, candidates, ties = parallel.total(ranks).cpu()
    return Ranking(rank, unmasked, candidates, ties, parallel.total(best).cpu() if topk else None)


@contextmanager
def _item_vectors_once(method: Method) -> Iterator[None]:
    """Inside, `method.item_table()` is what it is now: of content, it costs more than a batch's scores."""
    make: Callable[[], Tensor] | None = getattr(method, "item_table", None)
    if make is None:
        yield
        return
    table = make()
    method.__dict__["item_table"] = lambda: table
    try:
        yield
    finally:
        del method.__dict__["item_table"]


def _rank_batch(
    method: Method, store: SequenceStore, rows: Tensor, target: Tensor, topk: int
) -> tuple[Tensor, Tensor, int]:
    """(4, B) int32 rank, unmasked rank, candidates and ties; (B, topk) items; the number of scores."""
    history = store.histories(rows)  # (B, all)
    batch = Batch(user_id=store.user_ids[rows], history=history[:, -method.max_len :])
    scores = method.score(batch)  # (B, I)
    # Adding up is several times cheaper than looking at each score, and keeps any NaN or infinity.
    if not bool(torch.isfinite(scores.sum(1)).all()):
        raise BallastError("a score is not finite: the model diverged; lower training.learning_rate")
    own = scores.gather(1, target[:, None])
    # Counts run over the catalogue; what the mask takes away is counted on the history alone.
    masked = _masked_items(history, target)  # (B, all), 0 where nothing is masked
    masked_scores = scores.gather(1, masked).masked_fill(masked == 0, -torch.inf)
    padding = scores[:, 0]
    above, ties = _count(torch.ge, scores, own), _count(torch.eq, scores, own) - 1
    above -= (padding >= own[:, 0]).int()  # the target counts itself: rank from 1
    ties -= (padding == own[:, 0]).int()
    rank = above - (masked_scores >= own).sum(1, dtype=torch.int32)
    n_ties = ties - (masked_scores == own).sum(1, dtype=torch.int32)
    n_candidates = scores.shape[1] - 1 - (masked != 0).sum(1, dtype=torch.int32)
    best = masked[:, :0]
    if topk:
        hidden = scores.scatter(1, masked, -torch.inf)
        hidden[:, 0] = -torch.inf
        best = hidden.topk(min(topk, scores.shape[1] - 1)).indices
    return torch.stack([rank, above, n_candidates, n_ties]), best, scores.shape[1]


def _count(compare: Callable[..., Tensor], scores: Tensor, own: Tensor) -> Tensor:
    """(B, I) scores that compare with (B, 1) own, as (B,) int32.

    Ones and zeros are written and added as float32: both loops are vectorised, where sums of bool to an
    integer type are not.
    """
    count = torch.zeros(len(scores), dtype=torch.int32, device=scores.device)
    rows = max(1, COUNTED // scores.shape[1])
    for start in range(0, len(scores), rows):
        part = scores[start : start + rows]
        holds = torch.empty_like(part)
        for columns in zip(part.split(EXACT, 1), holds.split(EXACT, 1), strict=True):
            compare(columns[0], own[start : start + rows], out=columns[1])
            count[start : start + rows] += columns[1].sum(1).int()
    return count


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
