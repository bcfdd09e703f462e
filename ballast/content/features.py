"""What a modality's encoder gives, and how good its space is."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Features:
    """One modality of a catalogue of N items, in the order of the items table.

    vectors: (N, F) float32, zero where missing. missing: (N,) bool. unreadable: what was there but could
    not be read, each also missing. record: what the encoder tells of itself for the report.
    """

    vectors: NDArray[np.float32]
    missing: NDArray[np.bool_]
    unreadable: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)


def scattered(vectors: NDArray[np.float32], rows: NDArray[np.int64], num_items: int) -> Features:
    """Features of all N items from `vectors` (P, F) of the items at `rows` (P,); the others are missing."""
    full = np.zeros((num_items, vectors.shape[1]), dtype=np.float32)
    full[rows] = vectors
    missing = np.ones(num_items, dtype=bool)
    missing[rows] = False
    return Features(full, missing)


def nearest(vectors: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """(R, k) rows of `vectors` (N, F) with the highest cosine to each of `rows` (R,), itself left out."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = np.empty((len(rows), k), dtype=np.int64)
    for start in range(0, len(rows), 1024):  # in chunks: (N, N) need not fit in memory
        chunk = rows[start : start + 1024]
        similarity = unit[chunk] @ unit.T  # (1024, N)
        similarity[np.arange(len(chunk)), chunk] = -np.inf
        top = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(similarity, top, axis=1), axis=1, kind="stable")
        found[start : start + 1024] = np.take_along_axis(top, order, axis=1)
    return found


def category_agreement(features: Features, categories: NDArray[np.object_], k: int = 5) -> dict[str, Any]:
    """How often an item's k nearest neighbours by cosine share its category, and how often chance would.

    Over the items that have both a vector and a category; chance is the probability that two different
    such items share one. Both are None where fewer than k + 1 items have both.
    """
    has_both = np.flatnonzero(
        ~features.missing & np.array([isinstance(name, str) for name in categories], bool)
    )
    if len(has_both) <= k:
        return {"k": k, "items": len(has_both), "agreement": None, "chance": None}
    vectors, names = features.vectors[has_both], categories[has_both].astype(str)
    same = names[nearest(vectors, np.arange(len(names)), k)] == names[:, None]  # (N, k)
    counts = np.unique(names, return_counts=True)[1].astype(float)
    chance = float((counts * (counts - 1)).sum() / (len(names) * (len(names) - 1)))
    return {
        "k": k,
        "items": len(names),
        "agreement": round(float(same.mean()), 4),
        "chance": round(chance, 4),
    }


def statistics(features: Features) -> dict[str, Any]:
    """Dimension, coverage and norms, for the stage's record."""
    count = len(features.missing)
    present = ~features.missing
    norms = np.linalg.norm(features.vectors[present].astype(np.float64), axis=1)
    quantiles = np.quantile(norms, [0, 0.25, 0.5, 0.75, 1]) if len(norms) else []
    return {
        "items": count,
        "dimension": features.vectors.shape[1],
        "missing": int(features.missing.sum()),
        "coverage": round(float(present.mean()), 4) if count else 0.0,
        "unreadable": {"count": len(features.unreadable), "names": list(features.unreadable[:5])},
        "norm_quantiles": {
            name: round(float(value), 6)
            for name, value in zip(("min", "25%", "median", "75%", "max"), quantiles, strict=False)
        },
    }
