"""Readers of raw files, one file per upstream format, found by the file's name.

A reader is a module with a `Config` (a frozen `Strict` dataclass with `name`) and
`read(folder, config) -> RawTables`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from ballast.errors import BallastError
from ballast.strict import parse

CONTENT = ("title", "description", "category", "price", "image")


@dataclass(frozen=True)
class RawTables:
    """What a reader found, before any filter.

    interactions: user (str), item (str), timestamp (Int64, all null or none), order (int: ties in time
    and, without times, the order itself), is_noise (boolean, nullable); optional `price` of that
    purchase. items: item (str, unique) and CONTENT, nullable, image relative to the raw folder; items
    that occur in no row have no content. notes: counts of oddities for the statistics.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame
    notes: dict[str, int] = field(default_factory=dict)


def names() -> list[str]:
    """The readers there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The reader module `name`; raises BallastError that lists the known ones."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise BallastError(f"unknown reader '{name}'; {hint}known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def configure(block: Mapping[str, Any], where: str) -> tuple[ModuleType, Any]:
    """The reader that a `reader:` block names and its Config; `where` is the block's key, for messages."""
    try:
        reader = load(str(block.get("name")))
    except BallastError as error:
        raise BallastError(f"{where}.name: {error}") from None
    return reader, parse(reader.Config, dict(block), where)


def read(folder: Path, block: Mapping[str, Any], where: str) -> RawTables:
    """Read `folder` as `block` (a `reader:` block) says; `where` is the block's key, for messages."""
    reader, config = configure(block, where)
    raw: RawTables = reader.read(folder, config)
    if raw.interactions.empty:
        raise BallastError(f"{folder}: no interactions were read; check the files and {where}")
    return raw


def without_times(user: Any, item: Any) -> pd.DataFrame:
    """An interactions frame in the order given, with neither times nor noise known."""
    frame = pd.DataFrame({"user": user, "item": item})
    frame["timestamp"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    frame["order"] = range(len(frame))
    frame["is_noise"] = pd.array([pd.NA] * len(frame), dtype="boolean")
    return frame
