"""MovieLens-100K: u.data, u.item and, where there are any, posters/<item id>.jpg.

Harper and Konstan, The MovieLens datasets, TiiS 2015. Every rating, low or high, counts as an
interaction. Many ratings share a second: ties keep the order of the file, which is not one of time.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ballast.data.readers import RawTables
from ballast.errors import BallastError
from ballast.strict import Strict

GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_MOVIE = ["item", "title", "released", "video_released", "url", *GENRES]


@dataclass(frozen=True, kw_only=True)
class Config(Strict):
    """The names of the files are those of the archive."""

    name: str


def read(folder: Path, config: Config) -> RawTables:
    """All ratings and films."""
    ratings = _table(folder / "u.data", "\t", ["user", "item", "rating", "timestamp"], "utf-8")
    time = pd.to_numeric(ratings["timestamp"], errors="coerce")
    is_bad = ratings.isna().any(axis=1) | time.isna()
    if is_bad.any():
        row = int(is_bad.to_numpy().argmax())
        raise BallastError(
            f"{folder / 'u.data'}: line {row + 1}: expected user, item, rating and time, tab-separated"
        )
    interactions = ratings[["user", "item"]].assign(
        timestamp=time.astype("Int64"),
        order=range(len(ratings)),
        is_noise=pd.array([pd.NA] * len(ratings), dtype="boolean"),
    )
    films = _table(folder / "u.item", "|", _MOVIE, "latin-1")
    posters = {poster.stem for poster in (folder / "posters").glob("*.jpg")}
    items = pd.DataFrame(
        {
            "item": films["item"],
            "title": films["title"].mask(films["title"] == "unknown"),
            "description": None,
            "category": _categories(films),
            "price": None,
            "image": ("posters/" + films["item"] + ".jpg").where(films["item"].isin(posters)),
        }
    )
    return RawTables(interactions, items, {"films_without_poster": int(items["image"].isna().sum())})


def _table(path: Path, separator: str, names: list[str], encoding: str) -> pd.DataFrame:
    if not path.is_file():
        raise BallastError(f"{path}: not found; run the fetch stage")
    try:
        return pd.read_csv(
            path,
            sep=separator,
            names=names,
            dtype=str,
            encoding=encoding,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_values=[""],
        )
    except ValueError as error:
        raise BallastError(
            f"{path}: not in MovieLens-100K's layout: {' '.join(str(error).split())}"
        ) from None


def _categories(films: pd.DataFrame) -> pd.Series:
    """Genres in the archive's order, such as "Animation, Children's, Comedy"; none where unknown."""
    named = GENRES[1:]
    flags = (films[named] == "1").to_numpy()
    joined = [", ".join(genre for genre, is_set in zip(named, row, strict=True) if is_set) for row in flags]
    return pd.Series(joined, index=films.index, dtype=str)
