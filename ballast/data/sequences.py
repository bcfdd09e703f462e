"""The ragged sequence store: every user's items in one flat tensor, and batches padded by need.

Only about a tenth of the positions are real when Beauty's histories are padded to 50, so batches are
made of users of like length and padded to their own longest history.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

# Batches that are sorted by length together: more means less padding, fewer means more mixing.
BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class Batch:
    """Left-padded histories of B users.

    history: (B, L) int64 item ids, 0 where padded, oldest first. targets: (B, L) int64, the item that
    follows each position, 0 where there is none to learn (training only). user_id: (B,) int64.
    """

    user_id: Tensor
    history: Tensor
    targets: Tensor | None = None

    def replaced(self, **changes: Tensor) -> "Batch":
        """A copy with some fields exchanged; the original stays as it is."""
        return replace(self, **changes)


@dataclass(frozen=True)
class SequenceStore:
    """Histories of U users, oldest item first.

    items: (N,) int64 item ids of all users, user after user. offsets: (U + 1,) int64, row r owns
    items[offsets[r]:offsets[r + 1]]. user_ids: (U,) int64. All on one device.
    """

    items: Tensor
    offsets: Tensor
    user_ids: Tensor

    @classmethod
    def from_interactions(
        cls, frame: pd.DataFrame, splits: Sequence[str], user_ids: np.ndarray | None = None
    ) -> "SequenceStore":
        """The interactions of these splits; rows for `user_ids` (sorted), or for every user that has any."""
        frame = frame[frame["split"].isin(list(splits))]
        users = frame["user_id"].to_numpy()
        if user_ids is None:
            user_ids = np.unique(users)
        wanted = np.isin(users, user_ids)
        counts = pd.Series(users[wanted]).value_counts().reindex(user_ids, fill_value=0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(counts)])
        items = frame["item_id"].to_numpy()[wanted]
        return cls(
            torch.from_numpy(items.astype(np.int64)),
            torch.from_numpy(offsets.astype(np.int64)),
            torch.from_numpy(np.asarray(user_ids).astype(np.int64)),
        )

    def to(self, device: torch.device) -> "SequenceStore":
        """The same store on a device."""
        return SequenceStore(self.items.to(device), self.offsets.to(device), self.user_ids.to(device))

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> Tensor:
        """(U,) int64 number of items of each row."""
        return self.offsets.diff()

    def histories(self, rows: Tensor, max_len: int | None = None, length: int | None = None) -> Tensor:
        """(B, L) int64 most recent items of these rows, left-padded with 0.

        L is the longest of these histories, at most `max_len` and at least 1, or `length` where the caller
        knows it: to look it up, a GPU would have to be waited for.
        """
        end = self.offsets[rows + 1]
        start = self.offsets[rows]
        if length is None:
            length = int((end - start).max()) if len(rows) else 0
            length = max(1, length if max_len is None else min(length, max_len))
        place = end[:, None] - length + torch.arange(length, device=end.device)  # (B, L)
        is_real = place >= start[:, None]
        if len(self.items) == 0:
            return torch.zeros_like(place)
        return self.items[place.clamp(min=0)] * is_real


def training_batches(
    store: SequenceStore,
    batch_size: int,
    max_len: int,
    rng: torch.Generator,
    share: tuple[int, int] = (0, 1),
    with_first: bool = False,
) -> Iterator[Batch]:
    """One epoch: every user with at least two items once, all positions as targets, none dropped.

    Users are shuffled, sorted by length within groups of batches, and the batches shuffled again, so
    that neither the order nor the company of a user is the same in two epochs. `batch_size` is users a
    batch on average: batches are cut to hold about equally many targets, since a batch of `batch_size`
    short histories would weigh its few targets as much as a batch of long ones weighs its many. Of each
    batch, process `share[0]` of `share[1]` gets every share[1]-th user; that may be none.
    `with_first` makes first items targets as well, after an empty history, so that users with one item take
    part.
    """
    first = int(with_first)
    lengths = store.lengths.clamp(max=max_len + 1).cpu()
    # A lone item has nothing before it to learn from, unless first items are targets.
    rows = torch.nonzero(lengths >= 2 - first).squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=rng)]
    count = max(1, math.ceil(len(rows) / batch_size))
    group = torch.arange(len(rows)) // (batch_size * BATCHES_SORTED_TOGETHER)
    rows = rows[torch.argsort(group * (max_len + 2) + lengths[rows], stable=True)]
    targets = (lengths[rows] - 1 + first).cumsum(0)
    batch_of_row = (targets - 1) * count // targets[-1:].clamp(min=1)
    batches = rows.split(torch.bincount(batch_of_row, minlength=count).tolist())
    for i in torch.randperm(count, generator=rng).tolist():
        if len(batches[i]) == 0:  # one history longer than a whole batch's share
            continue
        longest = int(lengths[batches[i]].max()) + first
        chosen = batches[i][share[0] :: share[1]].to(store.items.device)
        items = store.histories(chosen, length=longest)  # (B, L + 1)
        history = items[:, :-1]
        following = items[:, 1:]
        if not with_first:  # a first item has no history, hence is no target
            following = following * (history != 0)
        yield Batch(user_id=store.user_ids[chosen], history=history, targets=following)


def sample_negatives(
    shape: tuple[int, ...],
    num_items: int,
    exclude: Tensor,
    rng: torch.Generator,
    redraws: int = 4,
    counts: Tensor | None = None,
) -> Tensor:
    """Item ids 1..num_items of `shape` (M, N), redrawn where they are in `exclude` (M, X).

    Drawn uniformly, or in proportion to `counts` (I,) float32, whose entry 0 is 0. After `redraws` rounds
    the few collisions left stay: their share, if uniform, is about (X / num_items)^redraws.
    """
    device = exclude.device

    def draw() -> Tensor:
        if counts is None:
            return torch.randint(1, num_items + 1, shape, generator=rng, device=device)
        return torch.multinomial(counts, math.prod(shape), replacement=True, generator=rng).view(shape)

    negatives = draw()
    for _ in range(redraws):
        hit = (negatives[:, :, None] == exclude[:, None, :]).any(-1)  # (M, N)
        if device.type == "cpu" and not hit.any():  # looking would make a GPU wait
            break
        negatives = torch.where(hit, draw(), negatives)
    return negatives
