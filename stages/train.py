"""Train one method on one dataset, all seeds: data/models/<d>/<m>/ and reports/cells/train/<d>--<m>.json."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import inputs
import study
import typer

from ballast import parallel
from ballast.models import registry
from ballast.models.method import Method
from ballast.models.training import Validation, fit_phases, footprint
from ballast.params import MethodParams, Params
from ballast.reproducibility import atomic_path, config_hash, environment, output_lock, prepare_process


def main(dataset: str = typer.Option(), method: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    cell = params.cell(dataset, method)
    chosen = inputs.config(cell, f"params.yaml: methods.{method}")
    with parallel.processes():
        if not parallel.is_first():  # the first process writes; the others lend it a hand
            _train_seeds(params, cell, chosen, dataset, method)
            return
        with output_lock(study.SCRATCH, f"train-{dataset}--{method}"):
            accounts, scratch = _train_seeds(params, cell, chosen, dataset, method)
            with atomic_path(study.model(dataset, method)) as folder:
                folder.mkdir()
                for seed in accounts:
                    shutil.copyfile(scratch / f"seed-{seed}.safetensors", folder / f"seed-{seed}.safetensors")
            record = {"dataset": dataset, "method": method, "config": asdict(cell), "seeds": accounts,
                      "environment": environment()}  # fmt: skip
            study.write_json(study.cell("train", dataset, method), record)
            shutil.rmtree(scratch)


def _train_seeds(
    params: Params, cell: MethodParams, chosen: Any, dataset: str, method: str
) -> tuple[dict[str, Any], Path]:
    """Accounts of all seeds, and the scratch folder where their states lie."""
    prepared = inputs.load_cell(params, dataset, method)
    source = _pretrained(params, method)
    scratch = study.SCRATCH / "train" / _run_key(cell, dataset, method, prepared.digest, source)
    accounts = {}
    for seed in inputs.seeds(params, dataset, method):
        state = scratch / f"seed-{seed}.safetensors"
        label = f"{dataset} {method} seed {seed}"
        accounts[str(seed)] = _train_seed(cell, chosen, prepared, seed, state, source, label)
    return accounts, scratch


def _train_seed(
    cell: MethodParams,
    chosen: Any,
    prepared: inputs.Prepared,
    seed: int,
    state: Path,
    source: Path | None,
    label: str,
) -> dict[str, Any]:
    """Train one seed, or take it from the scratch folder if an ended run had got that far."""
    account = state.with_suffix(".json")
    is_done = account.exists()
    parallel.wait()  # every process looks before the first one writes
    if is_done:
        return dict(json.loads(account.read_text()))
    train = prepared.store(["train"])
    users, targets = prepared.held_out("valid")
    validation = Validation(prepared.store(["train"], users), targets)
    if registry.method_class(cell.method).is_trained_by_steps:
        model = inputs.fresh(cell, chosen, prepared.info, seed)
        if source is not None:
            registry.adopt(model, source)
        result = fit_phases(model, train, validation, cell.training, seed, state, label)
    else:
        model, result = _count(cell, chosen, prepared, train, validation)
    result |= footprint(model)
    if parallel.is_first():
        with atomic_path(state) as temporary:
            registry.save(model, temporary)
        study.write_json(account, result)
    return result


def _count(
    cell: MethodParams, chosen: Any, prepared: inputs.Prepared, train: Any, validation: Validation
) -> tuple[Method, dict[str, Any]]:
    """Fit a counting method; where it names candidates, keep the one with the best validation NDCG@10."""
    candidates = chosen.candidates() if hasattr(chosen, "candidates") else [chosen]
    best: tuple[float, Method, Any] | None = None
    seconds: list[float] = []
    for candidate in candidates:
        started = time.monotonic()
        model = inputs.fresh(cell, candidate, prepared.info, 0)
        model.fit_sequences(train.items, train.offsets)
        ndcg = validation.ndcg(model.eval())
        seconds.append(time.monotonic() - started)
        if best is None or ndcg > best[0]:
            best = (ndcg, model, candidate)
    assert best is not None
    return best[1], {
        "epochs": 0,
        "best_epoch": 0,
        "valid_ndcg@10": best[0],
        "seconds": round(sum(seconds), 2),
        "seconds_per_epoch": 0.0,
        "targets_per_second": 0,
        "history": [],
        "trials": len(seconds),
        "chosen": asdict(best[2]),
    }


def _pretrained(params: Params, method: str) -> Path | None:
    """The state that a transfer method starts from; None for the others."""
    if method not in params.transfer_methods:
        return None
    return study.pretrained(str(params.transfer_methods[method].start)) / "state.safetensors"


def _run_key(cell: MethodParams, dataset: str, method: str, data: str, source: Path | None) -> str:
    """Names the scratch folder: a run resumes only what had the same data, config and code."""
    start = hashlib.sha256(source.read_bytes()).hexdigest() if source is not None else ""
    code = inputs.code("train", method)
    return f"{dataset}--{method}--{config_hash(data, code, asdict(cell), start)}"


if __name__ == "__main__":
    study.run(main)
