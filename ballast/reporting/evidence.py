"""What a study recorded, and the checks that it is whole, finite and made with today's settings."""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ballast import tuning
from ballast.errors import BallastError
from ballast.params import Params

CONDITION = ["condition", "surface", "budget"]


@dataclass(frozen=True)
class Cell:
    """All that was recorded of one method on one dataset.

    ranks and robustness: the tables of those names. train, evaluate, robustness_record: the JSON cells.
    """

    dataset: str
    method: str
    ranks: pd.DataFrame
    robustness: pd.DataFrame
    train: dict[str, Any]
    evaluate: dict[str, Any]
    robustness_record: dict[str, Any]

    @property
    def name(self) -> str:
        """As the cell is called in messages and file names."""
        return f"{self.dataset}--{self.method}"


@dataclass(frozen=True)
class Evidence:
    """All cells of a study's grid.

    datasets: statistics of the prepared tables by dataset. deterministic: methods that have no
    training steps, and so one seed. tuning: records of the searches for settings, by dataset and method.
    pretraining: records of pre-trained states, by their names.
    """

    params: Params
    cells: dict[tuple[str, str], Cell]
    datasets: dict[str, dict[str, Any]]
    deterministic: frozenset[str]
    tuning: dict[tuple[str, str], dict[str, Any]] = dataclasses.field(default_factory=dict)
    pretraining: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def of(self, dataset: str) -> list[Cell]:
        """The dataset's cells in the order of params.yaml."""
        return [cell for (name, _), cell in self.cells.items() if name == dataset]

    def names(self) -> list[str]:
        """Datasets in the order of the grid."""
        return list(dict.fromkeys(dataset for dataset, _ in self.cells))


def check(evidence: Evidence) -> None:
    """Raise BallastError naming the first cell that is stale, incomplete, not finite or not comparable.

    Or that was tuned more than the others: equal trials are enforced, not promised.
    """
    _check_tuning(evidence)
    _check_pretraining(evidence)
    for cell in evidence.cells.values():
        _check_settings(cell, evidence.params)
        _check_seeds(cell, _expected_seeds(cell, evidence))
        _check_finite(cell)
    for dataset in evidence.names():
        cells = evidence.of(dataset)
        # A method without surfaces has met no attack; the one that has met most is compared as well.
        fullest = max(cells, key=lambda cell: len(_conditions(cell)))
        for cell in cells:
            _check_comparable(cell, cells[0])
            _check_users("robustness table", cell, fullest)


def _check_tuning(evidence: Evidence) -> None:
    params = evidence.params
    for (dataset, method), record in evidence.tuning.items():
        tuning.check(record, params, dataset, method)
        wanted = tuning.cell(params.tuning, dataset, tuning.best(record)["change"])
        if params.cells.get(dataset, {}).get(method) != wanted:
            raise BallastError(
                f"params.yaml: cells.{dataset}.{method} is not what validation chose; "
                "run `python stages/adopt.py` of the project in the study's folder, then `dvc repro`"
            )
    for cell in evidence.cells.values() if evidence.tuning else ():
        most = max(account.get("trials", 1) for account in cell.train["seeds"].values())
        if most > params.tuning.trials:
            raise BallastError(
                f"cell {cell.name}: {most} trials, while tuning.trials gives every method "
                f"{params.tuning.trials}: shorten its model.tune, or raise tuning.trials"
            )


def _check_pretraining(evidence: Evidence) -> None:
    for name, record in evidence.pretraining.items():
        wanted = json.loads(json.dumps(dataclasses.asdict(evidence.params.transfer.pretraining[name])))
        key = _first_difference(record.get("config"), wanted)
        if key is not None:
            raise BallastError(
                f"pre-training {name}: stale: its record was made with another '{key}' than params.yaml has; "
                "run `dvc repro`, which makes it anew"
            )
        for key, value in _numbers(record):
            if not math.isfinite(value):
                raise BallastError(f"pre-training {name}: {key} of its record is not finite ({value})")


def _rerun(stage: str, cell: Cell) -> str:
    return f"run `dvc repro`, which makes the {stage} stage of {cell.name} anew"


def _check_settings(cell: Cell, params: Params) -> None:
    expected = {
        "train": (cell.train, dataclasses.asdict(params.cell(cell.dataset, cell.method))),
        "robustness": (cell.robustness_record, dataclasses.asdict(params.robustness)),
    }
    for stage, (record, wanted) in expected.items():
        key = _first_difference(record.get("config"), json.loads(json.dumps(wanted)))
        if key is not None:
            raise BallastError(
                f"cell {cell.name}: stale: its {stage} record was made with another '{key}' than params.yaml "
                f"has; {_rerun(stage, cell)}"
            )
    for frame, stage in [(cell.ranks, "evaluate"), (cell.robustness, "robustness")]:
        for column in ("dataset", "method"):
            found = {str(name) for name in frame[column].unique()}
            if found != {getattr(cell, column)}:
                raise BallastError(
                    f"cell {cell.name}: its {stage} table has {column} {sorted(found)}; {_rerun(stage, cell)}"
                )
    is_poisoned = params.datasets[cell.dataset].poison is not None
    if any(("pushed_exposure@10" in seed) != is_poisoned for seed in cell.evaluate["seeds"].values()):
        raise BallastError(
            f"cell {cell.name}: stale: its evaluate record was made with another 'poison' than params.yaml "
            f"has; {_rerun('evaluate', cell)}"
        )
    is_history = cell.robustness["surface"].astype(str) == "history"
    kinds = set(cell.robustness.loc[is_history, "condition"].astype(str))
    if kinds != set(params.robustness.kinds):
        raise BallastError(
            f"cell {cell.name}: its robustness table has the conditions {sorted(kinds)}, params.yaml "
            f"robustness.kinds asks for {sorted(params.robustness.kinds)}; {_rerun('robustness', cell)}"
        )
    for seed, rows in cell.robustness.groupby("seed"):
        recorded = cell.robustness_record["seeds"].get(str(seed), {}).get("sizes", {})
        present = rows[["condition", "surface", "norm", "budget"]].drop_duplicates()
        if len(present) != len(recorded):
            raise BallastError(
                f"cell {cell.name}: its robustness table has {len(present)} conditions for seed {seed}, its "
                f"record {len(recorded)}; {_rerun('robustness', cell)}"
            )


