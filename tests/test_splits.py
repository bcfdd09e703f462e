"""The filter, both splits, and the prepared tables that come out."""

import inputs
import numpy as np
import pandas as pd
import pytest

from ballast.data.filtering import first_of_each_item, k_core
from ballast.data.preparation import prepare
from ballast.data.readers import CONTENT, RawTables
from ballast.data.splits import sampled, split
from ballast.errors import BallastError
from ballast.params import DatasetParams, FilterParams, SampleParams, SourceParams, SplitParams


def frame(rows: str, times: list[int] | None = None) -> pd.DataFrame:
    """Rows such as "a1 a2 b1": one letter for the user, the rest the item, in order of time."""
    pairs = [(word[0], word[1:]) for word in rows.split()]
    result = pd.DataFrame(pairs, columns=["user", "item"])
    result["timestamp"] = pd.Series(times or None, index=result.index, dtype="Int64")
    result["order"] = range(len(pairs))
    result["is_noise"] = pd.array([pd.NA] * len(pairs), dtype="boolean")
    return result


def words(rows: pd.DataFrame, name: str | None = None) -> str:
    kept = rows if name is None else rows[rows["split"] == name]
    return " ".join(kept["user"] + kept["item"])


def random_frame(seed: int, users: int = 60, items: int = 30, rows: int = 900) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    result = pd.DataFrame(
        {"user": rng.integers(users, size=rows), "item": rng.integers(items, size=rows)}
    ).astype(str)
    result["timestamp"] = pd.array(rng.integers(500, size=rows), dtype="Int64")
    result["order"] = range(rows)
    result["is_noise"] = pd.array(rng.random(rows) < 0.1, dtype="boolean")
    return first_of_each_item(result)


def params(**changes: object) -> DatasetParams:
    settings = {
        "label": "Toy",
        "terms": "none",
        "source": SourceParams(),
        "reader": {"name": "x"},
        "seeds": [0],
    }
    settings["filter"] = FilterParams(min_user_interactions=1)
    return DatasetParams(**{**settings, **changes})  # type: ignore[arg-type]


def raw(rows: pd.DataFrame) -> RawTables:
    catalogue = pd.DataFrame({"item": rows["item"].unique()})
    return RawTables(rows, catalogue.assign(**dict.fromkeys(CONTENT)))


def test_k_core_goes_on_until_all_have_enough() -> None:
    # Item 3 goes; that leaves b with one row, so b goes; that leaves item 2 with one row, so item 2 goes.
    rows = frame("a1 a2 a4 b2 b3 c1 c4")
    assert (
        words(k_core(rows, FilterParams(min_user_interactions=2, min_item_interactions=2), "d"))
        == "a1 a4 c1 c4"
    )
    once = FilterParams(min_user_interactions=2, min_item_interactions=2, is_iterated=False)
    assert words(k_core(rows, once, "d")) == "a1 a2 a4 c1 c4"


@pytest.mark.parametrize("seed", range(3))
def test_k_core_is_the_largest_set_that_keeps_its_rule(seed: int) -> None:
    rows = random_frame(seed, rows=300)
    core = k_core(rows, FilterParams(min_user_interactions=4, min_item_interactions=6), "d")
    assert core.groupby("user").size().min() >= 4
    assert core.groupby("item").size().min() >= 6
    left = {(user, item) for user, item in zip(rows["user"], rows["item"], strict=True)}
    while True:  # the definition, one row at a time
        users = pd.Series([user for user, _ in left]).value_counts()
        goods = pd.Series([item for _, item in left]).value_counts()
        bad = {pair for pair in left if users[pair[0]] < 4 or goods[pair[1]] < 6}
        if not bad:
            break
        left -= bad
    assert set(zip(core["user"], core["item"], strict=True)) == left


def test_a_filter_that_leaves_nothing_tells_thresholds_and_counts() -> None:
    with pytest.raises(BallastError) as error:
        k_core(frame("a1 a2 b1"), FilterParams(min_user_interactions=7, min_item_interactions=2), "d")
    assert str(error.value) == (
        "d: the filter leaves nothing: min_user_interactions 7 and min_item_interactions 2 "
        "on 2 users, 2 items and 3 interactions; lower them"
    )


def test_the_first_of_repeats_in_time_is_kept() -> None:
    rows = frame("a1 a2 a1 b1", [30, 20, 10, 5])
    kept = first_of_each_item(rows)
    assert list(zip(kept["user"] + kept["item"], kept["timestamp"], strict=True)) == [
        ("a1", 10),
        ("a2", 20),
        ("b1", 5),
    ]


