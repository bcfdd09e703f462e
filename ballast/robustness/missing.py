"""Missing modalities: a share of the items loses its text, picture or price after training.

Items are dropped in the order of a hash of (seed, modality, item), so that they are the same for every
method, and those dropped at one share are among those dropped at a larger one. A dropped item's row becomes
zero, as the rows of items are that came without the modality; where a method also marks such items, it
says where in `missing_marks`: modality to the place of the marks and the value that means missing, such as
`{"text": ("present[0:1]", 0.0)}`. Of a modality that is no surface, such as codes, the marks alone are set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.robustness.corruption import hashed
from ballast.robustness.surface import located, surface


@dataclass(frozen=True)
class Dropped:
    """A method without some content. overrides: for `call_with` and `Overridden`; items: (K,) int64 ids
    that lost it; size: their share of the items that had it."""

    overrides: dict[str, Tensor]
    items: Tensor
    size: float


def dropped_items(has: Tensor, modality: str, share: float, seed: int) -> Tensor:
    """(K,) int64 ids, sorted: round(share * n) of the n items that have the modality, halves up.

    has: (I,) bool, row 0 (padding) False. Raises BallastError on a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise BallastError(f"robustness.missing: {share} is not a share between 0 and 1")
    items = np.flatnonzero(has.cpu().numpy()).astype(np.int64)
    order = np.argsort(hashed(seed, f"missing {modality}", items, np.zeros_like(items)), kind="stable")
    count = int(np.floor(share * len(items) + 0.5 + 1e-9))
    return torch.from_numpy(np.sort(items[order[:count]]))


def drop(method: Method, modality: str, share: float, seed: int) -> Dropped:
    """`method` where `share` of the items with the modality have lost it; a share of 0 changes nothing.

    Raises BallastError where the method declares neither a surface nor marks of that name.
    """
    marks = _marks(method)
    if modality in method.surfaces or modality not in marks:
        target = surface(method, modality)
        has = target.is_real
    else:
        target = None
        place, value = marks[modality]
        _, whole, columns = located(method, place)
        has = (whole[:, columns] != value).any(dim=1)
        has[0] = False
    items = dropped_items(has, modality, share, seed)
    rows = items.to(has.device)
    overrides = {} if target is None else target.without(rows)
    if modality in marks:
        place, value = marks[modality]
        tensor, whole, columns = located(method, place)
        marked = overrides.get(tensor, whole).clone()
        marked[rows, columns] = torch.tensor(value, dtype=marked.dtype, device=marked.device)
        overrides[tensor] = marked
    count = int(has.sum())
    return Dropped(overrides, items, len(items) / count if count else 0.0)


def losable(method: Method, modalities: Sequence[str]) -> list[str]:
    """Those of `modalities` that the method knows its items by."""
    return [name for name in modalities if name in method.surfaces or name in _marks(method)]


def _marks(method: Method) -> dict[str, tuple[str, float]]:
    return getattr(method, "missing_marks", {})
