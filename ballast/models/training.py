"""The only gradient loop: early stopping on validation NDCG@10, best checkpoint, resume after a kill."""

import contextlib
import copy
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ballast import parallel
from ballast.data.sequences import SequenceStore, training_batches
from ballast.errors import BallastError
from ballast.evaluation.ranking import ndcg_at, rank_targets
from ballast.models.method import Method
from ballast.params import TrainingParams
from ballast.reproducibility import atomic_path, generator, has_bfloat16, seed_dropout

# A checkpoint costs a write of the whole state: at most one in this many seconds.
CHECKPOINT_SECONDS = 20.0

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Validation:
    """Held-out items, one a row of `store`, whose items are the histories before them."""

    store: SequenceStore
    targets: Tensor
    batch_size: int = 512

    def ndcg(self, method: Method) -> float:
        """NDCG@10 over the full catalogue, history masked; each of several processes ranks its share."""
        return ndcg_at(rank_targets(method, self.store, self.targets, self.batch_size).rank)


@dataclass
class Progress:
    """What a run has done so far; saved in each checkpoint and, in part, in the cell."""

    epoch: int = 0
    best_epoch: int = 0
    best_ndcg: float = -1.0
    training_seconds: float = 0.0
    seconds: float = 0.0
    targets: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def is_over(self, params: TrainingParams) -> bool:
        return self.epoch >= params.max_epochs or self.epoch - self.best_epoch >= params.patience

    def summary(self) -> dict[str, Any]:
        """The cell's account of the run; seconds include validation, seconds_per_epoch do not."""
        return {
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "valid_ndcg@10": self.best_ndcg,
            "seconds": round(self.seconds, 2),
            "seconds_per_epoch": round(self.training_seconds / max(1, self.epoch), 3),
            "targets_per_second": round(self.targets / max(1e-9, self.training_seconds)),
            "history": self.history,
        }


def fit(
    method: Method,
    store: SequenceStore,
    validation: Validation,
    params: TrainingParams,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Progress], bool] | None = None,
    label: str = "",
) -> Progress:
    """Train `method` in place and leave it with the weights of its best validation epoch.

    Every epoch draws its batches, negatives and dropout from generators named after the seed and the
    epoch, so a run resumed from `checkpoint` ends with the very weights of an undisturbed one.
    `on_epoch` is called after each validation; it ends the run by returning True. Raises BallastError
    when the loss is no longer finite.
    """
    optimizers = method.optimizers(params)
    progress, best = Progress(), copy.deepcopy(method.state_dict())
    if checkpoint is not None and checkpoint.exists():
        progress, best = _resume(checkpoint, method, optimizers)
    is_first = parallel.is_first()
    saved_at = time.monotonic()
    bar = tqdm(
        total=params.max_epochs,
        initial=progress.epoch,
        desc=label,
        unit="epoch",
        disable=None if is_first else True,
    )
    while not progress.is_over(params):
        started = time.monotonic()
        _set_learning_rate(optimizers, params, progress.epoch)
        parts, targets = _train_epoch(method, optimizers, store, params, seed, progress.epoch)
        trained = time.monotonic()
        with _autocast(store.items.device, params.precision):
            ndcg = validation.ndcg(method.eval())
        progress.epoch += 1
        progress.targets += targets
        progress.training_seconds += trained - started
        progress.seconds += time.monotonic() - started
        progress.history.append({"epoch": progress.epoch, **parts, "valid_ndcg@10": ndcg,
                                 "seconds": round(progress.seconds, 3)})  # fmt: skip
        if ndcg > progress.best_ndcg:
            progress.best_ndcg, progress.best_epoch = ndcg, progress.epoch
            best = copy.deepcopy(method.state_dict())
        bar.update()
        bar.set_postfix(loss=f"{parts['loss']:.3f}", ndcg=f"{ndcg:.4f}", best=f"{progress.best_ndcg:.4f}")
        if checkpoint is not None and is_first and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            _save(checkpoint, method, optimizers, progress, best)
            saved_at = time.monotonic()
        if on_epoch is not None and on_epoch(progress):
            break
    bar.close()
    method.load_state_dict(best)
    method.eval()
    return progress


