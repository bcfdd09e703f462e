"""Who withstands what at what price: the frontier, and the exposure of an item that was pushed."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def frontier(accuracy: Array, robustness: Array) -> NDArray[np.bool_]:
    """(M,) which methods no other one beats: at least as good on both, and better on one.

    Higher is better on both. A method without a number (NaN) is not on the frontier, and beats none.

    >>> frontier(np.array([0.3, 0.2, 0.1, 0.1]), np.array([0.5, 0.9, 0.9, np.nan])).tolist()
    [True, True, False, False]
    """
    points = np.stack([accuracy, robustness], axis=1)  # (M, 2)
    is_known = np.isfinite(accuracy) & np.isfinite(robustness)
    as_good = (points[:, None] >= points[None]).all(axis=2)  # (M, M): row is at least as good as column
    better = (points[:, None] > points[None]).any(axis=2)
    is_beaten = (as_good & better & is_known[:, None]).any(axis=0)
    return np.asarray(is_known & ~is_beaten, dtype=np.bool_)


def exposure(rank: NDArray[np.int64], cutoff: int = 10) -> float:
    """Share of users in whose first `cutoff` places an item stands, from its ranks (U,) among them.

    >>> exposure(np.array([3, 10, 11, 400]))
    0.5
    """
    return float((rank <= cutoff).mean()) if len(rank) else float("nan")
