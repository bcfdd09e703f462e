"""Where the time of Ballast's training step on Beauty goes, operator by operator.

Runs an epoch of so many steps untimed, another one timed, and a third under torch's profiler, all through
`ballast.models.training.fit`. An operator's time is its own, without that of the operators it calls; a
product or a pass over a matrix that spans the catalogue is told apart from the rest of the model.
"""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch.profiler import ProfilerActivity, profile

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

import ballast_sasrec  # noqa: E402
import processes  # noqa: E402
import protocol  # noqa: E402

from ballast.models import training  # noqa: E402
from ballast.models.method import Method  # noqa: E402
from ballast.params import TrainingParams  # noqa: E402
from ballast.reproducibility import atomic_path, environment, prepare_process  # noqa: E402


def step_seconds(method: Method, store: Any, task: protocol.Task, users: int, epochs: int) -> list[float]:
    """Training seconds of each of so many epochs; validation is one user."""
    lone = ballast_sasrec.store([[1]])
    spent = [0.0]

    def on_epoch(now: training.Progress) -> bool:
        spent.append(now.training_seconds)
        return False

    params = TrainingParams(
        batch_size=users, max_epochs=epochs, patience=epochs + 1, precision=task.precision
    )
    validation = training.Validation(lone, torch.tensor([2]))
    training.fit(method, store, validation, params, task.seed, on_epoch=on_epoch)
    return [after - before for before, after in pairwise(spent)]


def by_operator(events: Any, items: int, steps: int) -> pd.DataFrame:
    """operator, part, calls and milliseconds a step, longest first."""
    rows = []
    for event in events:
        sizes = [size for shape in event.input_shapes for size in shape if isinstance(size, int)]
        part = "catalogue" if max(sizes, default=0) >= items else "rest"
        rows.append((event.key, part, event.count / steps, event.self_cpu_time_total / 1000 / steps))
    table = pd.DataFrame(rows, columns=["operator", "part", "calls_per_step", "ms_per_step"])
    summed = table.groupby(["operator", "part"], as_index=False).sum()
    return summed.sort_values("ms_per_step", ascending=False, ignore_index=True)


def measure(task: protocol.Task, steps: int) -> tuple[pd.DataFrame, float, float]:
    """The table, and seconds a step without and with the profiler."""
    prepare_process()
    torch.manual_seed(task.seed)
    sequences = [items[:-2] for items in protocol.read_sequences(task)]
    items = max(map(max, sequences))
    users = protocol.users_per_step(task, protocol.read_sequences(task))
    order = torch.randperm(len(sequences))[: users * steps].tolist()
    store = ballast_sasrec.store([sequences[row] for row in order])
    steps = -(-len(store) // users)
    method = ballast_sasrec.build(task, torch.bincount(store.items, minlength=items + 1))
    plain = step_seconds(method, store, task, users, 2)[-1] / steps
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        profiled = step_seconds(method, store, task, users, 1)[-1] / steps
    events = profiler.key_averages(group_by_input_shape=True)
    return by_operator(events, items, steps), plain, profiled


def shares(table: pd.DataFrame, profiled: float) -> pd.DataFrame:
    """The table with the time between operators as a row, and each row's share of a step."""
    between = max(0.0, profiled * 1000 - table["ms_per_step"].sum())
    row = {"operator": "(between operators)", "part": "rest", "ms_per_step": between}
    table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
    table["share"] = table["ms_per_step"] / table["ms_per_step"].sum()
    return table.sort_values("ms_per_step", ascending=False, ignore_index=True).round(4)


def main(
    dim: Annotated[int, typer.Option(help="Dimensions of the states.")] = 64,
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = "float32,bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps profiled.")] = 20,
    top: Annotated[int, typer.Option(help="Lines printed.")] = 20,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = HERE / "results",
) -> None:
    """Profile Ballast's training step on Beauty; print the operators and write profile.csv."""
    processes.check_precisions(precisions)
    torch.set_num_threads(threads)
    data = str(processes.beauty())
    task = protocol.Task("ballast", data, seed=0, threads=threads, max_epochs=1, max_minutes=1.0)
    task = replace(task, hidden_size=dim, inner_size=4 * dim)
    machine = {"threads": threads, "cpu": environment()["device"], "torch": environment()["torch"]}
    tables = []
    for precision in precisions.split(","):
        table, plain, profiled = measure(replace(task, precision=precision), steps)
        table = shares(table, profiled)
        print(f"\n{precision}: {plain * 1000:.1f} ms a step, {profiled * 1000:.1f} ms under the profiler\n")
        print(table.head(top).to_string(index=False, formatters={"share": "{:.1%}".format}))
        settings = {"dim": dim, "precision": precision, "ms_per_step_unprofiled": round(plain * 1000, 2)}
        tables.append(table.assign(**settings, **machine))
    with atomic_path(out / "profile.csv") as temporary:
        pd.concat(tables).to_csv(temporary, index=False)
    print(f"\nwritten to {out / 'profile.csv'}")


if __name__ == "__main__":
    processes.start(main)
