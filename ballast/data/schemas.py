"""The tables between stages: the only reader and writer of parquet.

Rows are counted from 1 in messages. On disk the unsigned columns are the smallest of u16 and u32 that
fits; `read` gives them as int64, so that arithmetic on ranks cannot wrap around.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ballast.errors import BallastError
from ballast.reproducibility import atomic_path

SPLITS = ("train", "history", "valid", "between", "test")
"""`history` is what nothing is trained on; it is read like training rows when ranking for its user. `between`
is what a user met behind the validation target and before the test target: history of the latter alone."""
ONCE = ("valid", "test")
"""Splits that a user has one row of at most: its targets."""

Kind = Literal["i32", "i64", "f32", "bool", "string", "dictionary", "u16 or u32", "vector", "list<i32>"]
# A broken rule: which rows break it, and what to say of the first of them.
Problem = tuple[np.ndarray, str]

_TYPES: dict[str, pa.DataType] = {
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "list<i32>": pa.list_(pa.int32()),
}
_NULLABLE_DTYPES = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True)
class Column:
    """One column: its type and the values it may take (`low` and `high` included)."""

    kind: Kind
    is_nullable: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    """Columns in order, and the columns whose values together occur once."""

    columns: dict[str, Column]
    key: tuple[str, ...]
    is_sorted: bool = False


_ID = Column("i32", low=1)
_COUNT = Column("u16 or u32")
_RANK = Column("u16 or u32", low=1)
_NAME = Column("dictionary")
_TEXT = Column("string", is_nullable=True)

TABLES: dict[str, Table] = {
    "interactions": Table(
        {
            "user_id": _ID,
            "item_id": _ID,
            "position": Column("i32", low=0),
            "timestamp": Column("i64", is_nullable=True),
            "split": Column("string"),
            "is_noise": Column("bool", is_nullable=True),
        },
        key=("user_id", "position"),
        is_sorted=True,
    ),
    "items": Table(
        {
            "item_id": _ID,
            "raw_item_id": Column("string"),
            "title": _TEXT,
            "description": _TEXT,
            "category": _TEXT,
            "price": Column("f32", is_nullable=True, low=0),
            "image": _TEXT,
            "n_train": Column("i32", low=0),
        },
        key=("item_id",),
        is_sorted=True,
    ),
    "users": Table({"user_id": _ID, "raw_user_id": Column("string")}, key=("user_id",), is_sorted=True),
    "features": Table(
        {"item_id": _ID, "vector": Column("vector"), "is_missing": Column("bool")},
        key=("item_id",),
        is_sorted=True,
    ),
    "ranks": Table(
        {
            "dataset": _NAME,
            "method": _NAME,
            "seed": Column("i32"),
            "user_id": _ID,
            "rank": _RANK,
            "rank_unmasked": _RANK,
            "n_candidates": _COUNT,
            "n_ties": _COUNT,
            "target_n_train": _COUNT,
        },
        key=("dataset", "method", "seed", "user_id"),
    ),
    "lists": Table(
        {
            "dataset": _NAME,
            "method": _NAME,
            "seed": Column("i32"),
            "user_id": _ID,
            "target_item_id": _ID,
            "topk": Column("list<i32>"),
        },
        key=("dataset", "method", "seed", "user_id"),
    ),
    "robustness": Table(
        {
            "dataset": _NAME,
            "method": _NAME,
            "seed": Column("i32"),
            "user_id": _ID,
            "condition": _NAME,
            "surface": _NAME,
            "norm": _NAME,
            "budget": Column("f32", low=0),
            "clean_rank": _RANK,
            "rank": _RANK,
            "size": Column("f32", low=0),
            "truncated": Column("bool"),
            "rbo": Column("f32", low=0, high=1),
        },
        key=("dataset", "method", "seed", "user_id", "condition", "surface", "norm", "budget"),
    ),
}


def write(name: str, data: pd.DataFrame | pa.Table, path: Path) -> None:
    """Check `data` as `read` does and write it to `path` atomically; equal data gives equal bytes."""
    schema = TABLES[name]
    frame = data.to_pandas() if isinstance(data, pa.Table) else data
    _check_names(schema, list(frame.columns), path)
    arrays = {}
    for column, rule in schema.columns.items():
        try:
            arrays[column] = _array(frame[column], rule)
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise BallastError(f"{path}: column '{column}' is not {rule.kind}: {reason}") from None
    table = pa.table(arrays)
    _check(name, table, path)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read(name: str, path: Path) -> pd.DataFrame:
    """The table `name` from `path`, checked.

    `timestamp` is Int64 and `is_noise` boolean (nullable); text is str, dictionary columns are
    categories; each `vector` is a float32 array, each `topk` an int32 array. Raises BallastError on a
    missing, extra or mistyped column and on a broken invariant, naming file, row and value.
    Interactions are checked against the number of users and items in the tables beside them.
    """
    try:
        # ParquetFile, since read_table would take a folder name such as `dataset=x` for a column.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise BallastError(f"{path}: not found; `dvc repro` (or `dvc pull`) makes it") from None
    except pa.ArrowInvalid:
        raise BallastError(
            f"{path}: not a whole parquet file; delete it and make it again with `dvc repro`"
        ) from None
    return _check(name, table, path)


def _array(values: pd.Series, rule: Column) -> pa.Array:
    if rule.kind == "vector":
        vectors = np.stack(values.to_list()).astype(np.float32, copy=False)  # (N, F)
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    if rule.kind == "dictionary":
        return pa.array(values.astype(str), type=pa.string()).dictionary_encode()
    if rule.kind == "u16 or u32":
        is_small = len(values) == 0 or values.max() < 2**16
        return pa.array(values, type=pa.uint16() if is_small else pa.uint32())
    return pa.array(values, type=_TYPES[rule.kind], from_pandas=True)


def _matches(kind: Kind, found: pa.DataType) -> bool:
    if kind == "vector":
        return bool(pa.types.is_fixed_size_list(found) and found.value_type == pa.float32())
    if kind == "dictionary":
        return bool(pa.types.is_dictionary(found) and found.value_type == pa.string())
    if kind == "u16 or u32":
        return found in (pa.uint16(), pa.uint32())
    return bool(found == _TYPES[kind])


def _check_names(schema: Table, found: list[str], path: Path) -> None:
    missing = [column for column in schema.columns if column not in found]
    if missing:
        raise BallastError(f"{path}: column '{missing[0]}' is missing; found: {', '.join(map(str, found))}")
    extra = [str(column) for column in found if column not in schema.columns]
    if extra:
        raise BallastError(f"{path}: column '{extra[0]}' is unknown; expected: {', '.join(schema.columns)}")


def _check(name: str, table: pa.Table, path: Path) -> pd.DataFrame:
    schema = TABLES[name]
    _check_names(schema, table.column_names, path)
    for column, rule in schema.columns.items():
        found = table.schema.field(column).type
        if not _matches(rule.kind, found):
            raise BallastError(f"{path}: column '{column}' is {found}, expected {rule.kind}")
        if not rule.is_nullable and table[column].null_count:
            row = table[column].is_null().to_pylist().index(True) + 1
            raise BallastError(f"{path}: row {row}: {column} is empty")
    frame = _frame(table, schema)
    for is_broken, message in _problems(name, schema, frame, path):
        if is_broken.any():
            index = int(np.argmax(is_broken))
            values = {
                column: frame[column].iloc[index] for column in schema.columns if "{" + column in message
            }
            raise BallastError(f"{path}: row {index + 1}: {message.format(**values)}")
    return frame


def _frame(table: pa.Table, schema: Table) -> pd.DataFrame:
    """Columns as pandas, in the schema's order; vectors stay views of one (N, F) array."""
    vectors = [column for column, rule in schema.columns.items() if rule.kind == "vector"]
    plain = table.select([column for column in schema.columns if column not in vectors])
    nullable = {column for column, rule in schema.columns.items() if rule.is_nullable}
    frame = pd.DataFrame(index=pd.RangeIndex(len(table)))
    for column in plain.column_names:
        values = plain[column]
        mapper = _NULLABLE_DTYPES.get if column in nullable else None
        frame[column] = values.to_pandas(types_mapper=mapper)
        if schema.columns[column].kind == "u16 or u32":
            frame[column] = frame[column].astype(np.int64)
    for column in vectors:
        array = table[column].combine_chunks()
        flat = array.flatten().to_numpy(zero_copy_only=False)
        frame[column] = pd.Series(list(flat.reshape(len(table), array.type.list_size)), dtype=object)
    return frame[list(schema.columns)]