def _first_difference(found: Any, wanted: Any, key: str = "config") -> str | None:
    """The dotted key of the first value in which two JSON trees differ; None where they agree."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted({*found, *wanted}):
            inner = _first_difference(found.get(name, _ABSENT), wanted.get(name, _ABSENT), f"{key}.{name}")
            if inner is not None:
                return inner.removeprefix("config.")
        return None
    return None if found == wanted and type(found) is type(wanted) else key


_ABSENT = object()


def _expected_seeds(cell: Cell, evidence: Evidence) -> list[int]:
    seeds = evidence.params.datasets[cell.dataset].seeds
    return seeds[:1] if cell.method in evidence.deterministic else seeds


def _check_seeds(cell: Cell, wanted: list[int]) -> None:
    found = {
        "train cell": set(cell.train.get("seeds", {})),
        "evaluate cell": set(cell.evaluate.get("seeds", {})),
        "robustness cell": set(cell.robustness_record.get("seeds", {})),
        "ranks": {str(seed) for seed in cell.ranks["seed"].unique()},
        "robustness table": {str(seed) for seed in cell.robustness["seed"].unique()},
    }
    for where, seeds in found.items():
        if seeds != {str(seed) for seed in wanted}:
            recorded, asked = ", ".join(sorted(seeds)) or "none", ", ".join(map(str, wanted))
            raise BallastError(
                f"cell {cell.name}: its {where} has the seeds {recorded}, params.yaml asks for {asked}; "
                "run `dvc repro`"
            )


def _check_finite(cell: Cell) -> None:
    for stage, record in [
        ("train", cell.train),
        ("evaluate", cell.evaluate),
        ("robustness", cell.robustness_record),
    ]:
        for key, value in _numbers(record):
            if not math.isfinite(value):
                raise BallastError(f"cell {cell.name}: {key} of its {stage} record is not finite ({value})")
    for stage, frame in [("evaluate", cell.ranks), ("robustness", cell.robustness)]:
        for column in frame.select_dtypes("number"):
            if not np.isfinite(frame[column].to_numpy(dtype=np.float64, na_value=np.nan)).all():
                raise BallastError(f"cell {cell.name}: column {column} of its {stage} table is not finite")


def _numbers(tree: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _numbers(value, f"{key}[{index}]")
    elif isinstance(tree, float):
        yield key, tree


def _check_comparable(cell: Cell, first: Cell) -> None:
    """Every seed of every method must have met the users, targets, noise and candidates of the first."""
    _check_users("ranks", cell, first)
    _check_users("robustness table", cell, first)
    if cell.robustness_record.get("noise_hashes") != first.robustness_record.get("noise_hashes"):
        raise BallastError(
            f"cell {cell.name}: its corrupted histories are not those that {first.name} met; run `dvc repro`"
        )
    known = first.evaluate.get("sampled_hashes", {})
    for protocol, digest in cell.evaluate.get("sampled_hashes", {}).items():
        if digest != known.get(protocol):
            raise BallastError(
                f"cell {cell.name}: its sampled candidates {protocol} are not those that {first.name} met; "
                "run `dvc repro`"
            )


def _check_users(where: str, cell: Cell, first: Cell) -> None:
    """All seeds have the users of the other cell's first seed: in the ranks, or in what both withstood."""
    keys, frame, reference = ["user_id", "target_n_train", "n_candidates"], cell.ranks, first.ranks
    if where == "robustness table":
        keys = ["user_id", *CONDITION]
        shared = list(_conditions(cell) & _conditions(first))
        frame, reference = (
            table[pd.MultiIndex.from_frame(table[CONDITION]).isin(shared)]
            for table in (cell.robustness, first.robustness)
        )
    wanted = _rows(reference, int(reference["seed"].iloc[0]), keys)
    for seed in frame["seed"].unique():
        if not np.array_equal(_rows(frame, int(seed), keys), wanted):
            raise BallastError(
                f"cell {cell.name}: the {where} of seed {seed} is not about the same users, targets or "
                f"candidates as {first.name}; one of them is stale or incomplete: run `dvc repro`"
            )


def _conditions(cell: Cell) -> set[tuple[Any, ...]]:
    return set(cell.robustness[CONDITION].drop_duplicates().itertuples(index=False, name=None))


def _rows(frame: pd.DataFrame, seed: int, keys: list[str]) -> NDArray[np.float64]:
    """(N, K) values of one seed's key columns in a fixed order; names become their alphabetic index."""
    part = frame.loc[frame["seed"] == seed, keys]
    columns = []
    for key in keys:
        is_number = pd.api.types.is_numeric_dtype(part[key])
        columns.append(part[key] if is_number else pd.Categorical(part[key].astype(str)).codes)
    matrix = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return matrix[np.lexsort(matrix.T)]
