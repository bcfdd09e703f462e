"""How far noise moves a method's recommendations: ranks beside the clean ones, and list overlap."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ballast.data.sequences import Batch, SequenceStore
from ballast.evaluation.ranking import Ranking, rank_targets
from ballast.models.method import Method


def rank_with_histories(
    method: Method,
    clean: SequenceStore,
    seen: SequenceStore,
    targets: Tensor,
    batch_size: int = 512,
    topk: int = 0,
) -> Ranking:
    """Rank `targets` (U,) where `method` sees the histories `seen` in place of `clean`, which has
    the same users row for row.

    Both histories are masked. Otherwise a deleted item would return as a candidate and an inserted one
    leave or join the list, and what the mask does would be counted as what the noise does. Replaced
    and inserted items no longer compete: a few of the whole catalogue, drawn at random. In the clean ranking
    they do, so that a method which reads no history gains a little by noise: 2 to 3 % of its NDCG@10 on
    MovieLens-100K with half of each history replaced, where histories are longest.
    """
    return rank_targets(_Seeing(method, seen), _joined(clean, seen), targets, batch_size, topk)


class _Seeing(Method):
    """`method`, given another history for each user than the one it is asked about."""

    def __init__(self, method: Method, store: SequenceStore) -> None:
        nn.Module.__init__(self)  # there is no config and no dataset to know
        self.method, self.store = method, store
        self.order = store.user_ids.argsort()

    @property
    def max_len(self) -> int:
        return self.method.max_len

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        place = torch.searchsorted(self.store.user_ids[self.order], batch.user_id)
        history = self.store.histories(self.order[place], self.max_len)  # (B, L)
        return self.method.score(batch.replaced(history=history), rng)


def _joined(first: SequenceStore, second: SequenceStore) -> SequenceStore:
    """Each row's items of the first store, then those of the second."""
    rows = torch.arange(len(first), device=first.items.device)
    row_of = torch.cat([rows.repeat_interleave(first.lengths), rows.repeat_interleave(second.lengths)])
    items = torch.cat([first.items, second.items])[row_of.argsort(stable=True)]
    return SequenceStore(items, first.offsets + second.offsets, first.user_ids)


def rbo(first: NDArray[np.int64], second: NDArray[np.int64], persistence: float = 0.9) -> NDArray[np.float64]:
    """Rank-biased overlap of ranked lists (U, K) and (U, K) without repeats, (U,) float64 in 0..1.

    Extrapolated from depth K (Webber, Moffat & Zobel, TOIS 2010, eq. 32 for lists of one length): the
    agreement at K is taken to hold below it, so that equal lists give 1 and disjoint ones 0. With
    persistence 0.9 the top 10 carry 86 % of the weight.

    >>> rbo(np.array([[1, 2], [1, 2], [1, 2]]), np.array([[1, 2], [2, 1], [3, 4]])).round(4).tolist()
    [1.0, 0.9, 0.0]
    """
    depth = first.shape[1]
    is_same = first[:, :, None] == second[:, None, :]  # (U, K, K)
    # An item is common from the depth at which both lists have it.
    common_from = np.maximum(np.arange(depth)[:, None], np.arange(depth)[None, :])
    common = np.stack([(is_same & (common_from <= d)).sum((1, 2)) for d in range(depth)], axis=1)  # (U, K)
    agreement = common / np.arange(1, depth + 1)
    weights = (1 - persistence) * persistence ** np.arange(depth)
    overlap: NDArray[np.float64] = agreement @ weights + agreement[:, -1] * persistence**depth
    return np.minimum(overlap, 1.0)  # a last bit of rounding
