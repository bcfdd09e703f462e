"""One point of scaling.py, in a process of its own: `python scaling_point.py SETTINGS.json RESULT.json`.

Interactions are simulated: item i is drawn with a probability of about 1 / i, users have 5 and more items,
9 in the mean, as Beauty's have. Training goes through `ballast.models.training.fit`, whose first epoch is
not counted.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import protocol
import torch

from ballast.data.sequences import SequenceStore, training_batches
from ballast.evaluation.ranking import rank_targets
from ballast.models import registry, training
from ballast.models.method import DatasetInfo, Method
from ballast.params import TrainingParams
from ballast.reproducibility import generator, prepare_process

Settings = dict[str, Any]
SHORTEST, MEAN = 5, 9


def simulate(users: int, num_items: int, seed: int = 0) -> pd.DataFrame:
    """user_id, item_id and split of each interaction, user after user."""
    rng = np.random.default_rng(seed)
    lengths = SHORTEST + rng.geometric(1 / (MEAN - SHORTEST + 1), users) - 1
    total = int(lengths.sum())
    # A log-uniform number rounded down: P(i) = log((i + 1) / i) / log(I + 1), Zipf's law but for the first.
    items = np.exp(rng.random(total) * np.log(num_items + 1)).astype(np.int64).clip(1, num_items)
    split = pd.Categorical.from_codes(np.zeros(total, dtype=np.int8), ["train", "valid", "test"])
    return pd.DataFrame(
        {"user_id": np.repeat(np.arange(1, users + 1), lengths), "item_id": items, "split": split}
    )


def build(settings: Settings, store: SequenceStore) -> Method:
    """SASRec with the point's loss on the point's catalogue."""
    model = {"dim": settings["dim"], "max_len": settings["max_len"], "loss": {"name": settings["loss"]}}
    counts = torch.bincount(store.items, minlength=settings["items"] + 1)
    info = DatasetInfo(num_users=len(store), num_items=settings["items"], item_counts=counts)
    return registry.build("next_item", registry.configure("next_item", model, "benchmark"), info)


def rows_of(store: SequenceStore, rows: int) -> SequenceStore:
    """The first rows of a store."""
    end = int(store.offsets[rows])
    return SequenceStore(store.items[:end], store.offsets[: rows + 1], store.user_ids[:rows])


def users_per_step(settings: Settings) -> int:
    """Users that have the wanted number of targets on average."""
    return max(1, round(settings["targets_per_step"] / (MEAN - 1)))


def train(settings: Settings, store: SequenceStore) -> dict[str, Any]:
    """Seconds a step, from epochs of so many steps on the store's first users."""
    users, steps = users_per_step(settings), settings["steps"]
    method = build(settings, store)
    some = rows_of(store, min(len(store), users * steps))
    lone = rows_of(store, 1)
    validation = training.Validation(lone, torch.ones(1, dtype=torch.int64))
    spent: list[tuple[float, int]] = []
    params = TrainingParams(
        batch_size=users,
        max_epochs=settings["repeats"] + 1,
        patience=settings["repeats"] + 2,
        precision=settings["precision"],
    )

    def on_epoch(now: training.Progress) -> bool:
        spent.append((now.training_seconds, now.targets))
        return False

    training.fit(method, some, validation, params, seed=0, on_epoch=on_epoch)
    seconds = np.diff([second for second, _ in spent])
    steps = -(-len(some) // users)
    targets = (spent[-1][1] - spent[0][1]) / len(seconds) / steps
    return {
        "steps_timed": steps * len(seconds),
        "targets_per_step": round(targets),
        **spread("seconds_per_step", (seconds / steps).tolist()),
        "targets_per_second": round(targets * steps / statistics.median(seconds)),
        "peak_memory_mb": round(protocol.peak_memory_mb()),
    }


def rank(settings: Settings, store: SequenceStore) -> dict[str, Any]:
    """Users ranked a second, history masked and the best 20 kept."""
    method = build(settings, store).eval()
    targets = 1 + torch.arange(len(store)) % settings["items"]
    speeds = []
    for _ in range(settings["repeats"] + 1):
        start = time.perf_counter()
        rank_targets(method, store, targets, topk=20)
        speeds.append(len(store) / (time.perf_counter() - start))
    return {
        **spread("ranked_users_per_second", speeds[1:]),
        "peak_memory_mb": round(protocol.peak_memory_mb()),
    }


def epoch(settings: Settings, frame: pd.DataFrame) -> dict[str, Any]:
    """What an epoch costs: the store, all its batches, and so many steps of it."""
    start = time.perf_counter()
    store = SequenceStore.from_interactions(frame, ["train"])
    stored = time.perf_counter()
    order = generator(0, "batches", 0)
    steps = sum(1 for _ in training_batches(store, users_per_step(settings), settings["max_len"], order))
    made = time.perf_counter()
    trained = train(settings, store)
    return {
        "interactions": len(frame),
        "users": len(store),
        "store_seconds": round(stored - start, 3),
        "batches_seconds": round(made - stored, 3),
        "steps_per_epoch": steps,
        # A step's seconds hold the making of its batch too.
        "epoch_seconds": round(steps * trained["seconds_per_step_median"], 1),
        **trained,
    }


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Min, median and max, to four digits."""
    three = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {f"{name}_{key}": float(f"{value:.4g}") for key, value in three.items()}


def main(source: Path, result: Path) -> None:
    settings = json.loads(source.read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    prepare_process()
    baseline = protocol.peak_memory_mb()
    frame = simulate(settings["users"], settings["items"])
    if settings["kind"] == "epoch":
        measured = epoch(settings, frame)
    else:
        store = SequenceStore.from_interactions(frame, ["train"])
        measured = {"train": train, "rank": rank}[settings["kind"]](settings, store)
    record = {"start_memory_mb": round(baseline), "torch": torch.__version__, **measured}
    result.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
