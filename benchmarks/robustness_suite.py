"""What the robustness suite costs: the stage itself, at a study's own grid, for one trained method and seed.

Run after `dvc repro` in the study: it takes the trained state, the prepared tables and the grid of the
study's params.yaml, and runs stages/robustness.py on them in a folder of its own, so that nothing of the
study is touched. The time is that of the whole process, from its start to the written table.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

import processes  # noqa: E402

from ballast.errors import BallastError  # noqa: E402
from ballast.reproducibility import atomic_path, environment  # noqa: E402

HISTORY = "history"


def lend(study: Path, folder: Path, dataset: str, method: str) -> None:
    """Make `folder` a study of one seed that reads the data and the trained state of `study`."""
    for needed in (f"data/models/{dataset}/{method}", f"data/prepared/{dataset}", "reports/code.json"):
        if not (study / needed).exists():
            raise BallastError(f"{study / needed}: not found; run `dvc repro` in {study}, or `dvc pull` it")
    params = yaml.safe_load((study / "params.yaml").read_text(encoding="utf-8"))
    params["datasets"][dataset]["seeds"] = params["datasets"][dataset]["seeds"][:1]
    params["root"] = str(ROOT)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    (folder / "reports").mkdir()
    (folder / "reports" / "code.json").write_bytes((study / "reports" / "code.json").read_bytes())
    (folder / "data").symlink_to((study / "data").resolve(), target_is_directory=True)


def timed(folder: Path, dataset: str, method: str, threads: int) -> tuple[float, float]:
    """Seconds of the stage's process, and its peak memory in MB (the largest child's so far)."""
    threads_of = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    variables = {**os.environ, **threads_of, "BALLAST_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "stages" / "robustness.py")]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--dataset", dataset, "--method", method], cwd=folder, env=variables, check=False
    )
    if done.returncode:
        raise BallastError(f"{dataset} {method}: the stage ended with status {done.returncode}; see above")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KB, but bytes on macOS
    return time.monotonic() - started, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def family(condition: str) -> str:
    """`pgd items@0.1`: `pgd items`; `replace@0.2`: `replace history`."""
    name = condition.rsplit("@", 1)[0]
    return name if " " in name else f"{name} {HISTORY}"


def main(
    study: Annotated[Path, typer.Option(help="Folder of the study.")] = ROOT / "studies" / "sequences",
    dataset: Annotated[str, typer.Option(help="One of the study's datasets.")] = "beauty",
    method: Annotated[str, typer.Option(help="One of its methods.")] = "sasrec-ss",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = HERE / "results",
) -> None:
    """Time the suite; print seconds by kind of condition, and write robustness-suite.csv."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lend(study, folder, dataset, method)
        seconds, peak = timed(folder, dataset, method, threads)
        path = folder / "reports" / "cells" / "robustness" / f"{dataset}--{method}.json"
        cell: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        (account,) = cell["seeds"].values()
    spent = pd.Series(account["condition_seconds"])
    groups = spent.groupby(spent.index.map(family), sort=False)
    table = pd.DataFrame({"conditions": groups.size(), "seconds": groups.sum().round(2)})
    table.loc["clean ranks, checks, start and end"] = [0, round(seconds - float(spent.sum()), 2)]
    table.loc["all"] = [len(spent), round(seconds, 2)]
    table = table.rename_axis("condition").reset_index().astype({"conditions": int})
    table["share"] = (table["seconds"] / seconds).round(3)
    print(table.to_string(index=False))
    settings = cell["config"]
    facts = {"dataset": dataset, "method": method, "users": settings["users"],
             "attack_users": settings["attack_users"], "peak_memory_mb": round(peak), "threads": threads,
             "cpu": environment()["device"], "torch": environment()["torch"]}  # fmt: skip
    with atomic_path(out / "robustness-suite.csv") as written:
        table.assign(**facts).to_csv(written, index=False)
    print(f"\n{seconds:.0f} s, {peak:.0f} MB; written to {out / 'robustness-suite.csv'}")


if __name__ == "__main__":
    processes.start(main)
