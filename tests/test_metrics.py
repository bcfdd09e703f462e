"""Metrics against hand-computed cases and against scikit-learn."""

import doctest

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from ballast.errors import BallastError
from ballast.evaluation import metrics


def ranks_frame(rank, unmasked=None, n_train=None, ties=None, method="a", seed=0):
    users = len(rank)
    return pd.DataFrame(
        {
            "dataset": "d",
            "method": method,
            "seed": seed,
            "user_id": np.arange(1, users + 1),
            "rank": np.array(rank, dtype=np.uint16),
            "rank_unmasked": np.array(rank if unmasked is None else unmasked, dtype=np.uint16),
            "n_candidates": np.uint16(100),
            "n_ties": np.array([0] * users if ties is None else ties, dtype=np.uint16),
            "target_n_train": np.array([60] * users if n_train is None else n_train, dtype=np.uint16),
        }
    )


def test_doctests():
    assert doctest.testmod(metrics).failed == 0
    assert doctest.testmod(metrics).attempted >= 5


def test_summarise_by_hand():
    ranks = ranks_frame([1, 3, 7, 20], unmasked=[2, 3, 7, 21], n_train=[60, 2, 9, 10], ties=[0, 1, 0, 0])
    row = metrics.summarise(ranks).iloc[0]
    assert row["users"] == 4
    assert row["hr@5"] == 2 / 4
    assert row["hr@10"] == 3 / 4
    assert row["hr@20"] == 1
    assert row["ndcg@5"] == pytest.approx((1 + 0.5) / 4)
    assert row["ndcg@10"] == pytest.approx((1 + 0.5 + 1 / 3) / 4)  # log2(8) = 3
    assert row["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 7 + 1 / 20) / 4)
    assert row["hr@20-unmasked"] == 3 / 4
    assert row["ndcg@5-unmasked"] == pytest.approx((1 / np.log2(3) + 0.5) / 4)
    assert row["tie_share"] == 1 / 4
    assert row["tail_users"] == 2
    assert row["tail_hr@10"] == 1


def test_seeds_and_methods_stay_apart():
    parts = [ranks_frame([1, 1]), ranks_frame([11, 11], seed=1), ranks_frame([1, 11], method="b")]
    result = metrics.summarise(pd.concat(parts)).set_index(["method", "seed"])["hr@10"]
    assert result.to_dict() == {("a", 0): 1.0, ("a", 1): 0.0, ("b", 0): 0.5}


def test_no_tail_user_is_nan_and_counted():
    row = metrics.summarise(ranks_frame([1, 2])).iloc[0]
    assert row["tail_users"] == 0
    assert np.isnan(row["tail_hr@10"])


def test_popularity_bins_partition_the_users():
    ranks = ranks_frame([1, 20, 1, 20, 1], n_train=[0, 2, 3, 49, 5000])
    bins = metrics.by_popularity(ranks).set_index("bin")
    assert bins["users"].to_dict() == {"0-2": 2, "3-9": 1, "10-49": 1, "50+": 1}
    assert bins["hr@10"].to_dict() == {"0-2": 0.5, "3-9": 1.0, "10-49": 0.0, "50+": 1.0}


def test_empty_bin_is_listed():
    bins = metrics.by_popularity(ranks_frame([1], n_train=[60])).set_index("bin")
    assert bins.loc["0-2", "users"] == 0
    assert np.isnan(bins.loc["0-2", "ndcg@10"])


def test_activity_bins_count_what_the_ranking_leaves_out():
    """Of 60 items, those that do not compete are the user's own."""
    ranks = ranks_frame([1, 20, 1, 20, 1]).assign(n_candidates=[60, 56, 55, 11, 10])
    bins = metrics.by_activity(ranks, 60).set_index("bin")
    assert bins["users"].to_dict() == {"0-4": 2, "5-9": 1, "10-19": 0, "20-49": 1, "50+": 1}
    assert bins["hr@10"].dropna().to_dict() == {"0-4": 0.5, "5-9": 1.0, "20-49": 0.0, "50+": 1.0}


def test_small_unsigned_ranks_do_not_wrap():
    assert metrics.ndcg(np.array([255], dtype=np.uint8), 1000)[0] == pytest.approx(1 / 8)


def test_unknown_metric_is_named():
    with pytest.raises(BallastError, match="precision@10"):
        metrics.value("precision@10", [1])


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 40))  # no ties
    target = rng.integers(0, 40, size=200)
    relevance = np.eye(40)[target]
    rank = 1 + (scores > scores[np.arange(200), target][:, None]).sum(1)
    for k in metrics.CUTOFFS:
        assert metrics.ndcg(rank, k).mean() == pytest.approx(ndcg_score(relevance, scores, k=k))
        theirs = top_k_accuracy_score(target, scores, k=k, labels=np.arange(40))
        assert metrics.hit_rate(rank, k).mean() == pytest.approx(theirs)
    assert metrics.mrr(rank).mean() == pytest.approx(label_ranking_average_precision_score(relevance, scores))
