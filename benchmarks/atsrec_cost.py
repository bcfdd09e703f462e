"""What an epoch of ATSRec costs beside one of its base, on Beauty, one variant after the other in rounds.

A naive implementation of K steps takes K + 1 full passes: at K = 5 six times the base, and the base's own
losses decide how much less the inner passes, which need the gradient of the item table alone, come to.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

import ballast_sasrec  # noqa: E402
import processes  # noqa: E402
import profile_step  # noqa: E402
import protocol  # noqa: E402

from ballast.models import registry  # noqa: E402
from ballast.models.method import DatasetInfo, Method  # noqa: E402
from ballast.reproducibility import atomic_path, environment, prepare_process  # noqa: E402

LOSSES: dict[str, dict[str, Any]] = {"bce": {"name": "bce"}, "cross_entropy": {"name": "cross_entropy"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "pgd, K 5": {"attack": "pgd", "steps": 5},
    "free": {"attack": "free"},
    "fgm": {"attack": "fgm"},
    "random": {"adversary": "random"},
    "none (two passes)": {"adversary": "none"},
}


def build(info: DatasetInfo, backbone: str, loss: str, variant: str, task: protocol.Task) -> Method:
    """SASRec, or another backbone, under a loss, alone or below ATSRec."""
    name = "atsrec" if VARIANTS[variant] else "next_item"
    model = {"backbone": {"name": backbone}, "loss": LOSSES[loss], "dim": task.hidden_size,
             "max_len": task.max_len, "dropout": task.dropout, **VARIANTS[variant]}  # fmt: skip
    torch.manual_seed(task.seed)
    return registry.build(name, registry.configure(name, model, variant), info)


def main(
    backbones: Annotated[str, typer.Option(help="Comma-separated.")] = "sasrec",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps a round.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = HERE / "results",
) -> None:
    """Time all variants in turn; print seconds a step and ratios, and write atsrec-cost.csv."""
    prepare_process()
    torch.set_num_threads(threads)
    task = protocol.Task("ballast", str(processes.beauty()), seed=0, threads=threads, max_epochs=1,
                         max_minutes=1.0, precision=precision)  # fmt: skip
    task = replace(task, max_len=50)
    sequences = [items[:-2] for items in protocol.read_sequences(task)]
    users = 256  # the release's batch
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))[: users * steps]
    store = ballast_sasrec.store([sequences[row] for row in order.tolist()])
    counts = torch.bincount(store.items, minlength=max(map(max, sequences)) + 1)
    info = DatasetInfo(len(sequences), len(counts) - 1, counts)
    rows = []
    for backbone in backbones.split(","):
        for loss in LOSSES:
            models = {variant: build(info, backbone, loss, variant, task) for variant in VARIANTS}
            for number in range(rounds + 1):  # the first round warms up
                for variant, model in models.items():
                    seconds = profile_step.step_seconds(model, store, task, users, 1)[0] / steps
                    if number:
                        rows.append((backbone, loss, variant, number, seconds))
    frame = pd.DataFrame(rows, columns=["backbone", "loss", "variant", "round", "seconds_per_step"])
    base = frame[frame["variant"] == "base"].drop(columns="variant")
    frame = frame.merge(base, on=["backbone", "loss", "round"], suffixes=("", "_base"))
    frame["ratio"] = frame["seconds_per_step"] / frame["seconds_per_step_base"]
    table = frame.groupby(["backbone", "loss", "variant"], sort=False).agg(
        milliseconds=("seconds_per_step", lambda values: 1000 * values.median()),
        ratio=("ratio", "median"), lowest=("ratio", "min"), highest=("ratio", "max"),
    ).round(3).reset_index()  # fmt: skip
    machine = {"cpu": environment()["device"], "torch": environment()["torch"]}
    kept = {key: asdict(task)[key] for key in ("hidden_size", "max_len", "precision", "threads")}
    print(table.to_string(index=False))
    with atomic_path(out / "atsrec-cost.csv") as temporary:
        table.assign(users_per_step=users, steps=steps, rounds=rounds, **kept, **machine).to_csv(
            temporary, index=False
        )
    print(f"\nwritten to {out / 'atsrec-cost.csv'}")


if __name__ == "__main__":
    processes.start(main)
