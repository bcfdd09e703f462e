"""RecTools' SASRec on the benchmark's task, run in an environment of its own (requirements-rectools.txt).

Its dataset, loader, `SASRecModel`, Lightning trainer and `recommend` are used as they are. Training goes
epoch by epoch with `fit_partial`, RecTools' own way of going on with a model, since `recommend` works on a
fitted model alone; a Lightning callback reads the clock, so that the preparation of the data, which
`fit_partial` repeats, is not counted as training. NDCG@10 is that of the list of 10 that `recommend` gives.
"""

import logging
import time
import warnings
from importlib import metadata
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import protocol
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Clock(Callback):  # type: ignore[misc]
    """The seconds and the mean loss of the last training epoch."""

    seconds = 0.0
    loss = 0.0

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.start
        self.loss = float(trainer.callback_metrics["train_loss"])


def interactions(sequences: list[list[int]]) -> Dataset:
    """RecTools' dataset of users 1..U; the position in the sequence serves as the day."""
    lengths = [len(items) for items in sequences]
    position = np.concatenate([np.arange(length) for length in lengths])
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(1, len(sequences) + 1), lengths),
            Columns.Item: list(chain.from_iterable(sequences)),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(position, unit="D"),
        }
    )
    return Dataset.construct(frame)


def build(task: protocol.Task, users: int, clock: Clock) -> SASRecModel:
    """The task in RecTools' words: its trainer's defaults, with the clock and without any output."""
    model = SASRecModel(
        n_blocks=task.layers,
        n_heads=task.heads,
        n_factors=task.hidden_size,
        dropout_rate=task.dropout,
        session_max_len=task.max_len,
        loss="softmax",
        lr=task.learning_rate,
        batch_size=users,
        epochs=1,
        recommend_torch_device="cpu",
        get_trainer_func=lambda: Trainer(
            accelerator="cpu",
            max_epochs=1,
            min_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[clock],
        ),
    )
    return model


def ndcg_at_10(listed: pd.DataFrame, targets: np.ndarray) -> float:
    """Mean NDCG@10. listed: user, item, rank (1 to 10); targets: (U,) the item of users 1..U."""
    hit = listed[Columns.Item].to_numpy() == targets[listed[Columns.User].to_numpy() - 1]
    return float((hit / np.log2(listed[Columns.Rank].to_numpy() + 1)).sum() / len(targets))


def run(task: protocol.Task) -> protocol.Run:
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(task.seed, verbose=False)
    sequences = protocol.read_sequences(task)
    data = interactions(
        [items[:-2] for items in sequences]
    )  # validation reads the same items as its histories
    valid_targets = np.array([items[-2] for items in sequences])
    valid_users = np.arange(1, len(sequences) + 1)
    users = protocol.users_per_step(task, sequences)
    clock = Clock()
    model = build(task, users, clock)
    notes = {"batch": f"{users} users", "inner_size": task.hidden_size}
    record = protocol.Run(task, metadata.version("rectools"), 0, notes)
    while True:
        model.fit_partial(data, min_epochs=1, max_epochs=1)
        # fit_partial copies the trainer, and the clock with it
        ticked = next(one for one in model.fit_trainer.callbacks if isinstance(one, Clock))
        trained = time.perf_counter()
        listed = model.recommend(valid_users, data, k=10, filter_viewed=False)
        done = record.epoch(
            targets=sum(min(len(items) - 3, task.max_len) for items in sequences),
            train_seconds=ticked.seconds,
            valid_seconds=time.perf_counter() - trained,
            ndcg=ndcg_at_10(listed, valid_targets),
            loss=ticked.loss,
        )
        if done:
            break
    record.parameters = sum(p.numel() for p in model.torch_model.parameters())
    record.rank(lambda: model.recommend(valid_users, data, k=task.topk, filter_viewed=True))
    return record


if __name__ == "__main__":
    protocol.start(run)
