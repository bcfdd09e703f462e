"""Ballast's SASRec on the benchmark's task: the method, loss and training loop that the train stage runs."""

from itertools import chain

import protocol
import torch

from ballast.data.sequences import SequenceStore
from ballast.evaluation.ranking import ndcg_at, rank_targets
from ballast.models import registry, training
from ballast.models.method import DatasetInfo, Method
from ballast.params import TrainingParams
from ballast.reproducibility import prepare_process


class UnmaskedValidation(training.Validation):
    """Validation as the peers do it, with the history among the candidates."""

    def ndcg(self, method: Method) -> float:
        return ndcg_at(rank_targets(method, self.store, self.targets, self.batch_size).rank_unmasked)


def store(sequences: list[list[int]]) -> SequenceStore:
    """Users 1..U in the order given."""
    lengths = torch.tensor([0, *map(len, sequences)])
    return SequenceStore(
        torch.tensor(list(chain.from_iterable(sequences))),
        lengths.cumsum(0),
        torch.arange(1, len(sequences) + 1),
    )


def build(task: protocol.Task, counts: torch.Tensor) -> Method:
    """The row `sasrec` with the full softmax; counts: (I,) training interactions of each item."""
    model = {
        "dim": task.hidden_size,
        "max_len": task.max_len,
        "dropout": task.dropout,
        "loss": {"name": "cross_entropy"},
        "backbone": {
            "name": "sasrec",
            "layers": task.layers,
            "heads": task.heads,
            "ffn_ratio": task.inner_size // task.hidden_size,
        },
    }
    info = DatasetInfo(num_users=0, num_items=len(counts) - 1, item_counts=counts)
    return registry.build("next_item", registry.configure("next_item", model, "benchmark"), info)


def run(task: protocol.Task) -> protocol.Run:
    prepare_process()
    torch.manual_seed(task.seed)
    sequences = protocol.read_sequences(task)
    train = store([items[:-2] for items in sequences])  # validation reads the same items as its histories
    validation = UnmaskedValidation(train, torch.tensor([items[-2] for items in sequences]))
    num_items = max(map(max, sequences))
    method = build(task, torch.bincount(train.items, minlength=num_items + 1))
    users = protocol.users_per_step(task, sequences)
    record = protocol.Run(
        task,
        protocol.version("ballast"),
        sum(p.numel() for p in method.parameters()),
        {"batch": f"{users} users"},
    )
    before = training.Progress()

    def on_epoch(now: training.Progress) -> bool:
        nonlocal before
        trained = now.training_seconds - before.training_seconds
        done = record.epoch(
            targets=now.targets - before.targets,
            train_seconds=trained,
            valid_seconds=now.seconds - before.seconds - trained,
            ndcg=now.history[-1]["valid_ndcg@10"],
            loss=now.history[-1]["loss"],
        )
        before = training.Progress(
            targets=now.targets, training_seconds=now.training_seconds, seconds=now.seconds
        )
        return done

    params = TrainingParams(
        batch_size=users,
        learning_rate=task.learning_rate,
        max_epochs=task.max_epochs,
        patience=task.max_epochs + 1,  # the record decides when to stop, for every system alike
        precision=task.precision,
    )
    training.fit(method, train, validation, params, task.seed, on_epoch=on_epoch)
    record.rank(lambda: rank_targets(method, train, validation.targets, validation.batch_size, task.topk))
    return record


if __name__ == "__main__":
    protocol.start(run)
