"""The task that every system of the SASRec benchmark is given, and the record that each leaves.

Imports torch and the standard library only: it also runs in the peers' own environments.
"""

import contextlib
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One training run, the same for every system but for the last two settings.

    `targets_per_step` is the mean number of losses in one optimiser step. Training ends at the first epoch
    whose validation NDCG@10 reaches `target`, after `patience` epochs without a better one, or at a cap.
    `precision` is that of Ballast's matrix products in training; `is_anomaly_mode_kept` leaves RecBole's
    anomaly detection as its import sets it.
    """

    system: str
    data: str
    seed: int
    threads: int
    max_epochs: int
    max_minutes: float
    users: int | None = None
    target: float = 0.034
    patience: int = 10
    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    inner_size: int = 256
    dropout: float = 0.5
    max_len: int = 50
    learning_rate: float = 1e-3
    targets_per_step: int = 2048
    topk: int = 20
    ranking_repeats: int = 5
    precision: str = "float32"
    is_anomaly_mode_kept: bool = False


@dataclass
class Run:
    """What one system did: call `epoch` after each validation, stop when it says so, then `rank`.

    notes: `batch`, and where the system's model differs from the task's, `inner_size` and
    `scored_items`, the items whose score one loss needs.
    """

    task: Task
    version: str
    parameters: int
    notes: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, float]] = field(default_factory=list)
    ranking_seconds: list[float] = field(default_factory=list)
    peak_memory_mb: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def epoch(
        self, *, targets: int, train_seconds: float, valid_seconds: float, ndcg: float, loss: float
    ) -> bool:
        """Record one epoch; True where training is to end. `ndcg` is unmasked NDCG@10 on validation."""
        self.epochs.append(
            {
                "targets": targets,
                "train_seconds": train_seconds,
                "valid_seconds": valid_seconds,
                "wall_seconds": time.perf_counter() - self.started,
                "loss": loss,
                "ndcg@10": ndcg,
            }
        )
        number = len(self.epochs)
        print(
            f"{self.task.system}: epoch {number}, loss {loss:.4f}, NDCG@10 {ndcg:.4f}, "
            f"{targets / train_seconds:,.0f} targets/s, "
            f"training {train_seconds:.1f} s, validation {valid_seconds:.1f} s",
            flush=True,
        )
        scores = [row["ndcg@10"] for row in self.epochs]
        since_best = number - 1 - scores.index(max(scores))
        return (
            ndcg >= self.task.target
            or since_best >= self.task.patience
            or number >= self.task.max_epochs
            or self.epochs[-1]["wall_seconds"] >= self.task.max_minutes * 60
        )

    def train(self, targets: int, train_epoch: Callable[[], float], validate: Callable[[], float]) -> None:
        """Train and validate in turn until the run is to end.

        `train_epoch` passes over `targets` targets and gives their mean loss, `validate` unmasked NDCG@10.
        """
        while True:
            start = time.perf_counter()
            loss = train_epoch()
            trained = time.perf_counter()
            ndcg = validate()
            if self.epoch(
                targets=targets,
                train_seconds=trained - start,
                valid_seconds=time.perf_counter() - trained,
                ndcg=ndcg,
                loss=loss,
            ):
                return

    def rank(self, ranking: Callable[[], object]) -> None:
        """Time `ranking`, which ranks every user of the validation set and keeps the best `topk` items.

        It runs once untimed, then `ranking_repeats` times. The peak memory is what it was before, that
        of training and validation.
        """
        self.peak_memory_mb = peak_memory_mb()
        ranking()
        for _ in range(self.task.ranking_repeats):
            start = time.perf_counter()
            ranking()
            self.ranking_seconds.append(time.perf_counter() - start)
        speed = len(read_sequences(self.task)) / sorted(self.ranking_seconds)[len(self.ranking_seconds) // 2]
        print(f"{self.task.system}: {speed:,.0f} users/s ranked, top {self.task.topk} kept", flush=True)

    def write(self, path: Path) -> None:
        """The record as JSON."""
        data = {
            "system": self.task.system,
            "version": self.version,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "parameters": self.parameters,
            "peak_memory_mb": self.peak_memory_mb,
            "notes": self.notes,
            "users": len(read_sequences(self.task)),
            "task": {**asdict(self.task), "data": Path(self.task.data).name},
            "epochs": self.epochs,
            "ranking_seconds": self.ranking_seconds,
        }
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def version(package: str) -> str:
    """The installed version, or "source" where the package runs from its checkout."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return "source"


def start(runner: Callable[[Task], Run]) -> None:
    """Run `runner` as a process of its own: `python <runner>.py TASK.json RESULT.json`."""
    source, result = (Path(argument) for argument in sys.argv[1:3])
    task = Task(**json.loads(source.read_text(encoding="utf-8")))
    # RecBole's Config reads sys.argv as settings of its own.
    sys.argv = sys.argv[:1]
    torch.set_num_threads(task.threads)
    runner(task).write(result)


def read_sequences(task: Task) -> list[list[int]]:
    """Each user's items (1..I), oldest first; one line of the file is `user item item ...`."""
    lines = Path(task.data).read_text(encoding="utf-8").splitlines()
    return [[int(word) for word in line.split()[1:]] for line in lines[: task.users]]


def users_per_step(task: Task, sequences: list[list[int]]) -> int:
    """Users in one step so that it has `targets_per_step` losses on average.

    A user's training sequence is all but the last two items; its first item is no target.
    """
    targets = sum(min(len(items) - 3, task.max_len) for items in sequences)
    return max(1, round(task.targets_per_step * len(sequences) / targets))


def ndcg_at_10(scores: Tensor, targets: Tensor) -> Tensor:
    """(B,) NDCG@10 of one target a user among all items, history not masked, ties against the target.

    scores: (B, I), column 0 is padding and is never ranked. targets: (B,) item ids.
    """
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    rank = (scores >= scores.gather(1, targets[:, None])).sum(1)  # (B,), 1 is first
    return torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0)


def masked_ranks(scores: Tensor, history: Tensor, targets: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """(B,) rank of the target and (B, topk) best items, the history masked, ties against the target.

    scores: (B, I), overwritten. history: (B, L) item ids, 0 where padded, without the target.
    """
    own = scores.gather(1, targets[:, None])
    scores.scatter_(1, history, -torch.inf)  # padding is item 0, so column 0 goes with it
    scores[:, 0] = -torch.inf
    return (scores >= own).sum(1), scores.topk(min(topk, scores.shape[1] - 1)).indices
