"""Intervals, corrections and verdicts: known examples, and error rates on simulated truth."""

import doctest
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ballast.evaluation import statistics
from ballast.evaluation.statistics import Scores, bootstrap_means, compare, holm, judge, percentile_interval


def test_doctests():
    assert doctest.testmod(statistics).failed == 0
    assert doctest.testmod(statistics).attempted >= 2


def test_holm_known_example():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]).tolist() == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.9, 0.001, 0.6]).tolist() == pytest.approx([1.0, 0.003, 1.0])  # order kept, capped at 1
    assert holm([]).tolist() == []


def test_seed_interval_agrees_with_scipy():
    values = np.array([0.051, 0.053, 0.050, 0.056])
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.seed_interval(values) == pytest.approx((theirs.low, theirs.high))
    assert np.isnan(statistics.seed_interval([0.05])).all()


def test_bootstrap_agrees_with_theory():
    values = np.random.default_rng(0).normal(size=(2, 400))
    drawn = bootstrap_means(values, 4000, np.random.default_rng(1), block=64)
    assert drawn.shape == (4000, 2)
    assert drawn.mean(0) == pytest.approx(values.mean(1), abs=0.003)
    assert drawn.std(0) == pytest.approx(values.std(1) / 20, rel=0.05)


def test_rows_are_resampled_alike():
    values = np.random.default_rng(0).normal(size=(1, 50))
    drawn = bootstrap_means(np.vstack([values, values + 1]), 20, np.random.default_rng(1))
    assert drawn[:, 1] - drawn[:, 0] == pytest.approx(np.ones(20))


