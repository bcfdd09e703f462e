"""Noise put into training, where its truth is known: interactions that become items the user never chose.

Places are the first of one random order of all training interactions, so that a larger share spoils the
places of a smaller one, and with the same items. Items are uniform over the catalogue without the user's
own, its validation and test items included: none of them can be what the user wanted after all.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ballast.errors import BallastError
from ballast.params import NoiseParams
from ballast.reproducibility import numpy_generator

Integers = NDArray[np.int64]


def inject(interactions: pd.DataFrame, params: NoiseParams, num_items: int, where: str) -> pd.DataFrame:
    """A copy of the table `interactions` (sorted by user) with round(share * training rows) items replaced.

    `is_noise` is True there and where it was before, else False. Items are 1..num_items; no user gets one
    twice, and a place stays as it is where its user has met every item. Raises BallastError, naming the
    dataset by `where`, if the share is not between 0 and 1.
    """
    if not 0 <= params.share <= 1:
        raise BallastError(f"{where}.noise.share: {params.share} is not a share between 0 and 1")
    users = interactions["user_id"].to_numpy(np.int64)
    own = interactions["item_id"].to_numpy(np.int64)
    items = own.copy()
    is_noise = interactions["is_noise"].to_numpy(bool, na_value=False).copy()
    rows = np.flatnonzero(interactions["split"] == "train")
    order = numpy_generator(params.seed, "noise places").permutation(len(rows))
    chosen = rows[order[: round(params.share * len(rows))]]
    chosen = chosen[np.argsort(users[chosen], kind="stable")]  # each user's places stay in the drawn order
    noisy_users, starts = np.unique(users[chosen], return_index=True)
    for user, places in zip(noisy_users.tolist(), np.split(chosen, starts)[1:], strict=True):
        first, last = np.searchsorted(users, [user, user + 1])
        draws = numpy_generator(params.seed, "noise items", user).random(len(places))
        new = _outside(np.unique(own[first:last]), draws, num_items)
        items[places[: len(new)]] = new
        is_noise[places[: len(new)]] = True
    return interactions.assign(item_id=items.astype(np.int32), is_noise=pd.array(is_noise, dtype="boolean"))


def _outside(own: Integers, draws: NDArray[np.float64], num_items: int) -> Integers:
    """Different items outside `own` (sorted), one a draw in 0..1; fewer where the catalogue ends.

    The r-th free item is r plus the number of known items at or below it.
    """
    known, found = own, []
    for draw in draws[: num_items - len(own)].tolist():
        number = 1 + int(draw * (num_items - len(known)))
        item = number + int(np.searchsorted(known - np.arange(len(known)), number, side="right"))
        found.append(item)
        known = np.insert(known, np.searchsorted(known, item), item)
    return np.array(found, dtype=np.int64)
