"""One row of transfer_speed.py, in its own process: `python transfer_point.py SETTINGS.json RESULT.json`."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import protocol
import torch
from scaling_point import simulate

from ballast.data.sequences import SequenceStore
from ballast.models import registry, training
from ballast.models.method import DatasetInfo, Method
from ballast.params import TrainingParams
from ballast.reproducibility import prepare_process

WIDTHS = {"text": 128, "image": 128, "price": 64}


def build(settings: dict[str, Any], store: SequenceStore) -> Method:
    """The method on made-up features of the widths of studies/transfer."""
    num_items = settings["items"]
    rng = torch.Generator().manual_seed(0)
    features, missing = {}, {}
    for name, width in WIDTHS.items():
        features[name] = torch.randn(num_items + 1, width, generator=rng)
        features[name][0] = 0
        missing[name] = torch.arange(num_items + 1) == 0
    counts = torch.bincount(store.items, minlength=num_items + 1)
    info = DatasetInfo(len(store), num_items, counts, features, missing)
    torch.manual_seed(0)
    method = registry.build(
        settings["method"], registry.configure(settings["method"], settings["model"], "x"), info
    )
    method.enter(settings["phase"])
    return method


def main(source: Path, result: Path) -> None:
    """Targets a second of each epoch but the first, and the process's peak memory."""
    settings = json.loads(source.read_text())
    prepare_process()
    torch.set_num_threads(settings["threads"])
    store = SequenceStore.from_interactions(simulate(settings["users"], settings["items"]), ["train"])
    method = build(settings, store)
    spent = [(0.0, 0)]
    rounds = settings["rounds"]
    params = TrainingParams(
        batch_size=settings["batch_size"],
        max_epochs=rounds + 1,
        patience=rounds + 2,
        precision=settings["precision"],
    )
    lone = SequenceStore(torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([1]))
    training.fit(
        method,
        store,
        training.Validation(lone, torch.tensor([2])),
        params,
        seed=0,
        on_epoch=lambda now: spent.append((now.training_seconds, now.targets)) is not None,
    )
    rates = [(after[1] - first[1]) / (after[0] - first[0]) for first, after in pairwise(spent[1:])]
    record = {
        "targets_per_second": rates,
        "seconds_per_epoch": [after[0] - first[0] for first, after in pairwise(spent[1:])],
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "peak_memory_mb": round(protocol.peak_memory_mb()),
    }
    result.write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
