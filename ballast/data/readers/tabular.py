"""Your own data: one table of interactions and, where there is content, one of items.

CSV (also .gz or .zip) or parquet. Lines are counted as a person counts them in the file, the header
being line 1; rows of a parquet file count from 1. By default the layout is that of the simulated shop.
"""

import difflib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ballast.data.filtering import first_of_each_item
from ballast.data.readers import CONTENT, RawTables
from ballast.errors import BallastError
from ballast.strict import Strict

# What stands between the cells of files that call themselves CSV.
SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True)
class Config(Strict):
    """File names, and which column is what.

    `timestamp` holds whole or decimal numbers or ISO dates; `order` any number that grows with time,
    and settles ties; with neither (both null) rows are in time order. The optional columns (`is_noise`
    and content) are used under their own names where they exist; one named here must exist. Content is
    absent with `items: null`. `keeps_repeats` False keeps a user's first interaction with an item only.
    """

    name: str
    interactions: str = "interactions.parquet"
    user: str = "user"
    item: str = "item"
    timestamp: str | None = "timestamp"
    order: str | None = None
    is_noise: str | None = None
    items: str | None = "items.parquet"
    items_item: str = "item"
    title: str | None = None
    description: str | None = None
    category: str | None = None
    price: str | None = None
    image: str | None = None
    separator: str = ","
    keeps_repeats: bool = False


@dataclass(frozen=True)
class _Source:
    """A raw table with what is needed to say where in its file a row stands."""

    path: Path
    frame: pd.DataFrame
    is_text: bool

    def column(self, name: str) -> pd.Series:
        """The column `name`; raises BallastError with the columns there are and the closest one."""
        if name not in self.frame:
            found = [str(column) for column in self.frame.columns]
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            other = next((mark for mark in SEPARATORS if len(found) == 1 and mark in found[0]), None)
            if other is not None:
                hint = f"; the header is one column: write `separator: {other!r}` under the reader"
            raise BallastError(f"{self.path}: column '{name}' is missing; found: {', '.join(found)}{hint}")
        return self.frame[name]

    def optional(self, name: str, chosen: str | None) -> pd.Series | None:
        """The column chosen in the config, else the one called `name` where there is one."""
        return self.column(chosen or name) if chosen or name in self.frame else None

    def place(self, row: int) -> str:
        """The row at position `row` as a person finds it; quoted cells may span lines."""
        if not self.is_text:
            return f"row {row + 1}"
        above = self.frame.iloc[:row]
        breaks = sum(int(above[column].str.count("\n").sum()) for column in above)
        return f"line {int(self.frame.index[row]) + 2 + breaks}"

    def refuse(self, is_bad: pd.Series, name: str, expected: str) -> None:
        """Raise BallastError for the first row where `is_bad`, if there is one."""
        if is_bad.any():
            row = int(is_bad.to_numpy().argmax())
            value = self.frame[name].iloc[row]
            found = "is empty" if pd.isna(value) else f"'{value}' is not {expected}"
            raise BallastError(f"{self.path}: {self.place(row)}: {name} {found}")


def read(folder: Path, config: Config) -> RawTables:
    """Both tables, checked; raises BallastError that names the file and the line of the first bad row."""
    source = _open(folder / config.interactions, config.separator, "check `interactions` of the reader")
    interactions = _interactions(source, config)
    notes = {}
    if not config.keeps_repeats:
        before = len(interactions)
        interactions = first_of_each_item(interactions)
        notes["repeats_dropped"] = before - len(interactions)
    if config.items is None:
        catalogue = pd.DataFrame({"item": interactions["item"].unique()})
        for column in CONTENT:
            catalogue[column] = None
        return RawTables(interactions, catalogue, notes)
    hint = "check `items` of the reader, or write `items: null` if there is no such table"
    items, missing_images = _items(_open(folder / config.items, config.separator, hint), folder, config)
    notes["missing_image_files"] = missing_images
    met = interactions["item"].drop_duplicates()
    is_known = met.isin(items["item"])
    if not is_known.any():
        raise BallastError(
            f"{folder / config.items}: no item of {config.interactions} is in this table; ids there are such "
            f"as '{met.iloc[0]}', here such as '{items['item'].iloc[0]}': write them alike"
        )
    notes["items_without_content"] = int((~is_known).sum())
    return RawTables(interactions, items, notes)


def _open(path: Path, separator: str, hint: str) -> _Source:
    if not path.is_file():
        raise BallastError(f"{path}: not found; {hint}")
    is_text = path.suffix != ".parquet"
    try:
        frame = _csv(path, separator) if is_text else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise BallastError(f"{path}: the file is empty") from None
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise BallastError(f"{path}: not in UTF-8 ({byte}); save the file as UTF-8 and run again") from None
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise BallastError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if is_text and not pd.api.types.is_integer_dtype(frame.index):
        raise BallastError(f"{path}: line 2: more cells than the header has columns; check `separator`")
    if frame.empty:
        raise BallastError(f"{path}: there are no rows")
    return _Source(path, frame, is_text)


