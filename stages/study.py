"""Where things lie in a study's folder, and how an entry point ends."""

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer

from ballast.errors import BallastError
from ballast.params import Params, load
from ballast.reproducibility import atomic_path

T = TypeVar("T")

PARAMS = Path("params.yaml")
SCRATCH = Path(".scratch")
METRICS = Path("reports/metrics.json")


def params() -> Params:
    """The params.yaml of the study that the current folder is."""
    return load(PARAMS)


def block(blocks: Mapping[str, T], name: str, key: str) -> T:
    """The block of params.yaml called `name` under `key`; raises BallastError that lists those there are."""
    if name not in blocks:
        raise BallastError(f"params.yaml: {key}.{name} is missing; there are: {', '.join(blocks) or 'none'}")
    return blocks[name]


def raw(dataset: str) -> Path:
    return Path("data/raw") / dataset


def prepared(dataset: str) -> Path:
    return Path("data/prepared") / dataset


def features(dataset: str, modality: str) -> Path:
    return Path("data/features") / dataset / modality / "features.parquet"


def features_stats(dataset: str, modality: str) -> Path:
    return Path("reports/cells/features") / f"{dataset}--{modality}.json"


def pooled(pool: str) -> Path:
    return Path("data/pooled") / pool


def pretraining_cell(name: str) -> Path:
    return Path("reports/cells/pretrain") / f"{name}.json"


def pretrained(name: str) -> Path:
    return Path("data/pretrained") / name


def model(dataset: str, method: str) -> Path:
    return Path("data/models") / dataset / method


def lists(dataset: str, method: str) -> Path:
    return Path("data/lists") / f"{dataset}--{method}.parquet"


def cell(stage: str, dataset: str, method: str) -> Path:
    return Path("reports/cells") / stage / f"{dataset}--{method}.json"


def ranks(dataset: str, method: str) -> Path:
    return Path("reports/ranks") / f"{dataset}--{method}.parquet"


def robustness(dataset: str, method: str) -> Path:
    return Path("reports/robustness") / f"{dataset}--{method}.parquet"


def write_json(path: Path, data: Any) -> None:
    """Write `data` atomically, keys in the order given, floats as Python prints them."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def run(main: Callable[..., None]) -> None:
    """Run a stage's typer command; a BallastError or a full disk ends it with one line and status 1."""
    try:
        typer.run(main)
    except BallastError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        name = error.filename or os.getcwd()
        sys.exit(
            f"error: {name}: the disk is full; nothing half written was kept; free some space and run again"
        )