def test_leave_one_out_by_hand() -> None:
    rows = split(frame("a1 a2 a3 a4 b1 b2 c1 c2 c3"), SplitParams(), "d")
    assert words(rows, "test") == "a4 c3"
    assert words(rows, "valid") == "a3 c2"
    assert words(rows, "train") == "a1 a2 b1 b2 c1", "a user with two rows only trains"


def test_global_time_by_hand() -> None:
    # Ten rows: the windows start at the 7th and 9th moments, 60 and 80.
    rows = frame("a1 a2 a3 a4 b1 b2 b3 c1 c2 d1", [0, 10, 60, 70, 20, 30, 80, 40, 90, 80])
    found = split(rows, SplitParams(kind="global_time", valid_share=0.2, test_share=0.3), "d")
    assert words(found, "train") == "a1 a2 b1 b2 c1"
    assert words(found, "valid") == "a3"
    assert words(found, "between") == "a4", "later in the same window: no target, and before the test window"
    assert words(found, "test") == "b3 c2", "d has no history"


@pytest.mark.parametrize("seed", range(5))
def test_global_time_leaks_nothing(seed: int) -> None:
    rows = random_frame(seed)
    found = split(rows, SplitParams(kind="global_time", valid_share=0.15, test_share=0.1), "d")
    names = ("train", "valid", "between", "test")
    time = {name: found.loc[found["split"] == name, "timestamp"] for name in names}
    assert time["train"].max() < time["valid"].min() <= time["valid"].max() < time["test"].min()
    assert time["valid"].min() <= time["between"].min() <= time["between"].max() < time["test"].min()
    # Who trains keeps all that it met before the test window, for the test target to be ranked from.
    own = rows["user"].isin(found["user"]) & (rows["timestamp"] < time["test"].min())
    assert own.sum() == (found["split"] != "test").sum()
    targets = found[found["split"].isin(["valid", "test"])]
    assert not targets.duplicated(["user", "split"]).any()
    assert set(targets["user"]) <= set(found.loc[found["split"] == "train", "user"])
    # Each target is the first of its user at or after the window's start, in the unsplit table.
    start = {"valid": time["valid"].min(), "test": time["test"].min()}
    for name, user, moment in targets[["split", "user", "timestamp"]].itertuples(index=False):
        own = rows.loc[(rows["user"] == user) & (rows["timestamp"] >= start[name]), "timestamp"]
        assert own.min() == moment


def test_what_was_met_between_the_targets_is_history_of_the_second_alone() -> None:
    rows = frame("a1 a2 a3 a4 b1 b2 b3 c1 c2 d1", [0, 10, 60, 70, 20, 30, 80, 40, 90, 80])
    rows.loc[len(rows)] = ["a", "9", 95, len(rows), pd.NA]
    chosen = params(split=SplitParams(kind="global_time", valid_share=0.2, test_share=0.3))
    table = prepare("d", raw(rows.sort_values(["user", "timestamp"])), chosen)
    prepared = inputs.Prepared(table.interactions, None, "")  # type: ignore[arg-type]
    names = dict(zip(table.items["item_id"], table.items["raw_item_id"], strict=True))
    user = np.array([1])
    histories = {
        "valid": prepared.store(["train"], user).items,
        "test": prepared.store(["train", "valid"], user).items,
    }
    met = {name: " ".join(names[int(item)] for item in items) for name, items in histories.items()}
    assert met == {"valid": "1 2", "test": "1 2 3 4"}


def test_global_time_needs_times_and_sensible_shares() -> None:
    with pytest.raises(BallastError, match=r"datasets\.d: a global_time split needs timestamps"):
        split(frame("a1 a2 a3"), SplitParams(kind="global_time"), "datasets.d")
    for valid, test in [(0.0, 0.1), (0.1, 0.0), (0.5, 0.5)]:
        with pytest.raises(BallastError, match="must be above 0 and add up to less than 1"):
            split(random_frame(0), SplitParams(kind="global_time", valid_share=valid, test_share=test), "d")
    with pytest.raises(BallastError, match="leaves no test/train/valid rows"):
        split(frame("a1 a2 a3", [5, 5, 5]), SplitParams(kind="global_time"), "d")


def test_ids_follow_the_raw_ids_and_counts_come_from_training_only() -> None:
    prepared = prepare("d", raw(frame("b10 b9 b2 b0 a9 a2 a10")), params())
    assert prepared.items["raw_item_id"].tolist() == ["0", "2", "9", "10"]
    assert prepared.users["raw_user_id"].tolist() == ["a", "b"]
    assert prepared.interactions["item_id"].tolist() == [3, 2, 4, 4, 3, 2, 1]
    assert prepared.items["n_train"].tolist() == [0, 0, 2, 1]
    assert prepared.stats["train"] == 3
    assert prepared.stats["cold_item_share"] == 1.0


