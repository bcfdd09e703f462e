"""Whether weights of training sequences know the noise: AUC against the truth, and what else they follow."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

TERCILES = 3


def sequence_truth(training: pd.DataFrame, counts: NDArray[np.int64], max_len: int) -> pd.DataFrame:
    """What is true of each user's training sequence, a row a user, indexed by user_id.

    training: the training rows of `interactions`. counts: (I,) training interactions of the items. A method
    sees the last max_len + 1 items, the newest as a target alone. Columns: is_noisy (one of those is noise),
    length (all training interactions), popularity (mean count of those seen).
    """
    from_end = training.groupby("user_id").cumcount(ascending=False)
    seen = training[from_end <= max_len]
    seen = seen.assign(count=counts[seen["item_id"].to_numpy()], is_noise=seen["is_noise"].astype(bool))
    groups = seen.groupby("user_id")
    return pd.DataFrame(
        {
            "is_noisy": groups["is_noise"].any(),
            "length": training.groupby("user_id").size(),
            "popularity": groups["count"].mean(),
        }
    )


def validity(weights: Array, truth: pd.DataFrame) -> dict[str, Any]:
    """How well (U,) weights tell clean sequences from noisy ones, and how far they follow niche taste.

    truth: columns of `sequence_truth`, a row a weight. The AUC within a third of the users, by length or by
    popularity (lowest first), cannot come from telling those thirds apart. Correlations are Spearman's; noise
    itself makes a sequence's items rarer, so they are given for clean sequences alone too. None stands where
    a measure is undefined.
    """
    is_clean = ~truth["is_noisy"].to_numpy(bool)
    record: dict[str, Any] = {
        "sequences": len(truth),
        "noisy_sequence_share": float((~is_clean).mean()),
        "auc": auc(weights[is_clean], weights[~is_clean]),
    }
    for name in ("length", "popularity"):
        values = truth[name].to_numpy(np.float64)
        thirds = [tercile(values) == index for index in range(TERCILES)]
        record[f"sequences_by_{name}"] = [int(third.sum()) for third in thirds]
        record[f"auc_by_{name}"] = [
            auc(weights[third & is_clean], weights[third & ~is_clean]) for third in thirds
        ]
        record[f"correlation_{name}"] = spearman(weights, values)
        record[f"correlation_{name}_clean"] = spearman(weights[is_clean], values[is_clean])
    for name, chosen in (("clean", is_clean), ("noisy", ~is_clean)):
        record[f"mean_weight_{name}"] = float(weights[chosen].mean()) if chosen.any() else None
    return record


def auc(positive: Array, negative: Array) -> float | None:
    """Share of pairs in which the positive is larger, ties half (Mann & Whitney 1947); None without pairs.

    >>> auc(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    if not len(positive) or not len(negative):
        return None
    ranks = stats.rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.mean() - (len(positive) + 1) / 2) / len(negative))


def spearman(first: Array, second: Array) -> float | None:
    """Spearman's correlation of two (U,) arrays; None where one of them does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)


def tercile(values: Array) -> NDArray[np.int64]:
    """(U,) third that each value is in: 0, 1 or 2. Equal values stay together, so thirds may be unequal.

    >>> tercile(np.array([5.0, 1.0, 3.0, 1.0, 1.0, 9.0])).tolist()
    [2, 0, 1, 0, 0, 2]
    """
    edges = np.quantile(values, [1 / TERCILES, 2 / TERCILES])
    return np.searchsorted(edges, values, side="left")
