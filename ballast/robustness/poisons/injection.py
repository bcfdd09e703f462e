"""Target injection: a fake user does what a real one did, and then meets the pushed item.

After the fake co-visitations of Yang, Gong, Cai (Fake Co-visitation Injection Attacks to Recommender Systems,
NDSS 2017), for sequences: the context that the pushed item follows is one that real users are in.
"""

import numpy as np

from ballast.errors import BallastError
from ballast.robustness import poisons
from ballast.robustness.poisons import Integers, Known


class Poisoner(poisons.Poisoner):
    """What a real user met last in training, without the pushed item: with it as long as that user's own."""

    def histories(self, known: Known, pushed: Integers, rng: np.random.Generator) -> list[Integers]:
        return [copied(known, int(item), rng) for item in pushed]


def copied(known: Known, pushed: int, rng: np.random.Generator) -> Integers:
    """The items of a user drawn by chance but for `pushed`, one fewer where there are two; never none."""
    for user in rng.permutation(len(known.sequences)):
        own = known.sequences[int(user)]
        history = own[own != pushed]
        if len(history):
            return history[-max(1, len(own) - 1) :]
    raise BallastError(f"poisoning: no user has met anything but item {pushed}")
