"""Raw tables to prepared ones: filtered, split, numbered and counted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ballast.data.filtering import in_order, k_core
from ballast.data.noise import inject
from ballast.data.readers import CONTENT, RawTables
from ballast.data.splits import sampled, split
from ballast.errors import BallastError
from ballast.params import DatasetParams, Params

COLD_BELOW = 3
"""An item with fewer training interactions counts as cold."""


@dataclass(frozen=True)
class Prepared:
    """The tables `interactions`, `items` and `users` of schemas.py, and statistics for the report."""

    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    stats: dict[str, Any]


def dataset_params(params: Params, dataset: str) -> DatasetParams:
    """The block `datasets.<dataset>`; raises BallastError that lists the known ones."""
    if dataset not in params.datasets:
        raise BallastError(f"params.yaml: unknown dataset '{dataset}'; known: {', '.join(params.datasets)}")
    return params.datasets[dataset]


def prepare(dataset: str, raw: RawTables, params: DatasetParams) -> Prepared:
    """Sort, filter, check the expected counts, split, and number users and items from 1.

    Items are all that the filter keeps, also those that only occur in rows that the split drops: the
    shop has them. Noise is put in after that, so that it changes neither ids nor targets; users are sampled
    last. Raises BallastError if nothing is left or the counts are not the expected ones.
    """
    where = f"params.yaml: datasets.{dataset}"
    kept = k_core(in_order(raw.interactions), params.filter, where)
    _check_expected(kept, params.expected, where)
    rows = split(kept, params.split, where)
    item_ids, user_ids = _numbered(kept["item"]), _numbered(rows["user"])
    clean = _interactions(rows, user_ids, item_ids)
    noisy = clean if params.noise is None else inject(clean, params.noise, len(item_ids), where)
    interactions = noisy if params.sample is None else sampled(noisy, params.sample)
    is_train = interactions["split"] == "train"
    items = _items(raw, item_ids)
    counts = np.bincount(interactions.loc[is_train, "item_id"], minlength=len(items) + 1)
    items["n_train"] = counts[1:].astype(np.int32)
    if "price" in rows:
        # Only what was paid in training, by whomever: a later price would tell of the future.
        prices = rows.loc[rows["split"] == "train"].groupby("item")["price"].median()
        items["price"] = items["raw_item_id"].map(prices).astype(np.float32)
    users = pd.DataFrame({"user_id": user_ids.to_numpy(np.int32), "raw_user_id": user_ids.index.astype(str)})
    stats = _stats(params, interactions, items, raw.notes)
    if params.noise is not None:
        injected = (noisy["item_id"] != clean["item_id"]).sum() / max(1, (clean["split"] == "train").sum())
        stats["injected_noise_share"] = _rounded(injected)
    if params.sample is not None:
        stats["trained_users"] = int(interactions.loc[is_train, "user_id"].nunique())
    return Prepared(interactions, items, users, stats)


def _check_expected(kept: pd.DataFrame, expected: dict[str, int], where: str) -> None:
    found = {"users": kept["user"].nunique(), "items": kept["item"].nunique(), "interactions": len(kept)}
    for name, count in expected.items():
        if name not in found:
            raise BallastError(f"{where}.expected.{name}: unknown count; known: {', '.join(found)}")
        if found[name] != count:
            raise BallastError(
                f"{where}.expected.{name}: expected {count:,} {name} after the filter, "
                f"found {found[name]:,}; are the raw files another version?"
            )


def _numbered(raw_ids: pd.Series) -> pd.Series:
    """Ids 1, 2, 3, ... indexed by raw id: in numeric order where all are whole numbers, else alphabetic.

    The order is that of the ids, not of the rows, so another filter or split leaves it comparable.
    """
    unique = [str(raw_id) for raw_id in raw_ids.unique()]
    is_numeric = all(raw_id.isascii() and raw_id.isdigit() for raw_id in unique)
    ordered = sorted(unique, key=lambda raw_id: (int(raw_id), raw_id)) if is_numeric else sorted(unique)
    return pd.Series(np.arange(1, len(ordered) + 1, dtype=np.int32), index=ordered)


def _interactions(rows: pd.DataFrame, user_ids: pd.Series, item_ids: pd.Series) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "user_id": rows["user"].map(user_ids).to_numpy(np.int32),
            "item_id": rows["item"].map(item_ids).to_numpy(np.int32),
            "position": rows.groupby("user", sort=False).cumcount().to_numpy(np.int32),
            "timestamp": rows["timestamp"].astype("Int64"),
            "split": rows["split"],
            "is_noise": rows["is_noise"].astype("boolean"),
        }
    )
    return frame.sort_values(["user_id", "position"], kind="stable", ignore_index=True)


def _items(raw: RawTables, item_ids: pd.Series) -> pd.DataFrame:
    content = raw.items.set_index("item").reindex(item_ids.index)
    items = pd.DataFrame({"item_id": item_ids.to_numpy(np.int32), "raw_item_id": item_ids.index.astype(str)})
    for column in CONTENT:
        values = content[column].reset_index(drop=True)
        items[column] = values.astype(np.float32) if column == "price" else _text(values)
    return items


def _text(values: pd.Series) -> pd.Series:
    """Text stripped of white space at its ends; empty text is no text."""
    stripped = values.astype("str").str.strip()
    return stripped.mask(stripped == "")


def _stats(
    params: DatasetParams, interactions: pd.DataFrame, items: pd.DataFrame, notes: dict[str, int]
) -> dict[str, Any]:
    counts = interactions["split"].value_counts()
    lengths = interactions.groupby("user_id").size()
    noise = interactions["is_noise"]
    has_text = items["title"].notna() | items["description"].notna()
    return {
        "label": params.label,
        "terms": params.terms,
        "is_simulated": params.is_simulated,
        "split": params.split.kind,
        "users": len(lengths),
        "items": len(items),
        "interactions": len(interactions),
        **{name: int(counts.get(name, 0)) for name in ("train", "valid", "test")},
        "density": _rounded(len(interactions) / (len(lengths) * len(items))),
        "mean_length": _rounded(lengths.mean()),
        "median_length": _rounded(lengths.median()),
        "price_coverage": _rounded(items["price"].notna().mean()),
        "text_coverage": _rounded(has_text.mean()),
        "image_coverage": _rounded(items["image"].notna().mean()),
        "cold_item_share": _rounded((items["n_train"] < COLD_BELOW).mean()),
        "noise_share": _rounded(noise.mean()) if noise.notna().any() else None,
        "notes": notes,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