def test_same_seed_same_draws():
    values = np.arange(12.0).reshape(2, 6)
    first, second = (bootstrap_means(values, 7, np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all()


def test_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        values = rng.exponential(size=(1, 200))  # skewed, mean 1
        low, high = percentile_interval(bootstrap_means(values, 400, rng))
        covered.append(low[0] <= 1 <= high[0])
    assert 0.91 <= np.mean(covered) <= 0.98


def null_scores(rng, seeds=3, users=150):
    """Two methods with the same expected score: users differ, and each method errs anew a seed."""
    user = rng.exponential(size=users)
    return [Scores(user + rng.normal(size=(seeds, users))) for _ in range(2)]


def test_p_is_level_under_the_null():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(300):
        a, b = null_scores(rng)
        p.append(compare({"a": a, "b": b}, [("a", "b")], 200, rng)["p"][0])
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.07
    # Smaller than level at no point: a variance component is never below zero.
    assert stats.kstest(p, "uniform", alternative="greater").pvalue > 0.01


def test_family_of_nulls_is_rarely_called_better():
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(100):
        user = rng.exponential(size=150)
        scores = {name: Scores(user + rng.normal(size=(3, 150))) for name in "abcdef"}
        pairs = [(a, b) for a in "abcdef" for b in "abcdef" if a < b]
        called += (judge(compare(scores, pairs, 200, rng))["verdict"] != "undecided").any()
    assert called <= 10


def test_family_of_nulls_is_rarely_called_better_when_seeds_differ():
    """What users alone would call certain is the luck of seeds: each run is a little better or worse."""
    rng = np.random.default_rng(8)
    called, below = 0, []
    for _ in range(80):
        user = rng.exponential(size=200)
        scores = {
            name: Scores(user + rng.normal(size=(3, 200)) + 0.08 * rng.normal(size=(3, 1)))
            for name in "abcdefgh"
        }
        tests = judge(compare(scores, list(combinations(scores, 2)), 100, rng))
        called += (tests["verdict"] != "undecided").any()
        below += list(tests["p"] < 0.05)
    assert called <= 9
    assert 0.01 <= np.mean(below) <= 0.07


def test_error_is_that_of_a_new_draw_of_users_and_seeds():
    """The standard error against the spread of the difference over whole new experiments."""
    rng = np.random.default_rng(9)
    found, widths = [], []
    for _ in range(400):
        users, seeds = rng.normal(size=200), 0.1 * rng.normal(size=(5, 1))
        a, b = Scores(users + seeds + rng.normal(size=(5, 200))), Scores(np.zeros((5, 200)))
        test = compare({"a": a, "b": b}, [("a", "b")], 100, rng)
        found.append(test["difference"][0])
        widths.append(test["high"][0] - test["low"][0])
    assert np.mean([abs(d) <= w / 2 for d, w in zip(found, widths, strict=True)]) == pytest.approx(
        0.95, abs=0.03
    )
    assert np.mean(widths) < 1.4 * 2 * 1.96 * np.std(found)


def kept_of_few(rng, users=200, seeds=3):
    """Per-user values of the share kept under attack: some users have a hit to lose, and few keep theirs."""
    has_hit, keeps = rng.random(users) < 0.085, rng.random(users) < 0.3
    hits = has_hit & (rng.random((seeds, users)) < 0.8)
    clean = np.where(hits, 1 / np.log2(1 + rng.integers(1, 11, hits.shape)), 0)
    noisy = np.where(rng.random(hits.shape) < np.where(keeps, 0.85, 0.07), 0.8 * clean, 0)
    share = noisy.mean() / clean.mean()
    return Scores(share + (noisy - share * clean) / clean.mean())


def test_users_without_a_hit_make_no_test_surer():
    """Far in the tail, where Holm's correction looks, p holds where 17 of 200 users say all there is."""
    rng = np.random.default_rng(10)
    scores = {place: kept_of_few(rng) for place in range(8000)}
    tests = compare(scores, [(place, place + 1) for place in range(0, 8000, 2)], 200, rng)
    assert 15 < tests["effective_users"].median() < 35
    assert 0.03 <= (tests["p"] < 0.05).mean() <= 0.06
    assert (tests["p"] < 0.001).mean() <= 0.0025  # 0.004 with a degree of freedom for each user


def test_users_that_differ_and_users_that_count():
    rng = np.random.default_rng(11)
    b = Scores(np.zeros((1, 4000)), is_deterministic=True)
    few = np.zeros((1, 4000))
    few[0, :40] = rng.choice([-1, 1], 40)
    scores = {"normal": Scores(rng.normal(size=(1, 4000))), "few": Scores(few), "b": b, "same": b}
    tests = compare(scores, [("normal", "b"), ("few", "b"), ("same", "b")], 100, rng)
    assert tests["differing"].tolist() == [4000, 40, 0]
    assert tests["effective_users"].to_numpy() == pytest.approx([4000, 80, 0], rel=0.1)


def test_what_few_users_tell_stays_undecided():
    rng = np.random.default_rng(12)
    values = np.zeros((3, 400))
    values[:, :14] = 1 + 0.01 * rng.normal(size=(3, 14))
    scores = {"a": Scores(values), "b": Scores(np.zeros((3, 400)))}
    tests = compare(scores, [("a", "b")], 200, rng).assign(p=1e-9)
    assert judge(tests)["verdict"][0] == "undecided"
    assert judge(tests.assign(differing=15))["verdict"][0] == "better"


def test_true_difference_is_found_and_signed():
    rng = np.random.default_rng(3)
    a, b = null_scores(rng, users=400)
    better = Scores(a.values + 0.5)
    tests = judge(compare({"a": better, "b": b}, [("a", "b"), ("b", "a")], 500, rng))
    assert tests["verdict"].tolist() == ["better", "worse"]
    assert tests["difference"][0] == pytest.approx(better.values.mean() - b.values.mean())
    assert tests["low"][0] < tests["difference"][0] < tests["high"][0]
    assert tests["relative"][0] == pytest.approx(tests["difference"][0] / b.values.mean())


def test_two_seeds_or_few_users_stay_undecided():
    rng = np.random.default_rng(4)
    for seeds, users in [(2, 400), (5, 30)]:
        a, b = null_scores(rng, seeds=seeds, users=users)
        tests = judge(compare({"a": Scores(a.values + 3), "b": b}, [("a", "b")], 300, rng))
        assert tests["p_holm"][0] < 0.01
        assert tests["verdict"][0] == "undecided"


def test_seeds_that_disagree_stay_undecided():
    rng = np.random.default_rng(5)
    flat = Scores(np.zeros((3, 2000)))
    shifts = np.array([[0.9], [-0.3], [0.6]])  # a bad seed undoes what users alone would call certain
    a = Scores(rng.normal(scale=0.1, size=(3, 2000)) + shifts)
    tests = judge(compare({"a": a, "b": flat}, [("a", "b")], 300, rng))
    assert tests["p_holm"][0] > 0.2
    assert tests["low"][0] < 0 < tests["high"][0]
    assert tests["verdict"][0] == "undecided"


def test_deterministic_methods_are_broadcast():
    rng = np.random.default_rng(6)
    fixed = {
        "low": Scores(rng.random((1, 300)), is_deterministic=True),
        "high": Scores(1 + rng.random((1, 300)), is_deterministic=True),
    }
    model = Scores(2 + rng.random((3, 300)))
    pairs = [("high", "low"), ("model", "high")]
    tests = judge(compare({**fixed, "model": model}, pairs, 300, rng))
    assert tests["seeds"].tolist() == [0, 3]
    assert tests["verdict"].tolist() == ["better", "better"]


def test_small_single_seed_difference_is_noise():
    rng = np.random.default_rng(7)
    base = rng.random((1, 500)) + 1
    for factor, is_noise in [(1.03, True), (1.2, False)]:
        tests = judge(compare({"a": Scores(base * factor), "b": Scores(base)}, [("a", "b")], 200, rng))
        assert tests["is_noise"][0] == is_noise
        assert tests["verdict"][0] == "undecided"


def test_identical_methods_have_p_one():
    values = Scores(np.ones((3, 100)))
    tests = judge(compare({"a": values, "b": values}, [("a", "b")], 50, np.random.default_rng(0)))
    assert tests["p"][0] == 1
