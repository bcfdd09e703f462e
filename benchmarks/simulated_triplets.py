"""The task of the AMR benchmark, and interactions and features drawn for it.

Imports NumPy and the standard library only: it also runs in cornac's own environment.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Task:
    """What one process trains: `batch` triples a step, for about `seconds` after `untimed` steps."""

    system: str
    dim: int
    batch: int
    threads: int
    seconds: float
    adversary: str = "gradient"
    untimed: int = 20
    users: int = 10_000
    items: int = 5_000
    items_a_user: int = 20
    features: int = 512
    seed: int = 0


def interactions(task: Task) -> NDArray[np.int64]:
    """(U, N) different item ids from 0 of each user; popular items are 1 / rank as likely."""
    rng = np.random.default_rng(task.seed)
    weight = np.log(1.0 / (1.0 + np.arange(task.items)))
    rows = []
    for _ in range(task.users):
        # The largest of perturbed log weights are a draw without replacement (Gumbel's trick).
        noisy = weight + rng.gumbel(size=task.items)
        rows.append(np.argpartition(-noisy, task.items_a_user)[: task.items_a_user])
    return np.stack(rows)


def features(task: Task) -> NDArray[np.float32]:
    """(I, F) like the outputs of a vision network: none negative, the largest 1."""
    rng = np.random.default_rng(task.seed + 1)
    drawn = np.maximum(rng.normal(size=(task.items, task.features)), 0).astype(np.float32)
    return drawn / drawn.max()


def record(task: Task, version: str, triples: list[int], stamps: list[float]) -> dict[str, Any]:
    """Rates of a run: `triples` of each step, and when each ended, after the time of the start.

    `triples_per_second` is over all timed steps. `undisturbed` is that of the step that one in ten beats:
    what a step takes when it is let alone, on a machine that others use as well.
    """
    spent = np.diff(stamps)[task.untimed :]
    counted = np.array(triples)[task.untimed :]
    return {
        "system": task.system,
        "version": version,
        "steps": len(spent),
        "triples_per_second": float(counted.sum() / spent.sum()),
        "undisturbed": float(np.quantile(counted / spent, 0.9)),
    }
