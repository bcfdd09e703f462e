"""How a training step, the ranking and an epoch grow with the catalogue and with the interactions.

SASRec of 64 dimensions on simulated interactions, each point in a process of its own, so that its peak memory
is its own. What is measured stands in README.md.
"""

import platform
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

import processes  # noqa: E402

from ballast.errors import BallastError  # noqa: E402
from ballast.reproducibility import atomic_path, environment  # noqa: E402

LOSSES = {"cross_entropy": ("#0072B2", "-", "o"), "sampled_softmax": ("#D55E00", "--", "s")}
KEPT = ("kind", "items", "loss", "users", "dim", "max_len", "precision")
EPOCH_LOSS, EPOCH_ITEMS = "cross_entropy", 10_000
# A step of cross entropy over 10^6 items is some 800 GFLOP: so many items times steps are timed together.
MOST_ITEM_STEPS = 1_000_000
DEFAULT_ITEMS, DEFAULT_INTERACTIONS = "10000,100000,1000000", "100000,1000000,10000000"


def points(
    items: list[int], interactions: list[int], steps: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """The settings of every point."""
    per_step = settings["targets_per_step"] // 8
    found: list[dict[str, Any]] = []
    for count in items:
        few = max(1, min(steps, MOST_ITEM_STEPS // count))
        for loss in LOSSES:
            own = few if loss == "cross_entropy" else steps
            users = own * per_step
            found.append({"kind": "train", "items": count, "loss": loss, "steps": own, "users": users})
    for count in items:
        users = max(512, min(8192, 40_000_000 // count))
        found.append({"kind": "rank", "items": count, "loss": EPOCH_LOSS, "users": users})
    for count in interactions:
        users = max(1, count // 9)
        found.append(
            {"kind": "epoch", "items": EPOCH_ITEMS, "loss": EPOCH_LOSS, "steps": steps, "users": users}
        )
    return [{**settings, **point} for point in found]


def measure(settings: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a point, in order."""
    rows = []
    machine = {"cpu": environment()["device"], "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as name:
        for number, point in enumerate(settings, 1):
            label = f"{point['kind']}, {point['items']:,} items, {point['loss']}, {point['users']:,} users"
            print(f"[{number}/{len(settings)}] {label}", flush=True)
            record = processes.run_script(Path(sys.executable), "scaling_point.py", point, Path(name))
            if record is None:
                raise BallastError(f"{label}: failed; see above")
            kept = {
                key: point[key] for key in ("kind", "items", "loss", "users", "dim", "max_len", "precision")
            }
            rows.append({**kept, **record, "threads": point["threads"], **machine})
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame) -> Figure:
    """Step, memory and ranking over the catalogue, an epoch over the interactions."""
    drawing = Figure(figsize=(9, 6.4), layout="constrained")
    (step, memory), (ranking, epoch) = drawing.subplots(2, 2)
    trained, ranked = table[table["kind"] == "train"], table[table["kind"] == "rank"]
    for loss, (colour, line, marker) in LOSSES.items():
        own = trained[trained["loss"] == loss]
        style = {"color": colour, "linestyle": line, "marker": marker, "label": loss.replace("_", " ")}
        _curve(step, own, "items", "seconds_per_step", style)
        memory.plot(own["items"], own["peak_memory_mb"] / 1024, **style)
    _curve(ranking, ranked, "items", "ranked_users_per_second", {"color": "#009E73", "marker": "o"})
    style = {"color": "#009E73", "linestyle": ":", "marker": "^", "label": "ranking"}
    memory.plot(ranked["items"], ranked["peak_memory_mb"] / 1024, **style)
    grown = table[table["kind"] == "epoch"]
    parts = [("epoch_seconds", "an epoch", "o-"), ("batches_seconds", "its batches", "s--"),
             ("store_seconds", "the store, once", "^:")]  # fmt: skip
    for column, label, line in parts if len(grown) else []:
        epoch.plot(grown["interactions"], grown[column], line, label=label)
    step.set(ylabel="seconds a training step")
    memory.set(ylabel="peak memory of the process (GiB)")
    ranking.set(ylabel="users ranked a second")
    epoch.set(ylabel=f"seconds, {EPOCH_ITEMS:,} items", xlabel="interactions")
    for axes in (step, memory, ranking):
        axes.set(xlabel="items in the catalogue")
    for axes in (step, memory, ranking, epoch):
        axes.set(xscale="log", yscale="linear" if axes is memory else "log")
        axes.grid(color="0.9")
    memory.set_ylim(bottom=0)
    for axes in (step, memory, epoch):
        axes.legend(fontsize="small")
    first = table.iloc[0]
    drawing.suptitle(
        f"SASRec, {first['dim']} dimensions, {first['precision']}, {first['threads']} CPU threads, simulated",
        fontsize="medium",
    )
    return drawing


def _curve(axes: Axes, rows: pd.DataFrame, x: str, name: str, style: dict[str, Any]) -> None:
    """Medians joined by a line, with bars from the least to the greatest."""
    middle = rows[f"{name}_median"]
    around = [middle - rows[f"{name}_min"], rows[f"{name}_max"] - middle]
    axes.errorbar(rows[x], middle, around, capsize=3, **style)


def main(
    items: Annotated[str, typer.Option(help="Catalogues, comma-separated; or none.")] = DEFAULT_ITEMS,
    interactions: Annotated[str, typer.Option(help="Comma-separated; or none.")] = DEFAULT_INTERACTIONS,
    steps: Annotated[int, typer.Option(min=1, help="Steps timed together.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Timings of each point, the first not counted.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    out: Annotated[Path, typer.Option(help="Folder for the table and the figure.")] = HERE / "results",
) -> None:
    """Measure Ballast on growing catalogues and interactions; write a table and a figure."""
    processes.check_precisions(precision)
    settings = {
        "dim": 64,
        "max_len": 50,
        "targets_per_step": 2048,
        "repeats": repeats,
        "threads": threads,
        "precision": precision,
    }
    counts = [
        [] if text == "none" else [int(word) for word in text.split(",")] for text in (items, interactions)
    ]
    table = measure(points(*counts, steps, settings))
    is_whole = (items, interactions) == (DEFAULT_ITEMS, DEFAULT_INTERACTIONS)
    stem = out / ("scaling" if is_whole and precision == "float32" else "scaling-trial")
    with atomic_path(stem.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(stem.with_suffix(".png")) as temporary:
        figure(table).savefig(temporary, dpi=150)
    print(f"\n{table.T.to_string(header=False, na_rep='')}\n\nwritten to {stem}.csv, .png")


if __name__ == "__main__":
    processes.start(main)
