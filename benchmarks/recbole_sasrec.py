"""RecBole's SASRec on the benchmark's task, run in an environment of its own (requirements-recbole.txt).

RecBole trains on prefixes: each (prefix, next item) is a row of its own, padded to 50, with one loss. Its
dataset, loader, model, trainer and evaluator are used as they are, but for two things: the time of each epoch
is read, and autograd's anomaly detection, which importing RecBole's sequential models switches on, is off
unless the task keeps it.
"""

import contextlib
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import protocol
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed


class FinishedError(Exception):
    """Raised out of the trainer's loop when the record says that the run is over."""


class TimedTrainer(Trainer):  # type: ignore[misc]
    """RecBole's trainer, reading the clock around its own training and validation epochs."""

    record: protocol.Run

    def _train_epoch(self, train_data: Any, *args: Any, **kwargs: Any) -> Any:
        self.targets = len(train_data._dataset)
        self.steps = len(train_data)
        start = time.perf_counter()
        self.loss = super()._train_epoch(train_data, *args, **kwargs)
        self.train_seconds = time.perf_counter() - start
        return self.loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        score, result = super()._valid_epoch(*args, **kwargs)
        done = self.record.epoch(
            targets=self.targets,
            train_seconds=self.train_seconds,
            valid_seconds=time.perf_counter() - start,
            ndcg=float(score),
            loss=self.loss / self.steps,
        )
        if done:
            raise FinishedError
        return score, result


def write_interactions(task: protocol.Task, folder: Path) -> None:
    """RecBole's atomic file `beauty/beauty.inter`; the position in the sequence serves as the time."""
    path = folder / "beauty" / "beauty.inter"
    path.parent.mkdir()
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(protocol.read_sequences(task), start=1):
            file.writelines(f"{user}\t{item}\t{position}\n" for position, item in enumerate(items))


def settings(task: protocol.Task, folder: Path) -> dict[str, Any]:
    """The task in RecBole's words. `repeatable` is its name for not masking the history."""
    return {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
        "seed": task.seed,
        "MAX_ITEM_LIST_LENGTH": task.max_len,
        "hidden_size": task.hidden_size,
        "n_layers": task.layers,
        "n_heads": task.heads,
        "inner_size": task.inner_size,
        "hidden_dropout_prob": task.dropout,
        "attn_dropout_prob": task.dropout,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": task.targets_per_step,
        "learner": "adam",
        "learning_rate": task.learning_rate,
        "epochs": task.max_epochs,
        "stopping_step": task.max_epochs,
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "repeatable": True,
        "metrics": ["NDCG"],
        "topk": [10, task.topk],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
        "state": "ERROR",
    }


def run(task: protocol.Task) -> protocol.Run:
    with tempfile.TemporaryDirectory() as name:
        before = Path.cwd()
        os.chdir(name)  # RecBole leaves logs and event files in the current folder
        write_interactions(task, Path(name))
        config = Config(model="SASRec", dataset="beauty", config_dict=settings(task, Path(name)))
        init_seed(config["seed"], config["reproducibility"])
        train_data, valid_data, _ = data_preparation(config, create_dataset(config))
        model = get_model("SASRec")(config, train_data._dataset)
        was_anomaly_enabled = torch.is_anomaly_enabled()
        torch.autograd.set_detect_anomaly(was_anomaly_enabled and task.is_anomaly_mode_kept)
        trainer = TimedTrainer(config, model)
        trainer.record = protocol.Run(
            task,
            metadata.version("recbole"),
            sum(p.numel() for p in model.parameters()),
            {"batch": f"{task.targets_per_step} prefixes", "anomaly_mode": torch.is_anomaly_enabled()},
        )
        with contextlib.suppress(FinishedError):
            trainer.fit(train_data, valid_data, verbose=False, saved=False)
        trainer.record.rank(lambda: trainer.evaluate(valid_data, load_best_model=False))
        os.chdir(before)
    return trainer.record


if __name__ == "__main__":
    protocol.start(run)
