"""H&M purchases in the layout of the Kaggle competition "H&M Personalized Fashion Recommendations".

transactions_train.csv, articles.csv (either also as .gz or .zip) and images/NNN/NNNxxxxxxx.jpg, where
NNN are the first digits of the article id. Within a day the order is that of the file. A customer's
repeat purchases of one article are dropped, the first one kept, before the k-core. The price is what was
paid, in the competition's normalised units; preparation takes its median over an item's training rows.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ballast.data.filtering import first_of_each_item
from ballast.data.readers import RawTables
from ballast.errors import BallastError
from ballast.strict import Strict

_SUFFIXES = ("", ".gz", ".zip")
_TRANSACTIONS = ["t_dat", "customer_id", "article_id", "price"]
_ARTICLES = [
    "article_id",
    "prod_name",
    "product_type_name",
    "graphical_appearance_name",
    "colour_group_name",
    "department_name",
    "index_name",
    "detail_desc",
]


@dataclass(frozen=True, kw_only=True)
class Config(Strict):
    """`domain` is a value of index_name, such as "Menswear"; None takes all.

    `date_from` and `date_to` (YYYY-MM-DD, both included) cut a window out of the two years.
    """

    name: str
    domain: str | None = None
    date_from: str | None = None
    date_to: str | None = None


def read(folder: Path, config: Config) -> RawTables:
    """Purchases and articles of one domain in one window of time."""
    articles = _articles(folder, config)
    purchases = _purchases(folder, config)
    purchases = purchases[purchases["article_id"].isin(articles["article_id"])]
    frame = pd.DataFrame(
        {
            "user": purchases["customer_id"],
            "item": purchases["article_id"],
            "timestamp": pd.to_datetime(purchases["t_dat"])
            .astype("datetime64[s]")
            .astype("int64")
            .astype("Int64"),
            "order": purchases.index,
            "is_noise": pd.array([pd.NA] * len(purchases), dtype="boolean"),
            "price": purchases["price"],
        }
    )
    interactions = first_of_each_item(frame)
    items, missing_images = _items(folder, articles)
    notes = {
        "repeat_purchases_dropped": len(frame) - len(interactions),
        "articles_without_image": missing_images,
    }
    return RawTables(interactions, items, notes)


def _found(folder: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    raise BallastError(
        f"{folder / name}: not found, nor with {' or '.join(_SUFFIXES[1:])}; run the fetch stage"
    )


def _csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """The columns as text: an article id keeps its leading 0."""
    try:
        return pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False, na_values=[""])
    except ValueError as error:  # a missing column, or a row that cannot be parsed
        raise BallastError(
            f"{path}: not in the competition's layout: {' '.join(str(error).split())}"
        ) from None


def _articles(folder: Path, config: Config) -> pd.DataFrame:
    path = _found(folder, "articles.csv")
    articles = _csv(path, _ARTICLES)
    if config.domain is None:
        return articles
    domains = sorted(articles["index_name"].dropna().unique())
    if config.domain not in domains:
        raise BallastError(f"{path}: no index_name is '{config.domain}'; there are: {', '.join(domains)}")
    return articles[articles["index_name"] == config.domain]


def _purchases(folder: Path, config: Config) -> pd.DataFrame:
    path = _found(folder, "transactions_train.csv")
    for key, date in [("date_from", config.date_from), ("date_to", config.date_to)]:
        if date is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
            raise BallastError(f"reader.{key}: '{date}' is not a date such as '2020-09-16'")
    purchases = _csv(path, _TRANSACTIONS)
    is_bad = purchases.isna().any(axis=1) | ~purchases["t_dat"].str.fullmatch(r"\d{4}-\d{2}-\d{2}").fillna(
        False
    )
    price = pd.to_numeric(purchases["price"], errors="coerce")
    is_bad |= price.isna() | (price < 0)
    if is_bad.any():
        row = int(is_bad.to_numpy().argmax())
        raise BallastError(
            f"{path}: line {row + 2}: not a purchase: {', '.join(map(str, purchases.iloc[row]))}"
        )
    purchases["price"] = price
    is_inside = purchases["t_dat"].between(config.date_from or "0000-00-00", config.date_to or "9999-99-99")
    return purchases[is_inside]


def _items(folder: Path, articles: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    ids = articles["article_id"]
    known = {picture.stem for picture in (folder / "images").glob("*/*.jpg")}
    images = ("images/" + ids.str[:3] + "/" + ids + ".jpg").where(ids.isin(known))
    # Colour and pattern are facts of the catalogue, which the free text often leaves out.
    looks = (
        "Colour: "
        + articles["colour_group_name"]
        + ". Pattern: "
        + articles["graphical_appearance_name"]
        + "."
    )
    items = pd.DataFrame(
        {
            "item": ids,
            "title": articles["prod_name"],
            "description": (articles["detail_desc"].fillna("") + " " + looks.fillna("")).str.strip(),
            "category": articles["product_type_name"],
            "price": None,
            "image": images,
        }
    )
    return items, int(images.isna().sum())
