"""Noise in test-time histories: insert, replace, delete and shuffle, at a share of the positions.

A budget b changes exactly round(b * length) positions, halves up, and at least one (shuffle: two) where
b > 0 and the history is long enough; what was really changed is returned as `size`, since short histories
cannot meet every budget. Positions are drawn without replacement: drawing them with replacement, as the
ATSRec release does, makes a nominal 5 % less than 1 % in fact. `replace` and `delete` also come with a place,
such as `replace-last`: their positions are then the first, middle or last ones of the history, one after the
other, and nothing but new items is drawn.

Every draw is a hash of (seed, kind, purpose, user id, position). So the noise is the same for every
method and every order of users, one user's does not depend on another's, no training generator is
touched, and the positions changed at one budget are among those changed at a larger one.
"""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Corrupted:
    """Changed histories. size: (U,) float32 share of the original length that really changed; for
    insert, items added over original length."""

    store: SequenceStore
    size: Tensor

    @property
    def hash(self) -> str:
        """SHA-256 of users and histories: equal for two methods only if they met the same noise."""
        digest = hashlib.sha256()
        for part in (self.store.user_ids, self.store.offsets, self.store.items):
            digest.update(part.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Noise:
    """Ragged histories in numpy, and the draws that belong to them.

    items: (N,) all items, user after user. lengths, users, targets: (U,); target 0 where there is none.
    """

    items: Integers
    lengths: Integers
    users: Integers
    targets: Integers
    num_items: int
    seed: int
    kind: str
    place: str = ""
    """Where positions are changed: `first`, `middle` or `last`; empty for anywhere."""

    def draw(self, purpose: str, rows: Integers, places: Integers) -> NDArray[np.uint64]:
        """(M,) random bits for places in the histories of rows."""
        return hashed(self.seed, f"{self.kind}/{purpose}", self.users[rows], places)

    def chosen(self, rows: Integers, places: Integers, counts: Integers) -> Integers:
        """Indices into the M places (row after row, 0.. in each) of `counts` (U,) a row, drawn without
        replacement, or the nearest to `place`; in this order, so that fewer are a prefix of more."""
        order = np.lexsort((self._priority(rows, places), rows))
        # Sorting keeps the rows' segments, so `places` also counts along the sorted ones.
        return order[places < counts[rows]]

    def _priority(self, rows: Integers, places: Integers) -> NDArray[Any]:
        """(M,) numbers; in each row the places with the lowest are changed first."""
        if not self.place:
            return self.draw("positions", rows, places)
        if self.place == "middle":
            return np.abs(2 * places - (self.lengths[rows] - 1))
        return places if self.place == "first" else -places

    def new_items(self, rows: Integers, places: Integers) -> Integers:
        """(M,) items uniform over the catalogue without the row's history and target, without rejection:
        the r-th free item is r plus the number of known items at or below it."""
        row_of, _ = spread(self.lengths)
        everyone = np.arange(len(self.lengths))[self.targets > 0]
        known = np.unique(
            np.concatenate([row_of, everyone]) * (self.num_items + 1)
            + np.concatenate([self.items, self.targets[self.targets > 0]])
        )
        known_row, known_item = np.divmod(known, self.num_items + 1)
        counts = np.bincount(known_row, minlength=len(self.lengths))
        starts = np.cumsum(counts) - counts
        free = self.num_items - counts
        if len(rows) and free[rows].min() == 0:
            user = self.users[rows[np.argmin(free[rows])]]
            raise BallastError(
                f"user {user} has met every item: there is none left to {self.kind}; use a larger catalogue"
            )
        uniform = (self.draw("items", rows, places) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        number = 1 + (uniform * free[rows]).astype(np.int64)
        # Free items below each known one, plus 1: sorted within a row, hence over all of them.
        below = known_row * (self.num_items + 2) + known_item - (np.arange(len(known)) - starts[known_row])
        skipped = np.searchsorted(below, rows * (self.num_items + 2) + number, side="right") - starts[rows]
        return number + skipped


def corrupt(
    store: SequenceStore,
    kind: str,
    budget: float,
    seed: int,
    num_items: int,
    avoid_targets: Tensor | None = None,
) -> Corrupted:
    """`store` with a share `budget` (0..1) of each history's positions changed, on the same device.

    insert: new items between, before or after the old ones, in different gaps. replace: new items in
    place of old ones. New items are uniform over 1..num_items without the user's history and, if
    `avoid_targets` (U,) int64 is given, without the target. delete: at least one item stays. shuffle: the
    chosen positions pass their items on in a random cycle, so that each gets another position's. Placed kinds
    (`replace-last`) change the positions next to that end, or to the middle.
    A budget of 0 and an empty history change nothing. Raises BallastError on an unknown kind or budget.
    """
    if kind not in KINDS:
        raise BallastError(f"robustness.kinds: unknown corruption '{kind}'; known: {', '.join(KINDS)}")
    if not 0 <= budget <= 1:
        raise BallastError(f"robustness.budgets: {budget} is not a share between 0 and 1")
    targets = torch.zeros_like(store.user_ids) if avoid_targets is None else avoid_targets
    lengths, users = store.lengths.cpu().numpy(), store.user_ids.cpu().numpy()
    change, _, place = kind.partition("-")
    noise = _Noise(
        store.items.cpu().numpy(), lengths, users, targets.cpu().numpy(), num_items, seed, change, place
    )
    items, new_lengths, changed = _CHANGES[change](noise, budget)
    offsets = np.concatenate([[0], np.cumsum(new_lengths)])
    device = store.items.device
    changed_store = SequenceStore(torch.from_numpy(items), torch.from_numpy(offsets), store.user_ids).to(
        device
    )
    size = torch.from_numpy(changed / np.maximum(1, lengths)).to(torch.float32)
    return Corrupted(changed_store, size)


def sample_users(users: Integers, count: int, seed: int) -> Integers:
    """At most `count` of the (U,) user ids, sorted; a smaller sample is part of a larger one."""
    draws = hashed(seed, "users", users, np.zeros_like(users))
    return np.sort(users[np.argsort(draws, kind="stable")[:count]])


def hashed(seed: int, purpose: str, users: Integers, places: Integers) -> NDArray[np.uint64]:
    """(M,) uniform 64-bit numbers, a pure function of the four arguments.

    Each part is added to the state and mixed by the finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA
    2014), a counter-based generator: a number can be had without those before it.
    """
    state = np.zeros(len(users), dtype=np.uint64)
    for part in (seed & (2**64 - 1), zlib.crc32(purpose.encode()), users, places):
        state += np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def spread(lengths: Integers) -> tuple[Integers, Integers]:
    """(N,) row of each position of ragged rows, and (N,) its place in the row.

    >>> spread(np.array([2, 0, 1]))
    (array([0, 0, 2]), array([0, 1, 0]))
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _counts(lengths: Integers, budget: float, least: int = 1) -> Integers:
    """(U,) positions to change; none where the history is shorter than `least`."""
    # The small term makes 0.29 * 50 the half that it is on paper.
    counts = np.floor(budget * lengths + 0.5 + 1e-9).astype(np.int64)
    return np.where(lengths >= least, np.maximum(counts, least if budget > 0 else 0), 0)


def _insert(noise: _Noise, budget: float) -> tuple[Integers, Integers, Integers]:
    counts = _counts(noise.lengths, budget)
    gap_rows, gaps = spread(noise.lengths + 1)  # gap g is before item g, the last one after all items
    chosen = noise.chosen(gap_rows, gaps, counts)
    new = noise.new_items(gap_rows[chosen], gaps[chosen])
    rows, places = spread(noise.lengths)
    all_rows = np.concatenate([gap_rows[chosen], rows])
    order = np.lexsort((np.concatenate([2 * gaps[chosen], 2 * places + 1]), all_rows))
    return np.concatenate([new, noise.items])[order], noise.lengths + counts, counts


def _replace(noise: _Noise, budget: float) -> tuple[Integers, Integers, Integers]:
    counts = _counts(noise.lengths, budget)
    rows, places = spread(noise.lengths)
    chosen = noise.chosen(rows, places, counts)
    items = noise.items.copy()
    items[chosen] = noise.new_items(rows[chosen], places[chosen])
    return items, noise.lengths, counts


def _delete(noise: _Noise, budget: float) -> tuple[Integers, Integers, Integers]:
    counts = np.minimum(_counts(noise.lengths, budget), np.maximum(noise.lengths - 1, 0))
    chosen = noise.chosen(*spread(noise.lengths), counts)
    return np.delete(noise.items, chosen), noise.lengths - counts, counts


def _shuffle(noise: _Noise, budget: float) -> tuple[Integers, Integers, Integers]:
    counts = _counts(noise.lengths, budget, least=2)
    rows, places = spread(noise.lengths)
    chosen = noise.chosen(rows, places, counts)
    # Chosen positions stand in random order; each takes the item of the next one of its row.
    cycle_rows, steps = spread(counts)
    following = (np.cumsum(counts) - counts)[cycle_rows] + (steps + 1) % counts[cycle_rows]
    items = noise.items.copy()
    items[chosen] = noise.items[chosen[following]]
    changed = np.bincount(rows, weights=items != noise.items, minlength=len(counts)).astype(np.int64)
    return items, noise.lengths, changed


_CHANGES: dict[str, Callable[[_Noise, float], tuple[Integers, Integers, Integers]]] = {
    "insert": _insert,
    "replace": _replace,
    "delete": _delete,
    "shuffle": _shuffle,
}
PLACES = ("first", "middle", "last")
PLACED = tuple(f"{change}-{place}" for change in ("replace", "delete") for place in PLACES)
KINDS = (*_CHANGES, *PLACED)
