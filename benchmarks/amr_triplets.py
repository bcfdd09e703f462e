"""Triples a second of AMR's training, Ballast beside cornac, on simulated interactions and 512-d features.

Each system trains in a process of its own, one after another, with the same threads and triples a batch. A
triple counts when its optimiser step is done; drawing it is part of the time. cornac's AMR moves features so
that the loss falls, where AMR's adversary makes it rise: what is compared is the speed of the same work, not
the result. Ballast makes batches of whole users; both draw negatives outside a user's items.
"""

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

os.environ["BALLAST_DEVICE"] = "cpu"

import processes  # noqa: E402
from processes import Environment, Record  # noqa: E402
from simulated_triplets import Task  # noqa: E402

from ballast.errors import BallastError  # noqa: E402
from ballast.reproducibility import atomic_path, environment  # noqa: E402

CORNAC = Environment("cornac", "3.0.", (3, 13), "its wheels end there")


def tasks(dims: list[int], batches: list[int], threads: int, seconds: float) -> list[Task]:
    """cornac at the first batch size, Ballast at all, with and without its adversary."""
    found = []
    for dim in dims:
        found.append(Task("cornac", dim, batches[0], threads, seconds))
        for batch in batches:
            found.append(Task("ballast", dim, batch, threads, seconds))
        found.append(Task("ballast", dim, batches[0], threads, seconds, adversary="none"))
    return found


def measure(todo: list[Task], repeats: int) -> list[Record]:
    """Records of all runs, in alternating order so that drift of the machine falls on every system."""
    pythons = {"ballast": processes.interpreter(None), "cornac": processes.interpreter(CORNAC)}
    scripts = {"ballast": "ballast_amr.py", "cornac": "cornac_amr.py"}
    runs = []
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(repeats):
            for task in todo if repeat % 2 == 0 else reversed(todo):
                python = pythons[task.system]
                if python is None:
                    continue
                settings = {**asdict(task), "seed": repeat}
                record = processes.run_script(python, scripts[task.system], settings, Path(name))
                if record is None:
                    raise BallastError(f"{task.system}: failed; see above")
                rate = record["triples_per_second"]
                print(f"{task.system}, {task.dim}-d, {task.batch} a batch: {rate:,.0f} triples/s", flush=True)
                runs.append({"repeat": repeat, **settings, **record})
    return runs


def table(runs: list[Record]) -> pd.DataFrame:
    """One row a system and setting: least, median and largest rates, and how many times cornac's they are."""
    keys = ["system", "version", "adversary", "dim", "batch", "threads"]
    frame = pd.DataFrame(runs)
    columns = []
    for rate in ("triples_per_second", "undisturbed"):
        peer = frame[frame["system"] == "cornac"].set_index(["repeat", "dim"])[rate]
        frame = frame.join(peer.rename("peer"), on=["repeat", "dim"])
        frame[f"{rate}_times"] = frame[rate] / frame.pop("peer")
        grouped = frame.groupby(keys, sort=False)
        columns.append(grouped[rate].agg(["min", "median", "max"]).add_prefix(f"{rate}_").round())
        columns.append(grouped[f"{rate}_times"].median().rename(f"{rate}_times_cornac").round(1))
    return pd.concat(columns, axis=1).reset_index()


def main(
    dims: Annotated[str, typer.Option(help="Comma-separated widths of the vectors.")] = "10,64",
    batches: Annotated[str, typer.Option(help="Triples a batch; cornac runs at the first.")] = "512,8192",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Timed seconds of each run.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each system.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = HERE / "results",
) -> None:
    todo = tasks(_numbers(dims), _numbers(batches), threads, seconds)
    result = table(measure(todo, repeats)).assign(processor=environment()["device"])
    print(result.to_string(index=False))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "amr-triplets.csv") as path:
        result.to_csv(path, index=False, lineterminator="\n")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
