"""One test among those of a study, whichever way round it was recorded."""

import pandas as pd


def find(pairs: pd.DataFrame, dataset: str, a: str, b: str, users_with: str = "all targets") -> pd.Series:
    """The test of `a` against `b`, turned round where it was recorded as `b` against `a`."""
    rows = pairs[(pairs["dataset"] == dataset) & (pairs["users_with"] == users_with)]
    same = rows[(rows["method_a"] == a) & (rows["method_b"] == b)]
    if len(same):
        return same.iloc[0]
    row = rows[(rows["method_a"] == b) & (rows["method_b"] == a)].iloc[0].copy()
    row[["method_a", "method_b", "mean_a", "mean_b"]] = [a, b, row["mean_b"], row["mean_a"]]
    for low, high in [("low", "high"), ("seed_low", "seed_high")]:
        row[low], row[high] = -row[high], -row[low]
    row["difference"] = -row["difference"]
    row["relative"] = row["difference"] / row["mean_b"] if row["mean_b"] else float("nan")
    row["verdict"] = {"better": "worse", "worse": "better"}.get(row["verdict"], "undecided")
    return row
