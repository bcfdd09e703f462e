"""Training speed of SASRec on Amazon Beauty, Ballast beside its peers: `python benchmarks/sasrec_speed.py`.

Each system trains in a process of its own, one after another, on the same file and task. What is measured,
and what was chosen so that the comparison is fair, stands in README.md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

import summary  # noqa: E402
from protocol import Task  # noqa: E402

from ballast.errors import BallastError  # noqa: E402

RECBOLE = ROOT / ".venv-recbole"
Record = dict[str, Any]

RUNNERS = {"ballast": "ballast_sasrec.py", "recbole": "recbole_sasrec.py", "probe": "plain_probe.py"}


def beauty() -> Path:
    """Beauty.txt in the mirror, or where the fetch stage of studies/sequences has put it."""
    mirror = os.environ.get("BALLAST_MIRROR")
    places = [Path(mirror) / "amazon-2014" / "Beauty.txt"] if mirror else []
    places.append(ROOT / "studies" / "sequences" / "data" / "raw" / "beauty" / "Beauty.txt")
    for place in places:
        if place.is_file():
            return place.resolve()
    raise BallastError(
        "Beauty.txt: not found; run `dvc repro -s fetch@beauty` in studies/sequences, "
        "or point BALLAST_MIRROR at a folder that has amazon-2014/Beauty.txt"
    )


def recbole_python() -> Path | None:
    """The interpreter of RecBole's own environment, made if absent; None where it cannot be had."""
    python = RECBOLE / "bin" / "python"
    if _has_recbole(python):
        return python
    print(f"recbole: installing it in {RECBOLE.name} (once; its PyTorch needs 1 GB or more)", flush=True)
    # RecBole needs a Ray that has no release for Python 3.12 and later.
    base = sys.executable if sys.version_info < (3, 12) else shutil.which("python3.11")
    if base is None:
        print("recbole: left out: it needs Python 3.11, and no python3.11 is on the PATH", flush=True)
        return None
    requirements = HERE / "requirements-recbole.txt"
    commands = [
        [base, "-m", "venv", str(RECBOLE)],
        [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            print(f"recbole: left out: not installed ({lines[-1] if lines else 'no message'})", flush=True)
            return None
    return python


def _has_recbole(python: Path) -> bool:
    check = "from importlib.metadata import version as v; v('torch'); assert v('recbole') == '1.2.1'"
    return python.exists() and subprocess.run([python, "-c", check], capture_output=True).returncode == 0


def interpreters(peers: list[str]) -> dict[str, Path]:
    """System to its interpreter; a peer that cannot be had is left out."""
    found: dict[str, Path] = {"ballast": Path(sys.executable)}
    for peer in peers:
        python = recbole_python() if peer == "recbole" else Path(sys.executable)
        if python is not None:
            found[peer] = python
    return found


def run_script(python: Path, script: str, task: Task, folder: Path) -> Record | None:
    """Run one script on the task in a process of its own; what it recorded, or None if it failed."""
    source, result = folder / "task.json", folder / "result.json"
    source.write_text(json.dumps(asdict(task)), encoding="utf-8")
    result.unlink(missing_ok=True)
    threads = str(task.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    # FutureWarnings of pandas and PyTorch are all that RecBole's old code prints.
    command = [str(python), "-W", "ignore::FutureWarning", str(HERE / script), str(source), str(result)]
    if subprocess.run(command, env=environment).returncode or not result.exists():
        return None
    record: Record = json.loads(result.read_text(encoding="utf-8"))
    return record


def measure(pythons: dict[str, Path], task: Task, repeats: int) -> tuple[list[Record], list[Record]]:
    """All runs, in alternating order so that drift of the machine falls on every system, and matmul rates."""
    runs: list[Record] = []
    rates: list[Record] = []
    order = list(pythons)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(repeats):
            seeded = Task(**{**asdict(task), "seed": repeat})
            rate = run_script(Path(sys.executable), "matmul_rate.py", seeded, folder)
            if rate is None:
                raise BallastError("matmul_rate.py failed; see above")
            rates.append(rate)
            for system in order if repeat % 2 == 0 else reversed(order):
                record = run_script(pythons[system], RUNNERS[system], seeded, folder)
                if record is not None:
                    runs.append({"repeat": repeat, **record})
                elif system == "ballast":
                    raise BallastError("ballast's own run failed; see above")
                else:
                    print(f"{system}: failed (see above); this run is left out", flush=True)
    return runs, rates


def main(
    peers: Annotated[str, typer.Option(help="Comma-separated: recbole, probe; or none.")] = "recbole,probe",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each system, with seeds 0, 1, ...")] = 1,
    max_minutes: Annotated[float, typer.Option(help="A run ends with the epoch it passes in.")] = 90.0,
    max_epochs: Annotated[int, typer.Option(min=1)] = 100,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each system.")] = 2,
    users: Annotated[int | None, typer.Option(help="Only the first so many: a trial run.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the CSV, JSON and figure.")] = HERE / "results",
) -> None:
    """Train SASRec with Ballast and its peers on the CPU; write a table and a figure, print the ratios."""
    names = [] if peers == "none" else peers.split(",")
    if unknown := set(names) - set(RUNNERS) | set(names) & {"ballast"}:
        raise BallastError(f"--peers: unknown {', '.join(sorted(unknown))}; known: recbole, probe, none")
    task = Task(
        data=str(beauty()),
        seed=0,
        threads=threads,
        max_epochs=max_epochs,
        max_minutes=max_minutes,
        users=users,
    )
    runs, rates = measure(interpreters(names), task, repeats)
    stem = "sasrec-beauty" if users is None else f"sasrec-beauty-{users}-users"
    table = summary.write(runs, rates, task, out / stem)
    print("\n" + table.T.to_string(header=False) + "\n\n" + "\n".join(summary.ratios(runs)))


if __name__ == "__main__":
    os.environ["BALLAST_DEVICE"] = "cpu"
    try:
        typer.run(main)
    except BallastError as error:
        sys.exit(f"error: {error}")
