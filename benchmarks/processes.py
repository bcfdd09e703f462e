"""Where each system runs: its environment, its process, and the file that the benchmarks train on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

from ballast.errors import BallastError  # noqa: E402
from ballast.params import TrainingParams  # noqa: E402

Record = dict[str, Any]
PRECISIONS: tuple[str, ...] = get_args(get_type_hints(TrainingParams)["precision"])


def start(main: Callable[..., None]) -> None:
    """Run a benchmark's command on the CPU; a BallastError ends it with one line."""
    os.environ["BALLAST_DEVICE"] = "cpu"
    try:
        typer.run(main)
    except BallastError as error:
        sys.exit(f"error: {error}")


def check_precisions(given: str) -> None:
    """Raise BallastError unless each of the comma-separated names is a precision that training knows."""
    if unknown := set(given.split(",")) - set(PRECISIONS):
        raise BallastError(f"precision: unknown {', '.join(sorted(unknown))}; known: {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Environment:
    """A peer's own virtual environment, made from `requirements-<name>.txt` when it is first needed.

    `newest_python` is the last Python that the peer installs on; `version` how its version begins.
    """

    name: str
    version: str
    newest_python: tuple[int, int]
    reason: str

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-{self.name}"


RECBOLE = Environment("recbole", "1.2.1", (3, 11), "its Ray has no release for later ones")
RECTOOLS = Environment("rectools", "0.19.", (3, 13), "it says so itself")


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


def interpreter(environment: Environment | None) -> Path | None:
    """The environment's interpreter, made if absent; None, after a line that says why, where it fails.

    None for `environment` is the interpreter that runs this.
    """
    if environment is None:
        return Path(sys.executable)
    name = environment.name
    python = environment.folder / "bin" / "python"
    if _is_ready(environment, python):
        return python
    newest = "{}.{}".format(*environment.newest_python)
    is_fit = sys.version_info[:2] <= environment.newest_python
    base = sys.executable if is_fit else shutil.which(f"python{newest}")
    if base is None:
        reason = environment.reason
        print(f"{name}: left out: no Python {newest} or older on the PATH ({reason})", flush=True)
        return None
    print(f"{name}: installing it in {environment.folder.name} (once; its PyTorch is large)", flush=True)
    requirements = HERE / f"requirements-{name}.txt"
    commands = [
        [base, "-m", "venv", "--clear", str(environment.folder)],
        [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            print(f"{name}: left out: not installed ({lines[-1] if lines else 'no message'})", flush=True)
            return None
    return python


def _is_ready(environment: Environment, python: Path) -> bool:
    check = (
        "from importlib.metadata import version as v; v('torch'); "
        f"assert v({environment.name!r}).startswith({environment.version!r})"
    )
    return python.exists() and subprocess.run([python, "-c", check], capture_output=True).returncode == 0


def run_script(python: Path, script: str, settings: Record, folder: Path) -> Record | None:
    """Run a script on the settings in a process of its own; what it recorded, or None if it failed.

    The script takes two paths, SETTINGS.json and RESULT.json; `settings["threads"]` holds for every
    library that reads such a limit from the environment.
    """
    source, result = folder / "settings.json", folder / "result.json"
    source.write_text(json.dumps(settings), encoding="utf-8")
    result.unlink(missing_ok=True)
    threads = str(settings["threads"])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "",
        "BALLAST_DEVICE": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    # FutureWarnings of pandas and PyTorch are all that RecBole's old code prints.
    command = [str(python), "-W", "ignore::FutureWarning", str(HERE / script), str(source), str(result)]
    if subprocess.run(command, env=environment).returncode or not result.exists():
        return None
    record: Record = json.loads(result.read_text(encoding="utf-8"))
    return record
