"""cornac's AMR on simulated triples, in its own environment: python cornac_amr.py SETTINGS.json RESULT.json.

Its data set, sampler and training are used as they are; its sampler is timed from within, so that neither
setting up nor the final product of all features is counted.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cornac
import simulated_triplets
import torch
from cornac.data import Dataset, ImageModality
from cornac.models import AMR
from simulated_triplets import Task


def main(source: Path, result: Path) -> None:
    task = Task(**json.loads(source.read_text(encoding="utf-8")))
    torch.set_num_threads(task.threads)
    owned = simulated_triplets.interactions(task)
    rows = [(str(user), str(item), 1.0) for user, items in enumerate(owned) for item in items]
    names = [str(item) for item in range(task.items)]
    images = ImageModality(features=simulated_triplets.features(task), ids=names, normalized=True)
    dataset = Dataset.from_uir(rows, seed=task.seed)
    images.build(id_map=dataset.iid_map)
    dataset.add_modalities(item_image=images)
    draw = dataset.uij_iter
    triples: list[int] = []
    stamps: list[float] = []

    def timed(*given: Any, **named: Any) -> Iterator[Any]:
        """Each batch as it comes, until the time is up; a step ends when the next batch is asked for."""
        stamps.append(time.perf_counter())
        for batch in draw(*given, **named):
            yield batch
            triples.append(len(batch[0]))
            stamps.append(time.perf_counter())
            if len(stamps) > task.untimed and stamps[-1] - stamps[task.untimed] >= task.seconds:
                break

    dataset.uij_iter = timed
    AMR(k=task.dim, k2=task.dim, n_epochs=1, batch_size=task.batch, verbose=False, seed=task.seed).fit(
        dataset
    )
    record = simulated_triplets.record(task, cornac.__version__, triples, stamps)
    result.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:3]))
