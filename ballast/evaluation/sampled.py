"""The sampled protocol: each user's target among a few negatives, as click models are judged.

It is there to compare with papers that report nothing else. Its numbers depend on how many negatives there
are and how they are drawn, and it may order methods in another way than the full ranking does (Krichene &
Rendle, On Sampled Metrics for Item Recommendation, KDD 2020).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ballast.data.sequences import Batch, SequenceStore
from ballast.errors import BallastError
from ballast.evaluation import metrics
from ballast.evaluation.ranking import COMPUTED
from ballast.models.method import Method
from ballast.models.sequential import SequentialMethod
from ballast.params import SampledParams
from ballast.reproducibility import numpy_generator

METRICS = ("auc", *(f"{name}@{k}" for name in ("hr", "ndcg") for k in metrics.CUTOFFS))


@dataclass(frozen=True)
class Candidates:
    """What competes for each user: items (U, 1 + N) int64 on the CPU, the target first."""

    items: Tensor

    @property
    def hash(self) -> str:
        """SHA-256 of the items: equal for two methods only if they met the same candidates."""
        return hashlib.sha256(self.items.numpy().astype("<i8").tobytes()).hexdigest()


def draw_candidates(
    store: SequenceStore, targets: Tensor, counts: Tensor, params: SampledParams
) -> Candidates:
    """Negatives for `targets` (U,) int64, one a row of `store`, whose items are each user's history.

    counts: (I,) training interactions of the items, entry 0 is padding. Negatives are different items
    outside history and target, drawn one after the other by count ** power. Draws are named by the settings
    and the user alone: every method and seed meets the same. Raises BallastError where a user has too few
    items left, or where the settings make no sense.
    """
    if params.negatives < 1 or not 0 <= params.power < np.inf:
        raise BallastError(
            f"params.yaml: evaluation.sampled: {params.name}: give at least 1 negative and a power from 0"
        )
    weights = counts.cpu().numpy().astype(np.float64) ** params.power
    weights[0] = 0.0
    cumulative = weights.cumsum()
    users, offsets = store.user_ids.tolist(), store.offsets.tolist()
    history, wanted = store.items.cpu().numpy(), targets.cpu().numpy()
    items = np.empty((len(users), 1 + params.negatives), dtype=np.int64)
    items[:, 0] = wanted
    for row, user in enumerate(users):
        own = np.append(history[offsets[row] : offsets[row + 1]], wanted[row])
        rng = numpy_generator(0, "sampled negatives", params.name, user)
        found = _negatives(weights, cumulative, own, params.negatives, rng)
        if len(found) < params.negatives:
            raise BallastError(
                f"params.yaml: evaluation.sampled: {params.negatives} negatives are asked for, "
                f"and user {user} leaves only {len(found)} items to draw them from"
            )
        items[row, 1:] = found
    return Candidates(torch.from_numpy(items))


def _negatives(
    weights: NDArray[np.float64],
    cumulative: NDArray[np.float64],
    own: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """`count` different items outside `own`, each drawn by weight from those left; fewer if none is left.

    Passing over an item that is taken already is the same as drawing from the others. Where that takes
    long, the weights of what is taken go to 0: each round finds an item at least.
    """
    taken, found = set(own.tolist()), []
    while cumulative[-1] > 0:
        draws = rng.random(2 * count) * cumulative[-1]
        for item in np.searchsorted(cumulative, draws, side="right").tolist():
            if item not in taken:
                taken.add(item)
                found.append(item)
                if len(found) == count:
                    return found
        left = weights.copy()
        left[list(taken)] = 0.0
        cumulative = left.cumsum()
    return found


@torch.inference_mode()
def sampled_metrics(
    method: Method,
    store: SequenceStore,
    candidates: Mapping[str, Candidates],
    num_items: int,
    batch_size: int = 512,
) -> dict[str, dict[str, float]]:
    """METRICS of each protocol, means over users, at most `batch_size` of them scored at a time.

    candidates: by name, each with a row a row of `store`, whose items are the histories; the method sees its
    max_len most recent ones.

    auc: the mean over users of the share of negatives that score below the user's target, ties half; it is
    not the AUC over all pairs of users and items. The others are of the target's rank among its
    candidates, ties against the method. Raises BallastError on a score that is not finite.
    """
    order = store.lengths.argsort(stable=True)  # like lengths together: less padding
    parts: dict[str, list[Tensor]] = {name: [] for name in candidates}
    width = sum(chosen.items.shape[1] for chosen in candidates.values())
    for rows in order.split(max(1, min(batch_size, COMPUTED // _held(method, width, num_items)))):
        batch = Batch(user_id=store.user_ids[rows], history=store.histories(rows, method.max_len))
        items = {name: chosen.items[rows.cpu()].to(rows.device) for name, chosen in candidates.items()}
        scored = _scores(method, batch, torch.cat(list(items.values()), dim=1))
        if not bool(torch.isfinite(scored).all()):
            raise BallastError("a score is not finite: the model diverged; lower training.learning_rate")
        widths = [part.shape[1] for part in items.values()]
        for name, scores in zip(items, scored.split(widths, dim=1), strict=True):
            target, negatives = scores[:, :1], scores[:, 1:]
            above, ties = (negatives > target).sum(1), (negatives == target).sum(1)
            parts[name].append(torch.stack([above, ties]).cpu())
    return {
        name: _means(torch.cat(counts, dim=1).numpy(), candidates[name].items.shape[1] - 1)
        for name, counts in parts.items()
    }


def _reads_candidates(method: Method) -> bool:
    """Whether a few scores cost less than all: where each candidate is scored by itself."""
    return (
        isinstance(method, SequentialMethod)
        and method.backbone.reads_candidates
        and type(method).score is SequentialMethod.score
    )


def _held(method: Method, width: int, num_items: int) -> int:
    """About how many numbers the scores of one user take while they are computed."""
    if not _reads_candidates(method):
        return num_items + 1
    assert isinstance(method, SequentialMethod)
    return 4 * width * method.max_len * method.item_table().shape[1]


def _scores(method: Method, batch: Batch, items: Tensor) -> Tensor:
    """(B, C) scores of the (B, C) candidates."""
    if not _reads_candidates(method):
        return method.score(batch).gather(1, items)
    assert isinstance(method, SequentialMethod)
    table = method.item_table()
    return method.backbone.candidate_scores(batch.history, items, table, table).float()


def _means(counts: NDArray[np.int64], negatives: int) -> dict[str, float]:
    """METRICS of (2, U) negatives above the target and tied with it."""
    above, ties = counts
    rank = 1 + above + ties
    auc = 1 - (above + 0.5 * ties) / negatives
    at_cutoffs = {name: float(metrics.value(name, rank).mean()) for name in METRICS[1:]}
    return {"auc": float(auc.mean()), **at_cutoffs}
