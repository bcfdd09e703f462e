"""How sure a difference is: paired bootstrap over users, the seeds' share, Holm's correction, verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALPHA = 0.05
MIN_SEEDS = 3
MIN_USERS = 50  # below, neither the bootstrap nor the normal tail can be trusted
# Of them, who differ from most: of 11, equal shares kept under attack have p < .001 six times too often.
MIN_DIFFERING = 15
NOISE = 0.06  # relative difference that single seeds show by chance

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """One metric of one method on the users of a dataset.

    values: (S, U) float64, a row a seed. A deterministic method has one row, which stands for every
    seed it is compared with.
    """

    values: Array
    is_deterministic: bool = False


def bootstrap_means(values: ArrayLike, draws: int, rng: np.random.Generator, block: int = 100) -> Array:
    """Means over users of `values` (K, U) in `draws` resamples of the U users: (draws, K).

    All K rows are resampled alike, so that the difference of two columns is a paired difference. Users
    are drawn with replacement and become counts, which turns the resampled means into a matrix product.
    """
    matrix = np.ascontiguousarray(np.asarray(values, dtype=np.float64).T)  # (U, K)
    return np.concatenate([counts @ matrix for counts in _user_counts(len(matrix), draws, rng, block)]) / len(
        matrix
    )


def _user_counts(users: int, draws: int, rng: np.random.Generator, block: int) -> Iterator[Array]:
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = rng.integers(0, users, size=(size, users), dtype=np.int64)
        drawn += np.arange(size)[:, None] * users
        yield np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)


def percentile_interval(draws: Array, level: float = 0.95) -> tuple[Array, Array]:
    """The central `level` interval of each column of bootstrap draws (draws, K): (K,) low, (K,) high."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high


def seed_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean of one value a seed; NaN, NaN with fewer than two seeds.

    >>> low, high = seed_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size)
    return float(array.mean() - half), float(array.mean() + half)


