"""Item co-occurrence: what followed, or stood near, the items of the history. A sanity row.

score(i) = sum_h history_decay^(steps since h) * w(h, i) / count(i)^popularity_power, where w(h, i) sums
pair_decay^(distance - 1) over every pair h before i within `window` in a training sequence; pairs in
the reverse order count `reverse_weight`. It stands in for item-kNN in the sense of Sarwar et al. (WWW
2001) with the decays that session-based variants add (Ludewig & Jannach, UMUAI 2018).
"""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.method import DatasetInfo, Method


class ItemKnn(Method):
    """Decayed co-occurrence counts; a candidate of `tune` is chosen on validation."""

    is_trained_by_steps = False
    row_starts: Tensor
    columns: Tensor
    weights: Tensor
    history_decay: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        history_decay: float = 0.8
        pair_decay: float = 0.8
        reverse_weight: float = 0.5
        popularity_power: float = 0.5
        window: int = 10
        max_len: int = 50
        tune: dict[str, list[float]] = field(default_factory=dict)

        def candidates(self) -> list["ItemKnn.Config"]:
            """Every combination of the values in `tune`, this configuration's own where it is empty."""
            for name in self.tune:
                if name not in ("history_decay", "pair_decay", "reverse_weight", "popularity_power"):
                    raise BallastError(f"model.tune.{name}: not a number that item_knn can tune")
            combinations = product(*self.tune.values())
            changes = [dict[str, Any](zip(self.tune, values, strict=True)) for values in combinations]
            return [replace(self, tune={}, **change) for change in changes]

    def __init__(self, config: Config, data: DatasetInfo) -> None:
        super().__init__(config, data)
        self.num_items = data.num_items
        self.register_buffer("row_starts", torch.zeros(data.num_items + 2, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(0, dtype=torch.float32))
        # Part of the state: where it was tuned, params.yaml does not tell what was chosen.
        self.register_buffer("history_decay", torch.tensor(config.history_decay, dtype=torch.float64))

    def _load_from_state_dict(self, state_dict, prefix, *rest):  # type: ignore[no-untyped-def]
        # The number of pairs is data: a saved state brings its own size.
        for name in ("columns", "weights"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def fit_sequences(self, items: Tensor, offsets: Tensor) -> None:
        """Count the pairs of all training sequences; one sparse (I, I) matrix."""
        flat, starts = items.cpu().numpy(), offsets.cpu().numpy()
        user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        size = (self.num_items + 1, self.num_items + 1)
        total = scipy.sparse.csr_matrix(size, dtype=np.float32)
        for distance in range(1, self.config.window + 1):
            together = user[:-distance] == user[distance:]
            before, after = flat[:-distance][together], flat[distance:][together]
            weight = np.full(len(before), self.config.pair_decay ** (distance - 1), dtype=np.float32)
            total += scipy.sparse.csr_matrix((weight, (before, after)), shape=size)
        total = (total + self.config.reverse_weight * total.T).tocsr()
        count = np.maximum(np.bincount(flat, minlength=self.num_items + 1), 1)
        scale = count.astype(np.float32) ** -self.config.popularity_power
        total = (total @ scipy.sparse.diags(scale)).tocsr().astype(np.float32)
        total.sort_indices()
        self.row_starts = torch.from_numpy(total.indptr.astype(np.int64))
        self.columns = torch.from_numpy(total.indices.astype(np.int32))
        self.weights = torch.from_numpy(total.data)

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        history = batch.history.cpu().numpy()
        size, length = history.shape
        recency = (float(self.history_decay) ** np.arange(length - 1, -1, -1)).astype(np.float32)
        rows, places = np.nonzero(history)
        shape = (self.num_items + 1, self.num_items + 1)
        pairs = scipy.sparse.csr_matrix(
            (self.weights.cpu().numpy(), self.columns.cpu().numpy(), self.row_starts.cpu().numpy()),
            shape=shape,
        )
        profile = scipy.sparse.csr_matrix(
            (recency[places], (rows, history[rows, places])), shape=(size, self.num_items + 1)
        )
        scores = (profile @ pairs).toarray()  # (B, I)
        return torch.from_numpy(scores).to(batch.history.device)
