"""Popularity: every user is shown the items with the most training interactions. A sanity row."""

import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.models.method import DatasetInfo, Method


class Popularity(Method):
    """Scores an item by its number of training interactions."""

    is_trained_by_steps = False
    counts: Tensor

    def __init__(self, config: Method.Config, data: DatasetInfo) -> None:
        super().__init__(config, data)
        self.register_buffer("counts", data.item_counts.to(torch.float32))

    def fit_sequences(self, items: Tensor, offsets: Tensor) -> None:
        """Nothing to fit: the counts come with the dataset."""

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        return self.counts.expand(len(batch.history), -1)
