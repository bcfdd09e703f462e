"""Which interactions train, validate and test."""

import numpy as np
import pandas as pd

from ballast.errors import BallastError
from ballast.params import SampleParams, SplitParams
from ballast.reproducibility import numpy_generator


def split(interactions: pd.DataFrame, params: SplitParams, where: str) -> pd.DataFrame:
    """`interactions` (sorted by user and time) with a column `split`, without the rows that no split takes.

    `where` names the dataset in messages.
    """
    if params.kind == "leave_one_out":
        return leave_one_out(interactions)
    if interactions["timestamp"].isna().any():
        raise BallastError(
            f"{where}: a global_time split needs timestamps, and there are none; use leave_one_out"
        )
    return global_time(interactions, params.valid_share, params.test_share, where)


def leave_one_out(interactions: pd.DataFrame) -> pd.DataFrame:
    """Each user's last row is test, the one before it valid, the rest train.

    A user with fewer than 3 rows could not keep a history for both: all its rows are train.
    """
    by_user = interactions.groupby("user", sort=False)["user"]
    from_end = by_user.cumcount(ascending=False).to_numpy()
    is_long = by_user.transform("size").to_numpy() >= 3
    names = np.where(is_long & (from_end == 0), "test", np.where(is_long & (from_end == 1), "valid", "train"))
    return interactions.assign(split=names)


def global_time(
    interactions: pd.DataFrame, valid_share: float, test_share: float, where: str
) -> pd.DataFrame:
    """Two moments cut the time line for everyone, so that no training row is later than any target.

    All rows are laid on the time line: the last `test_share` of them fall in the test window, the
    `valid_share` before it in the valid window; rows at a window's first moment are in it. A user's target
    is its first row in a window. Later rows of the valid window are `between`: nothing trains on them, and
    the test target is ranked from them, too; those of the test window are dropped. Users with no row before
    the valid window are in no training and have no history to validate on: they are dropped.
    """
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise BallastError(
            f"{where}: split: valid_share {valid_share} and test_share {test_share} must be above 0 "
            "and add up to less than 1"
        )
    time = interactions["timestamp"].to_numpy(np.int64)
    valid_start, test_start = np.quantile(
        time, [1 - valid_share - test_share, 1 - test_share], method="higher"
    )
    window = (time >= valid_start).astype(int) + (time >= test_start).astype(int)
    frame = interactions.assign(split=np.array(["train", "valid", "test"])[window])
    has_history = (frame["split"] == "train").groupby(frame["user"]).transform("any")
    is_later = frame.duplicated(["user", "split"])
    frame["split"] = frame["split"].mask(is_later & (frame["split"] == "valid"), "between")
    frame = frame[has_history & ~(is_later & (frame["split"] == "test"))].reset_index(drop=True)
    missing = {"train", "valid", "test"} - set(frame["split"])
    if missing:
        raise BallastError(
            f"{where}: the global_time split leaves no {'/'.join(sorted(missing))} rows "
            "of users with a history; change valid_share and test_share"
        )
    return frame


def sampled(interactions: pd.DataFrame, params: SampleParams) -> pd.DataFrame:
    """The table `interactions` with `history` in place of `train` for users who are not trained on.

    Of the users with training rows, round(share * U) but at least one are trained on: the first in one random
    order of them all, so that a larger share keeps those of a smaller one.
    """
    is_train = interactions["split"] == "train"
    users = np.unique(interactions.loc[is_train, "user_id"])
    order = numpy_generator(params.seed, "users to train on").permutation(len(users))
    kept = users[order[: max(1, round(params.share * len(users)))]]
    is_left = is_train & ~interactions["user_id"].isin(kept)
    return interactions.assign(split=interactions["split"].mask(is_left, "history"))
