"""Metrics of a user's single target, as functions of its rank (from 1) in the full catalogue.

With one relevant item a user, recall equals the hit rate and the ideal DCG is 1. A metric is named
`hr@K`, `ndcg@K` or `mrr`; the name alone means ranks with the history masked, and `-unmasked` after it
means ranks with the history left among the candidates.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ballast.errors import BallastError

CUTOFFS = (5, 10, 20)
BASE_METRICS = (*(f"hr@{k}" for k in CUTOFFS), *(f"ndcg@{k}" for k in CUTOFFS), "mrr")
HEADLINE = "ndcg@10"
METRICS = (*BASE_METRICS, *(f"{name}-unmasked" for name in BASE_METRICS))

# Training count of the target item, lower edge of each bin.
POPULARITY_EDGES = (0, 3, 10, 50)
POPULARITY_BINS = ("0-2", "3-9", "10-49", "50+")
COLD_BIN = POPULARITY_BINS[0]
TAIL_BELOW = 10  # the two lowest bins

# Different items in a user's history, lower edge of each bin.
ACTIVITY_EDGES = (0, 5, 10, 20, 50)
ACTIVITY_BINS = ("0-4", "5-9", "10-19", "20-49", "50+")

Array = NDArray[np.float64]


def hit_rate(rank: ArrayLike, k: int) -> Array:
    """1 where the target is among the first `k`, else 0; same shape as `rank`.

    >>> hit_rate([1, 10, 11], 10).tolist()
    [1.0, 1.0, 0.0]
    """
    return (np.asarray(rank) <= k).astype(np.float64)


def ndcg(rank: ArrayLike, k: int) -> Array:
    """1 / log2(1 + rank) where the target is among the first `k`, else 0 (Järvelin & Kekäläinen 2002).

    >>> ndcg([1, 3, 11], 10).tolist()
    [1.0, 0.5, 0.0]
    """
    # float64 first: small unsigned ranks would wrap around at the addition.
    wide = np.asarray(rank, dtype=np.float64)
    return np.where(wide <= k, 1.0 / np.log2(1.0 + wide), 0.0)


def mrr(rank: ArrayLike) -> Array:
    """1 / rank over the full catalogue, no cutoff.

    >>> mrr([1, 4]).tolist()
    [1.0, 0.25]
    """
    return 1.0 / np.asarray(rank, dtype=np.float64)


def value(name: str, rank: ArrayLike) -> Array:
    """The base metric `name` of each rank.

    >>> value("ndcg@5", [3, 6]).tolist()
    [0.5, 0.0]
    """
    if name == "mrr":
        return mrr(rank)
    match = re.fullmatch(r"(hr|ndcg)@([1-9]\d*)", name)
    if match is None:
        raise BallastError(f"unknown metric '{name}'; known: {', '.join(METRICS)}")
    return (hit_rate if match[1] == "hr" else ndcg)(rank, int(match[2]))


def per_user(name: str, ranks: pd.DataFrame) -> Array:
    """Metric `name` for each row of a ranks table, from its `rank` or `rank_unmasked` column."""
    base = name.removesuffix("-unmasked")
    return value(base, ranks["rank" if base == name else "rank_unmasked"].to_numpy())


def popularity_bin(target_n_train: ArrayLike) -> NDArray[np.int64]:
    """Index into POPULARITY_BINS of each training count.

    >>> popularity_bin([0, 2, 3, 49, 50]).tolist()
    [0, 0, 1, 2, 3]
    """
    return np.searchsorted(POPULARITY_EDGES, np.asarray(target_n_train), side="right") - 1


def activity_bin(history: ArrayLike) -> NDArray[np.int64]:
    """Index into ACTIVITY_BINS of each number of items in a history.

    >>> activity_bin([0, 4, 5, 49, 50]).tolist()
    [0, 0, 1, 3, 4]
    """
    return np.searchsorted(ACTIVITY_EDGES, np.asarray(history), side="right") - 1


def summarise(ranks: pd.DataFrame) -> pd.DataFrame:
    """One row for each dataset, method and seed: the mean of every metric over users.

    Columns: dataset, method, seed, users, METRICS, tie_share (users whose target ties with another
    item), tail_users and tail_hr@10 (users whose target has fewer than TAIL_BELOW training
    interactions; NaN where there is no such user).
    """
    tail = ranks["target_n_train"].to_numpy() < TAIL_BELOW
    columns = {name: per_user(name, ranks) for name in METRICS}
    frame = _keys(ranks).assign(
        **columns,
        tie_share=(ranks["n_ties"].to_numpy() > 0).astype(np.float64),
        **{"tail_hr@10": np.where(tail, columns["hr@10"], np.nan)},
    )
    groups = frame.groupby(["dataset", "method", "seed"], sort=False, observed=True)
    result = groups.mean()
    result.insert(0, "users", groups.size())
    result.insert(len(result.columns) - 1, "tail_users", groups["tail_hr@10"].count())
    return result.reset_index()


def by_popularity(ranks: pd.DataFrame) -> pd.DataFrame:
    """`by_bin` of the target's training count."""
    return by_bin(ranks, popularity_bin(ranks["target_n_train"].to_numpy()), POPULARITY_BINS)


def by_activity(ranks: pd.DataFrame, num_items: int) -> pd.DataFrame:
    """`by_bin` of the user's history: of the `num_items` of the catalogue, those that do not compete."""
    history = num_items - ranks["n_candidates"].to_numpy(np.int64)
    assert (history >= 0).all(), "more candidates than items"
    return by_bin(ranks, activity_bin(history), ACTIVITY_BINS)


def by_bin(ranks: pd.DataFrame, bins: NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
    """One row for each dataset, method, seed and bin: users, hr@10, ndcg@10. bins: (N,) index into names.

    A bin without users has users 0 and NaN metrics, so that its absence is visible.
    """
    keys = ["dataset", "method", "seed"]
    frame = _keys(ranks).assign(
        bin=np.asarray(names)[bins],
        **{name: per_user(name, ranks) for name in ("hr@10", "ndcg@10")},
    )
    groups = frame.groupby([*keys, "bin"], sort=False, observed=True)
    result = groups.mean()
    result.insert(0, "users", groups.size())
    every = [(*key, name) for key in frame[keys].drop_duplicates().itertuples(index=False) for name in names]
    result = result.reindex(pd.MultiIndex.from_tuples(every, names=[*keys, "bin"]))
    return result.assign(users=result["users"].fillna(0).astype(int)).reset_index()


def _keys(ranks: pd.DataFrame) -> pd.DataFrame:
    return ranks[["dataset", "method", "seed"]].reset_index(drop=True)