def test_a_price_is_the_median_of_what_was_paid_in_training() -> None:
    rows = frame("a1 a2 a3 b1 b2 b3 c1 c3 c2 d2 d3 d4").assign(price=[1.0, 9, 9, 3, 9, 9, 8, 9, 9, 5, 9, 9])
    prices = prepare("d", raw(rows), params()).items.set_index("raw_item_id")["price"]
    assert prices["1"] == 3.0
    assert prices["2"] == 5.0
    assert prices[["3", "4"]].isna().all(), "never sold in training: what it cost later is not known yet"


def test_expected_counts_are_checked_and_both_are_told() -> None:
    rows = raw(frame("a1 a2 a3 b1 b2"))
    prepare("d", rows, params(expected={"users": 2, "items": 3, "interactions": 5}))
    with pytest.raises(BallastError, match=r"datasets\.d\.expected\.items: expected 1,203 items .* found 3;"):
        prepare("d", rows, params(expected={"items": 1203}))
    with pytest.raises(
        BallastError, match=r"expected\.item: unknown count; known: users, items, interactions"
    ):
        prepare("d", rows, params(expected={"item": 3}))


def test_users_that_the_split_drops_leave_no_gap_in_the_ids() -> None:
    rows = random_frame(1, rows=400)
    chosen = params(split=SplitParams(kind="global_time", valid_share=0.3, test_share=0.4))
    prepared = prepare("d", raw(rows), chosen)
    assert len(prepared.users) < rows["user"].nunique()
    assert sorted(prepared.interactions["user_id"].unique()) == prepared.users["user_id"].tolist()
    assert len(prepared.items) == rows["item"].nunique(), "the shop still has every item"


def test_stats_by_hand() -> None:
    rows = frame("a1 a2 a3 b1 b2 b3 b4 c1").assign(
        is_noise=pd.array([True, False, False, False, True, False, False, False], dtype="boolean")
    )
    tables = raw(rows)
    tables.items.loc[0, ["title", "image"]] = ["One", "one.png"]
    stats = prepare("d", tables, params(is_simulated=True)).stats
    expected = {
        "label": "Toy",
        "terms": "none",
        "is_simulated": True,
        "split": "leave_one_out",
        "users": 3,
        "items": 4,
        "interactions": 8,
        "train": 4,
        "valid": 2,
        "test": 2,
        "density": 0.666667,
        "mean_length": 2.66667,
        "median_length": 3.0,
        "price_coverage": 0.0,
        "text_coverage": 0.25,
        "image_coverage": 0.25,
        "cold_item_share": 0.75,
        "noise_share": 0.25,
        "notes": {},
    }
    assert stats == expected


def trained(share: float, seed: int = 0) -> set[int]:
    table = prepare(
        "d", raw(random_frame(0)), params(sample=SampleParams(share=share, seed=seed))
    ).interactions
    return set(table.loc[table["split"] == "train", "user_id"])


def test_training_on_some_users_takes_nothing_else_away() -> None:
    whole = prepare("d", raw(random_frame(0)), params())
    part = prepare("d", raw(random_frame(0)), params(sample=SampleParams(share=0.25)))
    pd.testing.assert_frame_equal(
        part.interactions.assign(split=part.interactions["split"].replace("history", "train")),
        whole.interactions,
    )
    per_user = part.interactions.query("split in ('train', 'history')").groupby("user_id")["split"].nunique()
    assert per_user.max() == 1
    assert part.stats["trained_users"] == len(trained(0.25)) == round(0.25 * whole.stats["users"])
    rows = part.interactions[part.interactions["split"] == "train"]
    expected = rows["item_id"].value_counts().reindex(part.items["item_id"], fill_value=0)
    assert list(part.items["n_train"]) == list(expected)


def test_a_larger_share_keeps_the_users_of_a_smaller_one() -> None:
    assert trained(0.1) < trained(0.3) < trained(1.0)
    assert trained(0.3, seed=1) != trained(0.3)
    assert len(trained(1e-9)) == 1


def test_the_whole_is_a_share_of_one() -> None:
    whole = prepare("d", raw(random_frame(0)), params()).interactions
    pd.testing.assert_frame_equal(sampled(whole, SampleParams(share=1.0)), whole)
