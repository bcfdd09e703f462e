"""Ballast's AMR on simulated triples: python ballast_amr.py SETTINGS.json RESULT.json."""

import json
import sys
import time
from pathlib import Path

import simulated_triplets
import torch
from simulated_triplets import Task

from ballast.data.sequences import SequenceStore, training_batches
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.params import TrainingParams


def main(source: Path, result: Path) -> None:
    task = Task(**json.loads(source.read_text(encoding="utf-8")))
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    owned = torch.from_numpy(simulated_triplets.interactions(task)) + 1  # (U, N)
    vectors = torch.from_numpy(simulated_triplets.features(task))
    vectors = torch.cat([torch.zeros(1, task.features), vectors])  # (I, F)
    missing = torch.arange(task.items + 1) == 0
    counts = torch.bincount(owned.flatten(), minlength=task.items + 1)
    info = DatasetInfo(task.users, task.items, counts, {"image": vectors}, {"image": missing})
    model = {"dim": task.dim, "adversary": task.adversary}
    method = registry.build("amr", registry.configure("amr", model, "model"), info).train()
    offsets = torch.arange(task.users + 1) * task.items_a_user
    store = SequenceStore(owned.flatten(), offsets, torch.arange(1, task.users + 1))
    users = max(1, round(task.batch / task.items_a_user))
    optimizers = method.optimizers(TrainingParams(learning_rate=0.01))
    rng = torch.Generator().manual_seed(task.seed)
    triples: list[int] = []
    stamps = [time.perf_counter()]
    while len(stamps) <= task.untimed or stamps[-1] - stamps[task.untimed] < task.seconds:
        for batch in training_batches(store, users, method.max_len, rng):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            method.training_step(batch, rng)["loss"].backward()
            for optimizer in optimizers:
                optimizer.step()
            triples.append(len(batch.history) * task.items_a_user)
            stamps.append(time.perf_counter())
            if len(stamps) > task.untimed and stamps[-1] - stamps[task.untimed] >= task.seconds:
                break
    record = simulated_triplets.record(task, torch.__version__, triples, stamps)
    result.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:3]))
