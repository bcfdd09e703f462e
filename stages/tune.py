"""Try a method's settings on validation, as many as every other method's: reports/cells/tune/<d>--<m>.json.

`python stages/adopt.py` then writes what was chosen into params.yaml.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import inputs
import study
import typer

from ballast import tuning
from ballast.errors import BallastError
from ballast.models import registry
from ballast.models.training import Validation, fit_phases
from ballast.params import MethodParams
from ballast.reproducibility import config_hash, environment, output_lock, prepare_process


def main(dataset: str = typer.Option(), method: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    seed = params.tuning.seed
    cells = [
        (change, tuning.tried(params, dataset, method, change))
        for change in tuning.trials(params.tuning, method)
    ]
    # Every setting is checked before the first one is trained.
    where = f"params.yaml: tuning: {method} on {dataset}"
    chosen = [inputs.config(cell, where) for _, cell in cells]
    if not registry.method_class(cells[0][1].method).is_trained_by_steps:
        raise BallastError(f"{where}: a counting method is tuned by `model.tune` of its own block")
    with output_lock(study.SCRATCH, f"tune-{dataset}--{method}"):
        modalities = registry.needed_modalities(chosen[0])
        prepared = inputs.load(
            study.prepared(dataset), {name: study.features(dataset, name) for name in modalities}
        )
        users, targets = prepared.held_out("valid")
        validation = Validation(prepared.store(["train"], users), targets)
        code = inputs.code("tune", method)
        records = []
        for index, ((change, cell), config) in enumerate(zip(cells, chosen, strict=True)):
            key = config_hash(prepared.digest, code, asdict(cell), seed)
            done = study.SCRATCH / "tune" / f"{dataset}--{method}--{key}.json"
            if not done.exists():  # an ended run had not got that far
                label = f"{dataset} {method} trial {index + 1} of {len(cells)}"
                study.write_json(done, _trial(cell, config, prepared, validation, seed, done, label))
            records.append({"change": change, **json.loads(done.read_text())})
        record = {"dataset": dataset, "method": method, "seed": seed, "trials": records,
                  "environment": environment()}  # fmt: skip
        study.write_json(study.cell("tune", dataset, method), record)
        for done in (study.SCRATCH / "tune").glob(f"{dataset}--{method}--*"):
            done.unlink()


def _trial(
    cell: MethodParams,
    config: Any,
    prepared: inputs.Prepared,
    validation: Validation,
    seed: int,
    done: Path,
    label: str,
) -> dict[str, float]:
    """Train once; what it reached on validation, and what it cost."""
    model = inputs.fresh(cell, config, prepared.info, seed)
    train = prepared.store(["train"])
    account = fit_phases(model, train, validation, cell.training, seed, done, label)
    return {key: account[key] for key in ("valid_ndcg@10", "epochs", "best_epoch", "seconds")}


if __name__ == "__main__":
    study.run(main)
