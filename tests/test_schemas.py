"""Tables on disk: what is written is read back, and every broken rule is told with its row."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ballast.data import schemas
from ballast.errors import BallastError


def interactions() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [1, 1, 1, 1, 2, 2, 2],
            "item_id": [3, 1, 2, 4, 4, 3, 1],
            "position": [0, 1, 2, 3, 0, 1, 2],
            "timestamp": pd.array([10, 20, None, 30, 5, 6, 7], dtype="Int64"),
            "split": ["train", "train", "valid", "test", "train", "valid", "test"],
            "is_noise": pd.array([True, None, False, None, None, None, None], dtype="boolean"),
        }
    )


def items() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [1, 2, 3, 4],
            "raw_item_id": ["a", "b", "c", "d"],
            "title": ["A", None, "C", "D"],
            "description": [None] * 4,
            "category": ["x"] * 4,
            "price": [1.5, np.nan, 0.0, 3.0],
            "image": [None, "images/b.png", None, None],
            "n_train": [1, 0, 1, 1],
        }
    )


def ranks() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "dataset": "beauty",
            "method": "sasrec",
            "seed": 0,
            "user_id": [2, 1, 3],
            "rank": [1, 5, 70_000],
            "rank_unmasked": [1, 6, 70_001],
            "n_candidates": [80_000] * 3,
            "n_ties": [0, 0, 1],
            "target_n_train": [3, 0, 9],
        }
    )


def features() -> pd.DataFrame:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    return pd.DataFrame(
        {"item_id": [1, 2, 3], "vector": list(vectors - vectors[0]), "is_missing": [True, False, False]}
    )


def lists() -> pd.DataFrame:
    keys = {"dataset": "beauty", "method": "sasrec", "seed": 0, "user_id": [1, 2], "target_item_id": [3, 1]}
    return pd.DataFrame({**keys, "topk": [[4, 2], [1, 3]]})


def robustness() -> pd.DataFrame:
    names = {
        "dataset": "d",
        "method": "m",
        "seed": 0,
        "condition": "insert",
        "surface": "history",
        "norm": "share",
    }
    measures = {
        "clean_rank": [1, 2],
        "rank": [3, 2],
        "size": [0.1, 0.0],
        "truncated": [False, True],
        "rbo": [0.5, 1.0],
    }
    return pd.DataFrame({**names, "user_id": [1, 2], "budget": 0.1, **measures})


TABLES = {
    "interactions": interactions,
    "items": items,
    "users": lambda: pd.DataFrame({"user_id": [1, 2], "raw_user_id": ["u", "v"]}),
    "features": features,
    "ranks": ranks,
    "lists": lists,
    "robustness": robustness,
}


def test_every_table_has_an_example() -> None:
    assert set(TABLES) == set(schemas.TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    frame = TABLES[name]()
    schemas.write(name, frame, tmp_path / "table.parquet")
    found = schemas.read(name, tmp_path / "table.parquet")
    assert list(found.columns) == list(schemas.TABLES[name].columns)
    for column in frame:
        for given, got in zip(frame[column].tolist(), found[column].tolist(), strict=True):
            if np.ndim(given) == 0 and pd.isna(given):
                assert pd.isna(got)
            else:
                assert np.all(given == got) or got == pytest.approx(given, rel=1e-6)  # f32 on disk


@pytest.mark.parametrize("name", TABLES)
def test_equal_data_gives_equal_bytes_and_reading_changes_nothing(name: str, tmp_path: Path) -> None:
    schemas.write(name, TABLES[name](), tmp_path / "one.parquet")
    schemas.write(name, schemas.read(name, tmp_path / "one.parquet"), tmp_path / "two.parquet")
    schemas.write(name, pq.read_table(tmp_path / "one.parquet"), tmp_path / "three.parquet")
    first = (tmp_path / "one.parquet").read_bytes()
    assert first == (tmp_path / "two.parquet").read_bytes() == (tmp_path / "three.parquet").read_bytes()


@pytest.mark.parametrize("name", sorted(TABLES.keys() - {"features"}))  # no item, no feature dimension
def test_an_empty_table_is_read_back(name: str, tmp_path: Path) -> None:
    schemas.write(name, TABLES[name]().iloc[:0], tmp_path / "table.parquet")
    assert schemas.read(name, tmp_path / "table.parquet").empty


def test_unsigned_columns_are_the_smallest_that_fit_and_cannot_wrap(tmp_path: Path) -> None:
    path = tmp_path / "ranks.parquet"
    schemas.write("ranks", ranks(), path)
    stored = pq.read_schema(path)
    assert (stored.field("rank").type, stored.field("n_ties").type) == (pa.uint32(), pa.uint16())
    found = schemas.read("ranks", path)
    assert (found["n_ties"] - 1).tolist() == [-1, -1, 0]


def test_large_timestamps_keep_every_digit_beside_empty_ones(tmp_path: Path) -> None:
    frame = interactions()
    frame["timestamp"] = pd.array([2**60 + 1] + [None] * 6, dtype="Int64")
    schemas.write("interactions", frame, tmp_path / "i.parquet")
    assert schemas.read("interactions", tmp_path / "i.parquet")["timestamp"].iloc[0] == 2**60 + 1


BROKEN = [
    ("interactions", "item_id", 1, 0, "row 2: item_id 0 is less than 1"),
    ("interactions", "user_id", 1, 5, "row 3: rows are not sorted by user_id, position"),
    ("interactions", "position", 1, 0, "row 2: user_id 1, position 0 is given twice"),
    (
        "interactions",
        "position",
        3,
        4,
        "row 4: position 4 of user 1 leaves a gap: positions are 0, 1, 2, ...",
    ),
    ("interactions", "position", 4, 1, "row 6: user_id 2, position 1 is given twice"),
    (
        "interactions",
        "split",
        0,
        "dev",
        "row 1: split 'dev' is not one of train, history, valid, between, test",
    ),
    ("interactions", "split", 1, "test", "row 3: split 'valid' is out of order for its user"),
    ("interactions", "split", 2, "test", "row 4: split 'test' is out of order for its user"),
    ("interactions", "split", 2, None, "row 3: split is empty"),
    ("items", "item_id", 1, 5, "row 3: rows are not sorted by item_id"),
    ("items", "item_id", 3, 5, "row 4: item_id 5 leaves a gap: ids are 1, 2, 3, ..."),
    ("items", "item_id", 3, 3, "row 4: item_id 3 is given twice"),
    ("items", "price", 0, -1.0, "row 1: price -1.0 is less than 0"),
    ("items", "price", 0, np.inf, "row 1: price inf is not finite"),
    ("items", "raw_item_id", 2, None, "row 3: raw_item_id is empty"),
    ("ranks", "rank", 1, 0, "row 2: rank 0 is less than 1"),
    ("ranks", "rank", 1, 7, "row 2: rank_unmasked 6 is better than rank 7"),
    ("ranks", "user_id", 2, 1, "row 3: dataset beauty, method sasrec, seed 0, user_id 1 is given twice"),
    ("robustness", "rbo", 1, 1.5, "row 2: rbo 1.5 is more than 1"),
    ("robustness", "size", 1, np.nan, "row 2: size is empty"),
    ("features", "is_missing", 1, True, "row 2: vector of a missing item is not zero"),
]


@pytest.mark.parametrize(("name", "column", "row", "value", "message"), BROKEN)
def test_a_broken_rule_names_file_and_row(
    name: str, column: str, row: int, value: object, message: str, tmp_path: Path
) -> None:
    frame = TABLES[name]()
    values = frame[column].astype(object).tolist()
    values[row] = value
    frame[column] = pd.Series(values, dtype=object)
    path = tmp_path / f"{name}.parquet"
    with pytest.raises(BallastError) as error:
        schemas.write(name, frame, path)
    assert str(error.value) == f"{path}: {message}"
    assert list(tmp_path.iterdir()) == [], "nothing may be left of a refused table"


def test_a_vector_that_is_not_finite_is_told(tmp_path: Path) -> None:
    frame = features()
    frame["vector"] = [*frame["vector"][:2], np.array([1, np.nan], dtype=np.float32)]
    with pytest.raises(BallastError, match="row 3: vector has a value that is not finite"):
        schemas.write("features", frame, tmp_path / "f.parquet")


def test_ids_are_checked_against_the_tables_beside(tmp_path: Path) -> None:
    schemas.write("items", items(), tmp_path / "items.parquet")
    schemas.write("users", pd.DataFrame({"user_id": [1], "raw_user_id": ["u"]}), tmp_path / "users.parquet")
    path = tmp_path / "interactions.parquet"
    frame = interactions()
    with pytest.raises(BallastError, match=r"interactions\.parquet: row 5: user_id 2 is not in 1\.\.1$"):
        schemas.write("interactions", frame, path)
    frame.loc[6, "item_id"] = 1203
    with pytest.raises(BallastError, match=r"interactions\.parquet: row 7: item_id 1203 is not in 1\.\.4$"):
        schemas.write("interactions", frame, path)


def test_missing_extra_and_mistyped_columns_are_told(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    for table, message in [
        ({"user_id": pa.array([1], pa.int32())}, "column 'raw_user_id' is missing; found: user_id"),
        (
            {"user_id": pa.array([1], pa.int32()), "raw_user_id": ["u"], "age": [3]},
            "column 'age' is unknown; expected: user_id, raw_user_id",
        ),
        (
            {"user_id": pa.array([1], pa.int64()), "raw_user_id": ["u"]},
            "column 'user_id' is int64, expected i32",
        ),
    ]:
        pq.write_table(pa.table(table), path)
        with pytest.raises(BallastError) as error:
            schemas.read("users", path)
        assert str(error.value) == f"{path}: {message}"


def test_a_number_that_does_not_fit_is_refused_on_writing(tmp_path: Path) -> None:
    for value in (2**31, "one", 1.5):
        frame = pd.DataFrame({"user_id": [value], "raw_user_id": ["u"]})
        with pytest.raises(BallastError, match="column 'user_id' is not i32"):
            schemas.write("users", frame, tmp_path / "users.parquet")
    with pytest.raises(BallastError, match="column 'rank' is not u16 or u32"):
        schemas.write("ranks", ranks().assign(rank=-1), tmp_path / "ranks.parquet")


def test_an_absent_and_a_cut_file_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    with pytest.raises(BallastError, match=r"users\.parquet: not found"):
        schemas.read("users", path)
    schemas.write("users", pd.DataFrame({"user_id": [1], "raw_user_id": ["u"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BallastError, match=r"users\.parquet: not a whole parquet file"):
        schemas.read("users", path)