def fit_phases(
    method: Method,
    store: SequenceStore,
    validation: Validation,
    params: TrainingParams,
    seed: int,
    state: Path,
    label: str = "",
) -> dict[str, Any]:
    """Fit each phase of `method` from the best state of the one before; the account is the last one's.

    Where there are several, `seconds` are those of all, and `phases` has each one's own account. Checkpoints
    lie beside `state`.
    """
    accounts = {}
    for phase in method.phases:
        method.enter(phase)
        checkpoint = state.with_suffix(f".{phase}.ckpt" if phase else ".ckpt")
        named = f"{label} {phase}".rstrip()
        accounts[phase] = fit(method, store, validation, params, seed, checkpoint, label=named).summary()
    last = list(accounts.values())[-1]
    if len(accounts) == 1:
        return last
    seconds = round(sum(account["seconds"] for account in accounts.values()), 2)
    return {**last, "seconds": seconds, "phases": accounts}


def footprint(method: Method) -> dict[str, int]:
    """Its parameters, and the most memory this process has held."""
    return {
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _set_learning_rate(optimizers: Optimizers, params: TrainingParams, epoch: int) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            start = group.setdefault("initial_lr", group["lr"])
            group["lr"] = start * params.learning_rate_decay**epoch


def _train_epoch(
    method: Method,
    optimizers: Optimizers,
    store: SequenceStore,
    params: TrainingParams,
    seed: int,
    epoch: int,
) -> tuple[dict[str, float], int]:
    """One pass over all users; the mean over targets of the loss and its parts, and the number of targets."""
    device = store.items.device
    place = parallel.place()
    seed_dropout(seed, "dropout", epoch, *place[:1] if place[0] else ())
    negatives = generator(seed, "negatives", epoch, device=device)
    order = generator(seed, "batches", epoch)
    method.train()
    # Sums stay on the device: reading a loss at every step would make a GPU wait for the host.
    sums: dict[str, Tensor] = {"": torch.zeros((), dtype=torch.float64, device=device)}
    first = method.learns_first_items
    for batch in training_batches(store, params.batch_size, method.max_len, order, place, first):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        assert batch.targets is not None
        count = (batch.targets != 0).sum()
        here = count.to(torch.float64)
        # The mean over the whole batch is the sum of the processes' means, each by its share of targets.
        whole = parallel.total(here.clone())
        if len(batch.history):
            with _autocast(device, params.precision):
                parts = method.training_step(batch, negatives)
            loss = parts["loss"]
            (loss * (here / whole).to(loss.dtype) if place[1] > 1 else loss).backward()
            sums[""] += here
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.detach() * here
        parallel.sum_gradients(method.parameters())
        for optimizer in optimizers:
            optimizer.step()
    targets, *totals = parallel.total(torch.stack(list(sums.values()))).tolist()
    means = {name: total / max(1.0, targets) for name, total in zip([*sums][1:], totals, strict=True)}
    if not all(map(math.isfinite, means.values())):
        raise BallastError(
            f"the training loss is not finite in epoch {epoch + 1}: lower training.learning_rate"
        )
    return means, int(targets)


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16 where the device has it; all else, optimiser included, stays in float32."""
    if device.type == "cuda" or (precision == "bfloat16" and has_bfloat16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _save(
    path: Path, method: Method, optimizers: Optimizers, progress: Progress, best: dict[str, Tensor]
) -> None:
    state = {
        "method": method.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": asdict(progress),
        "best": best,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, method: Method, optimizers: Optimizers) -> tuple[Progress, dict[str, Tensor]]:
    state = torch.load(path, map_location=next(method.parameters()).device, weights_only=True)
    method.load_state_dict(state["method"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"]), state["best"]
