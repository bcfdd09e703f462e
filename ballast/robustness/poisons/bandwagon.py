"""Bandwagon attack: a fake user meets what is popular, then the pushed item.

Burke, Mobasher, Bhaumik, Limited Knowledge Shilling Attacks in Collaborative Filtering Systems, ITWP 2005,
for sequences: popular items are in many histories, so that in many the pushed one comes to follow.
"""

import numpy as np

from ballast.robustness import poisons
from ballast.robustness.poisons import Integers, Known
from ballast.robustness.poisons.random import drawn


class Poisoner(poisons.Poisoner):
    """As long as a real user's sequence, and of items by how often they are met."""

    def histories(self, known: Known, pushed: Integers, rng: np.random.Generator) -> list[Integers]:
        return [drawn(known, int(item), known.counts, rng) for item in pushed]