def _problems(name: str, schema: Table, frame: pd.DataFrame, path: Path) -> Iterator[Problem]:
    for column, rule in schema.columns.items():
        if rule.kind == "f32":
            values = frame[column].to_numpy()
            yield (
                np.isinf(values) if rule.is_nullable else ~np.isfinite(values),
                f"{column} {{{column}}} is not finite",
            )
        if rule.low is not None:
            yield (frame[column] < rule.low).to_numpy(), f"{column} {{{column}}} is less than {rule.low:g}"
        if rule.high is not None:
            yield (frame[column] > rule.high).to_numpy(), f"{column} {{{column}}} is more than {rule.high:g}"
    repeated = frame.duplicated(list(schema.key)).to_numpy()
    yield repeated, ", ".join(f"{column} {{{column}}}" for column in schema.key) + " is given twice"
    if schema.is_sorted:
        yield _unsorted(frame, schema.key), f"rows are not sorted by {', '.join(schema.key)}"
    if name == "interactions":
        yield from _interaction_problems(frame, path)
    elif name in ("items", "users", "features"):
        id_column = schema.key[0]
        expected = np.arange(1, len(frame) + 1)
        yield (
            frame[id_column].to_numpy() != expected,
            f"{id_column} {{{id_column}}} leaves a gap: ids are 1, 2, 3, ...",
        )
    if name == "features":
        vectors = np.stack(frame["vector"].to_list()) if len(frame) else np.zeros((0, 1))
        is_stray = frame["is_missing"].to_numpy(bool) & (vectors != 0).any(axis=1)
        yield np.asarray(~np.isfinite(vectors).all(axis=1)), "vector has a value that is not finite"
        yield np.asarray(is_stray), "vector of a missing item is not zero"
    if name == "ranks":
        yield (
            (frame["rank_unmasked"] < frame["rank"]).to_numpy(),
            "rank_unmasked {rank_unmasked} is better than rank {rank}",
        )


