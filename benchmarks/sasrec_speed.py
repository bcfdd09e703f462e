"""Training and ranking speed of SASRec on Amazon Beauty, Ballast beside its peers.

Each system trains and ranks in a process of its own, one after another, on the same file and task. What is
measured, and what was chosen so that the comparison is fair, stands in README.md.
"""

import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a checkout, installed or not

import processes  # noqa: E402
import summary  # noqa: E402
from processes import Environment, Record  # noqa: E402
from protocol import Task  # noqa: E402

from ballast.errors import BallastError  # noqa: E402


@dataclass(frozen=True)
class System:
    """One row of the table: its script, its environment (None: this one) and what changes in the task."""

    script: str
    environment: Environment | None = None
    changes: dict[str, Any] = field(default_factory=dict)


OURS = {
    "ballast": System("ballast_sasrec.py"),
    "ballast-bf16": System("ballast_sasrec.py", changes={"precision": "bfloat16"}),
}
PEERS = {
    "recbole": System("recbole_sasrec.py", processes.RECBOLE),
    "recbole-anomaly": System("recbole_sasrec.py", processes.RECBOLE, {"is_anomaly_mode_kept": True}),
    "rectools": System("rectools_sasrec.py", processes.RECTOOLS),
    "pmixer": System("pmixer_bce.py"),
    "probe": System("plain_probe.py"),
}
DEFAULT_PEERS = "recbole,probe"
DEFAULT_EPOCHS = 100


def interpreters(systems: dict[str, System]) -> dict[str, Path]:
    """System to its interpreter; a peer that cannot be had is left out."""
    had = {one.environment: processes.interpreter(one.environment) for one in systems.values()}
    pythons = {name: had[system.environment] for name, system in systems.items()}
    return {name: python for name, python in pythons.items() if python is not None}


def measure(systems: dict[str, System], task: Task, repeats: int) -> tuple[list[Record], list[Record]]:
    """All runs, in alternating order so that drift of the machine falls on every system, and matmul rates."""
    runs: list[Record] = []
    rates: list[Record] = []
    pythons = interpreters(systems)
    order = list(pythons)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(repeats):
            settings = {**asdict(task), "seed": repeat}
            rate = processes.run_script(Path(sys.executable), "matmul_rate.py", settings, folder)
            if rate is None:
                raise BallastError("matmul_rate.py failed; see above")
            rates.append(rate)
            for system in order if repeat % 2 == 0 else reversed(order):
                own = {**settings, "system": system, **systems[system].changes}
                record = processes.run_script(pythons[system], systems[system].script, own, folder)
                if record is not None:
                    runs.append({"repeat": repeat, **record})
                elif system in OURS:
                    raise BallastError(f"{system}'s own run failed; see above")
                else:
                    print(f"{system}: failed (see above); this run is left out", flush=True)
    return runs, rates


def main(
    peers: Annotated[
        str, typer.Option(help=f"Comma-separated: {', '.join(PEERS)}; or none.")
    ] = DEFAULT_PEERS,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each system, with seeds 0, 1, ...")] = 1,
    max_minutes: Annotated[float, typer.Option(help="A run ends with the epoch it passes in.")] = 90.0,
    max_epochs: Annotated[int, typer.Option(min=1)] = DEFAULT_EPOCHS,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each system.")] = 2,
    users: Annotated[int | None, typer.Option(help="Only the first so many: a trial run.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = HERE / "results",
) -> None:
    """Train SASRec with Ballast and its peers on the CPU; write tables and a figure, print the ratios."""
    names = [] if peers == "none" else peers.split(",")
    if unknown := set(names) - set(PEERS):
        raise BallastError(f"--peers: unknown {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}, none")
    task = Task(
        system="ballast",
        data=str(processes.beauty()),
        seed=0,
        threads=threads,
        max_epochs=max_epochs,
        max_minutes=max_minutes,
        users=users,
    )
    is_whole = users is None and max_epochs >= DEFAULT_EPOCHS and set(DEFAULT_PEERS.split(",")) <= set(names)
    runs, rates = measure(OURS | {name: PEERS[name] for name in names}, task, repeats)
    stem = out / ("sasrec-beauty" if is_whole else "sasrec-beauty-trial")
    table, ratios = summary.write(runs, rates, task, stem)
    print(f"\n{table.T.to_string(header=False)}\n\n{ratios.to_string(index=False, na_rep='')}\n")
    print(f"written to {stem}.csv, -ratios.csv, .json, .png")


if __name__ == "__main__":
    processes.start(main)