def _csv(path: Path, separator: str) -> pd.DataFrame:
    """All cells as text, so that ids keep leading zeros and one may be "NA"; blank lines go but count."""
    frame = pd.read_csv(
        path,
        sep=separator,
        dtype=str,
        encoding="utf-8-sig",
        skip_blank_lines=False,
        keep_default_na=False,
        na_values=[""],
    )
    return frame.dropna(how="all")


def _ids(source: _Source, name: str) -> pd.Series:
    values = source.column(name)
    source.refuse(values.isna(), name, "an id")
    if pd.api.types.is_float_dtype(values):  # whole numbers that once stood beside an empty cell
        source.refuse(values % 1 != 0, name, "a whole number or text")
        values = values.astype(np.int64)
    return values.astype(str)


def _interactions(source: _Source, config: Config) -> pd.DataFrame:
    frame = pd.DataFrame({"user": _ids(source, config.user), "item": _ids(source, config.item)})
    frame["timestamp"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    keys = [np.arange(len(frame))]
    if config.order is not None:
        keys.append(_numbers(source, config.order).to_numpy())
    if config.timestamp is not None:
        frame["timestamp"], precise = _times(source, config.timestamp)
        keys.append(precise)
    # The table keeps whole seconds; rows stand in the order of the full time, then `order`, then the file.
    order = np.empty(len(frame), dtype=np.int64)
    order[np.lexsort(keys)] = np.arange(len(frame))
    frame["order"] = order
    frame["is_noise"] = _flags(source, "is_noise", config.is_noise)
    return frame.reset_index(drop=True)


def _numbers(source: _Source, name: str, expected: str = "a number") -> pd.Series:
    """A column in which every row must have a finite number."""
    numbers = pd.to_numeric(source.column(name), errors="coerce")
    source.refuse(numbers.isna() | np.isinf(numbers), name, expected)
    return numbers


def _times(source: _Source, name: str) -> tuple[pd.Series, np.ndarray]:
    """Times in whole seconds (numbers: in their own unit, rounded down), and precise enough to sort by."""
    values = source.column(name)
    expected = "a number or an ISO date such as 2024-01-31 or 2024-01-31T18:30:00"
    is_date = pd.api.types.is_datetime64_any_dtype(values)
    if not is_date and pd.to_numeric(values, errors="coerce").notna().sum() * 2 >= len(values):
        numbers = _numbers(source, name, expected)
        return np.floor(numbers).astype("Int64"), numbers.to_numpy()
    dates = pd.to_datetime(values, errors="coerce", utc=True, format=None if is_date else "ISO8601")
    source.refuse(dates.isna(), name, expected)
    precise = dates.astype("datetime64[ns, UTC]").astype(np.int64)
    return (precise // 10**9).astype("Int64"), precise.to_numpy()


def _flags(source: _Source, name: str, chosen: str | None) -> pd.Series:
    """A nullable yes-or-no column, all empty where the table has none."""
    values = source.optional(name, chosen)
    if values is None:
        return pd.Series(pd.NA, index=source.frame.index, dtype="boolean")
    words = values.astype("str").str.strip().str.lower()
    flags = words.map({"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False})
    source.refuse(flags.isna() & values.notna(), chosen or name, "true, false, 1 or 0")
    return flags.astype("boolean")


def _items(source: _Source, folder: Path, config: Config) -> tuple[pd.DataFrame, int]:
    """The item table, and how many pictures that it names are not there."""
    items = pd.DataFrame({"item": _ids(source, config.items_item)})
    repeated = items["item"].duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        first = int((items["item"] == items["item"].iloc[row]).to_numpy().argmax())
        raise BallastError(
            f"{source.path}: {source.place(row)}: item '{items['item'].iloc[row]}' was already given in "
            f"{source.place(first)}"
        )
    for name in CONTENT:
        chosen: str | None = getattr(config, name)
        values = source.optional(name, chosen)
        if values is None:
            items[name] = None
        elif name == "price":
            prices = pd.to_numeric(values, errors="coerce")
            is_bad = (prices.isna() & values.notna()) | (prices < 0) | np.isinf(prices)
            source.refuse(is_bad, chosen or name, "a finite price of 0 or more")
            items[name] = prices
        else:
            items[name] = values.astype("str")
    images = items["image"].dropna()
    source.refuse(
        items["image"].str.startswith("/").fillna(False).astype(bool) if len(images) else repeated,
        config.image or "image",
        "a path relative to the raw folder",
    )
    is_there = images.map(lambda image: (folder / image).is_file()).astype(bool)
    items["image"] = items["image"].where(items["image"].isin(images[is_there]))
    return items.reset_index(drop=True), int((~is_there).sum())
