"""Rank a sample of users from corrupted histories: reports/robustness and a robustness cell."""

import time
from dataclasses import asdict
from typing import Any

import inputs
import numpy as np
import pandas as pd
import study
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from ballast.data import schemas
from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError
from ballast.evaluation.ranking import rank_targets
from ballast.models.method import Method
from ballast.params import RobustnessParams
from ballast.reproducibility import environment, output_lock, prepare_process
from ballast.robustness.corruption import KINDS, Corrupted, corrupt, sample_users
from ballast.robustness.stability import rank_with_histories, rbo

TOPK = 10

Noises = dict[tuple[str, float], Corrupted]


def main(dataset: str = typer.Option(), method: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    settings = params.robustness
    _check(settings)
    with output_lock(study.SCRATCH, f"robustness-{dataset}--{method}"):
        prepared = inputs.load_cell(params, dataset, method)
        clean, targets = _sample(prepared, settings)
        # One set of histories for all seeds and all methods: only the models differ.
        noises = _noises(clean, targets, settings, prepared.info.num_items)
        seeds = inputs.seeds(params, dataset, method)
        tables, accounts = [], {}
        with tqdm(
            total=len(seeds) * len(noises), desc=f"{dataset} {method}", unit="condition", disable=None
        ) as bar:
            for seed in seeds:
                model = inputs.trained(params, dataset, method, prepared, seed)
                started = time.monotonic()
                table = _rank(model, clean, targets, noises, bar)
                tables.append(
                    table.assign(dataset=dataset, method=method, seed=seed, surface="history", norm="share")
                )
                accounts[str(seed)] = _account(noises, len(clean), time.monotonic() - started)
        columns = list(schemas.TABLES["robustness"].columns)
        schemas.write("robustness", pd.concat(tables)[columns], study.robustness(dataset, method))
        record = {"dataset": dataset, "method": method, "config": asdict(settings), "seeds": accounts,
                  "noise_hashes": {_name(*key): noise.hash for key, noise in noises.items()},
                  "environment": environment()}  # fmt: skip
        study.write_json(study.cell("robustness", dataset, method), record)


def _check(settings: RobustnessParams) -> None:
    for kind in settings.kinds:
        if kind not in KINDS:
            raise BallastError(f"params.yaml: robustness.kinds: unknown '{kind}'; known: {', '.join(KINDS)}")
    if settings.users < 1:
        raise BallastError(f"params.yaml: robustness.users: {settings.users} is less than 1")
    if not any(budget > 0 for budget in settings.budgets):
        raise BallastError("params.yaml: robustness.budgets: give at least one share above 0")


def _sample(prepared: inputs.Prepared, settings: RobustnessParams) -> tuple[SequenceStore, Tensor]:
    """Clean histories (train and valid) of the sampled users, and their (U,) test targets.

    Drawn from the users who have a target and a history, by the seed of the noise alone.
    """
    users, targets = prepared.held_out("test")
    has_history = (prepared.store(["train", "valid"], users).lengths > 0).cpu().numpy()
    chosen = sample_users(users[has_history].astype(np.int64), settings.users, settings.seed)
    return prepared.store(["train", "valid"], chosen), targets[torch.from_numpy(np.isin(users, chosen))]


def _noises(clean: SequenceStore, targets: Tensor, settings: RobustnessParams, num_items: int) -> Noises:
    """Every kind at every budget above 0; at 0 nothing changes, and the clean rank is in each row."""
    budgets = sorted({budget for budget in settings.budgets if budget > 0})
    return {
        (kind, budget): corrupt(clean, kind, budget, settings.seed, num_items, targets)
        for kind in dict.fromkeys(settings.kinds)
        for budget in budgets
    }


def _rank(model: Method, clean: SequenceStore, targets: Tensor, noises: Noises, bar: tqdm) -> pd.DataFrame:
    """A row a user and condition, for one seed."""
    reference = rank_targets(model, clean, targets, topk=TOPK)
    assert reference.topk is not None
    parts = []
    for (kind, budget), noise in noises.items():
        ranking = rank_with_histories(model, clean, noise.store, targets, topk=TOPK)
        assert ranking.topk is not None
        longest = torch.maximum(clean.lengths, noise.store.lengths).cpu().numpy()
        columns = {
            "user_id": clean.user_ids.cpu().numpy(),
            "condition": kind,
            "budget": budget,
            "clean_rank": reference.rank.numpy(),
            "rank": ranking.rank.numpy(),
            "size": noise.size.numpy(),
            "truncated": longest > model.max_len,  # some of the change may be out of the method's sight
            # Three digits are all that a mean over users needs, and pack into a third of the bytes.
            "rbo": rbo(reference.topk.numpy(), ranking.topk.numpy()).round(3),
        }
        parts.append(pd.DataFrame(columns))
        bar.update()
    return pd.concat(parts)


def _account(noises: Noises, users: int, seconds: float) -> dict[str, Any]:
    """Cost of one seed, and the mean share of positions really changed under each condition."""
    return {
        "users": users,
        "seconds": round(seconds, 2),
        "users_per_second": round(users * (len(noises) + 1) / seconds),
        "sizes": {_name(*key): round(float(noise.size.mean()), 6) for key, noise in noises.items()},
    }


def _name(kind: str, budget: float) -> str:
    return f"{kind}@{budget:g}"


if __name__ == "__main__":
    study.run(main)
