"""One epoch of CDDRec as corrected on data of Office's size: seconds, arithmetic and memory.

Trains through `ballast.models.training.fit` at T = 20, batch 128 and exact contrast. The floating-point
operations of the matrix products are counted by torch over whole steps, gradients included, and set against
the machine's measured rate of a 2048 x 2048 x 2048 product in the same precision. Reads the prepared Office
Products if they are there, else simulates sequences of that size. Each precision is a process of its own,
since the peak memory is a process's.
"""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

import matmul_rate  # noqa: E402
import processes  # noqa: E402
from protocol import peak_memory_mb  # noqa: E402

from ballast.data.sequences import SequenceStore, training_batches  # noqa: E402
from ballast.models import registry, training  # noqa: E402
from ballast.models.method import DatasetInfo, Method  # noqa: E402
from ballast.params import TrainingParams  # noqa: E402
from ballast.reproducibility import (  # noqa: E402
    atomic_path,
    environment,
    generator,
    prepare_process,
    seed_dropout,
)

PREPARED = HERE.parent / "studies/sequences/data/prepared/office/interactions.parquet"
USERS, ITEMS, INTERACTIONS = 4905, 2420, 53_258


def sequences() -> tuple[SequenceStore, int, str]:
    """Training sequences, the number of items, and where they come from."""
    if PREPARED.exists():
        frame = pd.read_parquet(PREPARED)
        return SequenceStore.from_interactions(frame, ["train"]), int(frame["item_id"].max()), "office"
    rng = generator(0, "simulated sequences")
    # At least 3 training items each; how many more falls off geometrically, as it does in Office.
    more = torch.empty(USERS).exponential_(generator=rng)
    shares = (INTERACTIONS - 2 * USERS - 3 * USERS) * more / more.sum()
    offsets = torch.cat([torch.zeros(1), 3 + shares]).cumsum(0).long()
    popularity = 1 / torch.arange(1.0, ITEMS + 1)
    items = torch.multinomial(popularity, int(offsets[-1]), replacement=True, generator=rng) + 1
    return SequenceStore(items, offsets, torch.arange(1, USERS + 1)), ITEMS, "simulated"


def build(store: SequenceStore, items: int, settings: dict[str, Any]) -> Method:
    seed_dropout(0, "initial weights")
    counts = torch.bincount(store.items, minlength=items + 1)
    info = DatasetInfo(num_users=len(store), num_items=items, item_counts=counts)
    return registry.build("cddrec", registry.configure("cddrec", settings, "cddrec"), info)


def operations(method: Method, store: SequenceStore, params: TrainingParams, steps: int = 4) -> float:
    """GFLOP of the matrix products of an epoch: the mean of a few steps, forward and backward, times all."""
    batches = list(training_batches(store, params.batch_size, method.max_len, generator(0, "batches", 0)))
    steps = min(steps, len(batches))
    rng = generator(0, "negatives", 0)
    is_cast = params.precision == "bfloat16"
    with FlopCounterMode(display=False) as counter:
        for batch in batches[:steps]:
            with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
                loss = method.train().training_step(batch, rng)["loss"]
            loss.backward()
    method.zero_grad()
    return counter.get_total_flops() / 1e9 / steps * len(batches)


def measure(precision: str, threads: int, epochs: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one precision, the time being the best epoch's."""
    prepare_process()
    torch.set_num_threads(threads)
    store, items, source = sequences()
    params = TrainingParams(batch_size=128, max_epochs=epochs, patience=epochs + 1, precision=precision)
    method = build(store, items, settings)
    before = peak_memory_mb()
    spent, begun = [0.0], time.process_time()

    def on_epoch(now: training.Progress) -> bool:
        spent.append(now.training_seconds)
        return False

    lone = SequenceStore(torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([1]))
    training.fit(
        method, store, training.Validation(lone, torch.tensor([2])), params, seed=0, on_epoch=on_epoch
    )
    processor = (time.process_time() - begun) / epochs
    seconds = min(after - since for since, after in pairwise(spent))
    peak = peak_memory_mb()
    gflop = operations(method, store, params)
    rate = matmul_rate.rate(2048, 2048, 2048, getattr(torch, precision))
    return {
        "data": source,
        "users": len(store),
        "items": items,
        "precision": precision,
        "seconds_per_epoch": round(seconds, 2),
        "processor_seconds_per_epoch": round(processor, 2),
        "gflop_per_epoch": round(gflop, 1),
        "seconds_at_matmul_rate": round(gflop / rate, 2),
        "matmul_gflop_per_second": round(rate, 1),
        "share_of_matmul_rate": round(gflop / seconds / rate, 4),
        "peak_memory_mb": round(peak),
        "peak_memory_before_mb": round(before),
        "threads": threads,
        "cpu": environment()["device"],
        "torch": environment()["torch"],
    }


def main(
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = "float32,bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs, of which the fastest counts.")] = 2,
    settings: Annotated[str, typer.Option(help="Settings of the method that differ, as JSON.")] = "{}",
    out: Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")] = None,
    inner: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time and count one epoch of CDDRec on Office, in each precision."""
    processes.check_precisions(precisions)
    if inner:
        print(json.dumps(measure(precisions, threads, epochs, json.loads(settings))))
        return
    rows = []
    for precision in precisions.split(","):
        given = ["--precisions", precision, "--threads", str(threads), "--epochs", str(epochs)]
        command = [sys.executable, __file__, "--inner", "--settings", settings, *given]
        found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        rows.append(json.loads(found.stdout.splitlines()[-1]))
    table = pd.DataFrame(rows)
    print(table.T.to_string(header=False))
    if out is not None:
        with atomic_path(out) as temporary:
            table.to_csv(temporary, index=False)
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    processes.start(main)
