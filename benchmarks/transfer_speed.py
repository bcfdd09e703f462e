"""What pre-training and adapting cost: targets a second and memory of ANT and its peers, beside SASRec's.

Made-up data with as many users and items as studies/transfer has: in the pool those of H&M's three sources,
in the target Menswear's; histories are as long as Beauty's, 9 items in the mean. Each row is a process of its
own, so that its peak memory is its own; ratios are to SASRec on ids, under cross entropy over all items.
"""

import platform
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pandas as pd
import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

import processes  # noqa: E402

from ballast.errors import BallastError  # noqa: E402
from ballast.reproducibility import atomic_path, environment  # noqa: E402

ENCODER = {"dim": 128, "dropout": 0.5, "max_len": 20}
ALL = {"modalities": ["text", "image", "price"]}
IN_BATCH, FROZEN = {"loss": {"name": "in_batch"}}, {"is_encoder_frozen": True}
# name: method, settings of pre-training, of adapting
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sasrec": ("next_item", {}, {}),
    "sasrec-features": ("sasrec_features", ALL, ALL),
    "ant": ("ant", {**ALL, **IN_BATCH, "alignment": 0.001}, {**ALL, **FROZEN}),
    "unisrec": ("unisrec", {**IN_BATCH, "contrast": 0.001}, {**FROZEN, "carries_items": True}),
    "vqrec": ("vqrec", {**IN_BATCH, "synthetic": 0.75}, {"carries_items": True, "is_realigned": True}),
}
STAGES = {
    "pre-training": {"users": 18_962, "items": 4_844, "batch_size": 512, "phase": "pretraining"},
    "adapting": {"users": 1_032, "items": 578, "batch_size": 64, "phase": ""},
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Epochs that count, after one that does not.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    users: Annotated[int, typer.Option(min=0, help="At most so many users, for a trial; 0: all.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = HERE / "results",
) -> None:
    """Time every method in both stages; print rates, memory and ratios, and write transfer-speed.csv."""
    processes.check_precisions(precision)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage, size in STAGES.items():
            for name, (method, *models) in ROWS.items():
                settings = {**size, "method": method, "model": {**ENCODER, **models[stage == "adapting"]},
                            "rounds": rounds, "threads": threads, "precision": precision}  # fmt: skip
                if users:
                    settings["users"] = min(users, size["users"])
                print(f"{stage}: {name}", flush=True)
                record = processes.run_script(
                    Path(sys.executable), "transfer_point.py", settings, Path(folder)
                )
                if record is None:
                    raise BallastError(f"{stage}: {name}: failed; see above")
                rates = record["targets_per_second"]
                rows.append({"stage": stage, "method": name, "targets_per_second": round(median(rates)),
                             "lowest": round(min(rates)), "highest": round(max(rates)),
                             "seconds_per_epoch": round(median(record["seconds_per_epoch"]), 2),
                             "peak_memory_mb": record["peak_memory_mb"],
                             "parameters": record["parameters"], "users": settings["users"]})  # fmt: skip
    table = pd.DataFrame(rows)
    base = table["stage"].map(table[table["method"] == "sasrec"].set_index("stage")["targets_per_second"])
    table.insert(3, "ratio_to_sasrec", (table["targets_per_second"] / base).round(3))
    print(table.to_string(index=False))
    machine = {
        "cpu": environment()["device"],
        "python": platform.python_version(),
        "torch": environment()["torch"],
    }
    path = out / ("transfer-speed-trial.csv" if users else "transfer-speed.csv")
    with atomic_path(path) as temporary:
        table.assign(rounds=rounds, threads=threads, precision=precision, **machine).to_csv(
            temporary, index=False
        )
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    processes.start(main)