def _unsorted(frame: pd.DataFrame, key: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: rows that ought to stand before the row above them. Keys are i32."""
    order = np.zeros(len(frame), dtype=np.int64)
    for column in key:
        order = (order << 32) + frame[column].to_numpy(np.int64)
    return np.diff(order, prepend=order[:1]) < 0


def _interaction_problems(frame: pd.DataFrame, path: Path) -> Iterator[Problem]:
    for column, other in [("item_id", "items"), ("user_id", "users")]:
        beside = path.parent / f"{other}.parquet"
        if beside.exists():
            limit = pq.read_metadata(beside).num_rows
            yield (frame[column] > limit).to_numpy(), f"{column} {{{column}}} is not in 1..{limit}"
    yield ~frame["split"].isin(SPLITS).to_numpy(), f"split '{{split}}' is not one of {', '.join(SPLITS)}"
    user = frame["user_id"].to_numpy()
    is_same_user = user[1:] == user[:-1]
    position = frame["position"].to_numpy()
    expected = np.concatenate(
        [np.zeros(min(1, len(frame)), np.int64), np.where(is_same_user, position[:-1] + 1, 0)]
    )
    yield (
        position != expected,
        "position {position} of user {user_id} leaves a gap: positions are 0, 1, 2, ...",
    )
    code = pd.Categorical(frame["split"], SPLITS).codes
    is_target = np.isin(code[1:], [SPLITS.index(name) for name in ONCE])
    is_late = is_same_user & ((code[1:] < code[:-1]) | ((code[1:] == code[:-1]) & is_target))
    yield (
        np.concatenate([np.zeros(min(1, len(frame)), bool), is_late]),
        "split '{split}' is out of order for its user",
    )
