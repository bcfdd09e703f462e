"""Random attack: a fake user meets items drawn evenly, then the pushed one.

Lam & Riedl, Shilling Recommender Systems for Fun and Profit, WWW 2004, for sequences.
"""

import numpy as np

from ballast.robustness import poisons
from ballast.robustness.poisons import Integers, Known


class Poisoner(poisons.Poisoner):
    """As long as a real user's sequence, drawn by chance, and of any items."""

    def histories(self, known: Known, pushed: Integers, rng: np.random.Generator) -> list[Integers]:
        return [drawn(known, int(item), np.ones(len(known.counts)), rng) for item in pushed]


def drawn(known: Known, pushed: int, weights: np.ndarray, rng: np.random.Generator) -> Integers:
    """Different items other than `pushed`, by weight (I,), as many as some real user has before its last."""
    length = max(1, len(known.sequences[int(rng.integers(len(known.sequences)))]) - 1)
    weights = weights.astype(np.float64)
    weights[[0, pushed]] = 0
    length = min(length, int(np.count_nonzero(weights)))
    return rng.choice(len(weights), size=length, replace=False, p=weights / weights.sum())
