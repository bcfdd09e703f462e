"""Which interactions stay: repeats dropped, and the k-core."""

import pandas as pd

from ballast.errors import BallastError
from ballast.params import FilterParams


def in_order(interactions: pd.DataFrame) -> pd.DataFrame:
    """Rows by user and, within a user, by time; ties, and rows without times, by `order`."""
    return interactions.sort_values(["user", "timestamp", "order"], kind="stable", ignore_index=True)


def first_of_each_item(interactions: pd.DataFrame) -> pd.DataFrame:
    """Each user's first interaction with each item; later repeats go.

    A repeat as a target could never be ranked where the history is masked.
    """
    return in_order(interactions).drop_duplicates(["user", "item"], keep="first", ignore_index=True)


def k_core(interactions: pd.DataFrame, params: FilterParams, where: str) -> pd.DataFrame:
    """Drop items, then users, with too few interactions; iterated, until every one that is left has enough.

    Raises BallastError if nothing is left, with the counts before; `where` names the dataset.
    """
    kept = interactions
    while True:
        before = len(kept)
        for column, least in [("item", params.min_item_interactions), ("user", params.min_user_interactions)]:
            if least > 1:
                kept = kept[kept.groupby(column)[column].transform("size") >= least]
        if len(kept) == before or not params.is_iterated:
            break
    if kept.empty:
        raise BallastError(
            f"{where}: the filter leaves nothing: min_user_interactions {params.min_user_interactions} and "
            f"min_item_interactions {params.min_item_interactions} on "
            f"{interactions['user'].nunique():,} users, {interactions['item'].nunique():,} items and "
            f"{len(interactions):,} interactions; lower them"
        )
    return kept.reset_index(drop=True)