def holm(p: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    array = np.asarray(p, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    factors = np.arange(array.size, 0, -1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(array[order] * factors), 1.0)
    return adjusted


def compare(
    scores: Mapping[str, Scores], pairs: Sequence[tuple[str, str]], draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Paired tests of mean(a) - mean(b) for each pair of methods, users and seeds both being drawn.

    A user's value is its mean over seeds, and users are resampled with their seeds (paired bootstrap within
    seeds). To that error comes what the seeds vary by, so that a difference must hold for other users and for
    other runs. Of few runs some agree by chance: no method counts as steadier than the median one here. p is
    two-sided, from Student's t: a p counted from draws cannot fall below 2 / draws, which is too coarse once
    a family is corrected. Its degrees of freedom are those of the users that count: where most have one and
    the same difference, as those have whose target neither method ranks in its first 10, that they are many
    makes the spread of the others no better known.

    Columns: method_a, method_b, users, differing (those whose difference is not the one that more than half
    have), effective_users (how many would tell the spread of the difference as well, were it normal), seeds
    (0 when both are deterministic), mean_a, mean_b, difference, relative (to mean_b), low, high (95 %
    interval over users and seeds), seed_low, seed_high (95 % t interval of the difference over seeds alone,
    NaN without two seeds), p.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    means = np.stack([scores[name].values.mean(axis=0) for name in names])  # (M, U)
    drawn = bootstrap_means(means, draws, rng)  # (draws, M)
    index = {name: row for row, name in enumerate(names)}
    first = [index[a] for a, _ in pairs]
    second = [index[b] for _, b in pairs]
    difference = means.mean(axis=1)[first] - means.mean(axis=1)[second]
    of_users = (drawn[:, first] - drawn[:, second]).var(axis=0, ddof=1)
    varied = np.array([_seed_variance(scores[name]) for name in names])
    usual = np.median(varied[np.isfinite(varied)]) if np.isfinite(varied).any() else 0.0
    of_seeds = np.maximum(varied, usual)
    apart = [means[a] - means[b] for a, b in zip(first, second, strict=True)]
    effective = [_effective_users(one) for one in apart]
    errors = [
        _error(scores[a], scores[b], of_users[place], effective[place], of_seeds[[index[a], index[b]]])
        for place, (a, b) in enumerate(pairs)
    ]
    error, freedom = np.array(errors).reshape(-1, 2).T
    half = stats.t.ppf(0.975, freedom) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(difference == 0, 1.0, 2 * stats.t.sf(np.abs(difference) / error, freedom))
        relative = difference / means.mean(axis=1)[second]
    frame = pd.DataFrame(
        {
            "method_a": [a for a, _ in pairs],
            "method_b": [b for _, b in pairs],
            "users": means.shape[1],
            "differing": [_differing(one) for one in apart],
            "effective_users": effective,
            "seeds": [_shared_seeds(scores[a], scores[b]) for a, b in pairs],
            "mean_a": means.mean(axis=1)[first],
            "mean_b": means.mean(axis=1)[second],
            "difference": difference,
            "relative": np.where(np.isfinite(relative), relative, np.nan),
            "low": difference - half,
            "high": difference + half,
        }
    )
    intervals = [_seed_difference(scores[a], scores[b]) for a, b in pairs]
    frame["seed_low"], frame["seed_high"] = zip(*intervals, strict=True) if intervals else ((), ())
    return frame.assign(p=p)


def _seed_variance(score: Scores) -> float:
    """What runs add to the squared error of a method's mean, beyond what its users explain; NaN without.

    The scores are a table of seeds by users, both drawn at random: its variance component of the seeds
    (Searle, Casella & McCulloch, Variance Components, 1992, ch. 4), never below zero.
    """
    values = score.values  # (S, U)
    seeds, users = values.shape
    if seeds < 2 or users < 2:
        return float("nan")
    runs = values.mean(axis=1, keepdims=True)
    residual = values - runs - values.mean(axis=0) + values.mean()
    of_users = (residual**2).sum() / ((seeds - 1) * (users - 1)) / (seeds * users)
    return max(float(runs.var(ddof=1)) / seeds - of_users, 0.0)


def _differing(difference: Array) -> int:
    """How many of the (U,) differences are another than that which more than half share, if there is one."""
    most = int(np.unique(difference, return_counts=True)[1].max())
    return difference.size - most if 2 * most > difference.size else difference.size


def _effective_users(difference: Array) -> float:
    """2 U / (k - 1) for (U,) differences of kurtosis k: U where they are normal or have lighter tails.

    How sure an estimated variance is, and so Satterthwaite's degrees of freedom, hangs on the kurtosis (Box,
    Non-normality and tests on variances, Biometrika 40, 1953). Zero where all are alike.
    """
    centred = difference - difference.mean()
    squares = centred**2
    if not (second := squares.mean()) > 0:
        return 0.0
    kurtosis = (squares**2).mean() / second**2
    return float(min(2 * difference.size / max(kurtosis - 1, 1e-9), difference.size))


def _error(
    a: Scores, b: Scores, of_users: float, effective_users: float, of_seeds: Sequence[float]
) -> tuple[float, float]:
    """Standard error of the mean difference, and its degrees of freedom (Satterthwaite 1946).

    of_users: the squared error over users; of_seeds: what the runs of each method add, as in Welch's test.
    """
    squares, freedoms = [of_users], [effective_users - 1]
    for score, square in zip((a, b), of_seeds, strict=True):
        if len(score.values) > 1:
            squares.append(square)
            freedoms.append(len(score.values) - 1)
    total = sum(squares)
    parts = sum(square**2 / max(freedom, 1) for square, freedom in zip(squares, freedoms, strict=True))
    return float(np.sqrt(total)), float(total**2 / parts) if parts > 0 else 1.0


def _shared_seeds(a: Scores, b: Scores) -> int:
    counts = [len(side.values) for side in (a, b) if not side.is_deterministic]
    return min(counts, default=0)


def _seed_difference(a: Scores, b: Scores) -> tuple[float, float]:
    if a.is_deterministic and b.is_deterministic:
        return float("nan"), float("nan")
    return seed_interval(a.values.mean(axis=1) - b.values.mean(axis=1))  # one row broadcasts


def judge(tests: pd.DataFrame) -> pd.DataFrame:
    """`tests` of one family with p_holm, verdict and is_noise added.

    verdict is "better" or "worse" (of method_a) only where the adjusted p is below ALPHA, the seed interval
    excludes zero, and there are at least MIN_SEEDS seeds, MIN_USERS users, and MIN_DIFFERING who differ
    (where `tests` say how many do); else "undecided". Two deterministic methods have no seeds to vary,
    so the users alone decide. is_noise flags a single-seed difference below NOISE.
    """
    p_holm = holm(tests["p"])
    is_fixed = tests["seeds"] == 0
    excludes_zero = (tests["seed_low"] > 0) | (tests["seed_high"] < 0)
    has_seeds = is_fixed | ((tests["seeds"] >= MIN_SEEDS) & excludes_zero)
    differing = tests.get("differing", tests["users"])
    has_users = (tests["users"] >= MIN_USERS) & (differing >= MIN_DIFFERING)
    is_decided = (p_holm < ALPHA) & has_seeds & has_users
    sign = np.where(tests["difference"] > 0, "better", "worse")
    return tests.assign(
        p_holm=p_holm,
        verdict=np.where(is_decided, sign, "undecided"),
        is_noise=(tests["seeds"] == 1) & ~(tests["relative"].abs() >= NOISE),
    )
