"""Rank every test target against the full catalogue: reports/ranks, data/lists and an evaluate cell."""

import json
import time
from typing import Any

import inputs
import numpy as np
import pandas as pd
import study
import torch
import typer

from ballast.data import schemas
from ballast.data.sequences import SequenceStore, training_batches
from ballast.evaluation import diffusion
from ballast.evaluation.degeneration import degeneration
from ballast.evaluation.noise import auc, sequence_truth, validity
from ballast.evaluation.ranking import Ranking, rank_targets
from ballast.evaluation.sampled import draw_candidates, sampled_metrics
from ballast.models.method import Method
from ballast.models.sequential import SequentialMethod
from ballast.params import Params
from ballast.reproducibility import environment, generator, output_lock, prepare_process


def main(dataset: str = typer.Option(), method: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    with output_lock(study.SCRATCH, f"evaluate-{dataset}--{method}"):
        prepared = inputs.load_cell(params, dataset, method)
        users, targets = prepared.held_out("test")
        store = prepared.store(["train", "valid"], users)
        pushed, fakes = _poison(params, dataset)
        # Items are as popular as they are with real users.
        counts = _counts(prepared, prepared.info.num_users - fakes)
        candidates = {
            protocol.name: draw_candidates(store, targets, torch.from_numpy(counts), protocol)
            for protocol in params.evaluation.sampled
        }
        ranks, lists, accounts = [], [], {}
        for seed in inputs.seeds(params, dataset, method):
            model = inputs.trained(params, dataset, method, prepared, seed)
            started = time.monotonic()
            ranking = rank_targets(
                model, store, targets, params.evaluation.batch_size, params.evaluation.topk
            )
            seconds = time.monotonic() - started
            keys = {"dataset": dataset, "method": method, "seed": seed, "user_id": users}
            ranks.append(pd.DataFrame({**keys, **_rank_columns(ranking), "target_n_train": counts[targets]}))
            assert ranking.topk is not None
            topk = ranking.topk.numpy()  # (U, K)
            lists.append(pd.DataFrame({**keys, "target_item_id": targets.numpy(), "topk": list(topk)}))
            accounts[str(seed)] = _account(ranking, topk[:, :10], counts, seconds)
            if pushed:
                accounts[str(seed)]["pushed_exposure@10"] = _exposure(topk[:, :10], store, pushed)
            if candidates:
                accounts[str(seed)]["sampled"] = sampled_metrics(
                    model, store, candidates, prepared.info.num_items, params.evaluation.batch_size
                )
            # A backbone that reads the candidate has no states to measure.
            if isinstance(model, SequentialMethod) and not model.backbone.reads_candidates:
                accounts[str(seed)]["degeneration"] = _degeneration(model, store, targets, prepared)
            noise = _noise(model, prepared, params.cell(dataset, method).training.batch_size)
            if noise is not None:
                accounts[str(seed)]["noise"] = noise
            diffused = diffusion.account(model, store, targets, params.evaluation.batch_size)
            if diffused is not None:
                accounts[str(seed)]["diffusion"] = diffused
        schemas.write("ranks", pd.concat(ranks), study.ranks(dataset, method))
        schemas.write("lists", pd.concat(lists), study.lists(dataset, method))
        record: dict[str, Any] = {"dataset": dataset, "method": method, "seeds": accounts}
        if candidates:
            record["sampled_hashes"] = {name: drawn.hash for name, drawn in candidates.items()}
        record["environment"] = environment()
        study.write_json(study.cell("evaluate", dataset, method), record)


def _poison(params: Params, dataset: str) -> tuple[list[int], int]:
    """The items that fake users in training push, and how many fake users there are."""
    if params.datasets[dataset].poison is None:
        return [], 0
    stats = json.loads((study.prepared(dataset) / "stats.json").read_text())
    return list(stats["pushed_items"]), int(stats["fake_users"])


def _counts(prepared: inputs.Prepared, users: int) -> np.ndarray:
    """(I,) training interactions of each item with users 1..users; entry 0 is padding."""
    rows = prepared.interactions
    rows = rows[(rows["split"] == "train") & (rows["user_id"] <= users)]
    return np.bincount(rows["item_id"], minlength=prepared.info.num_items + 1).astype(np.int64)


def _exposure(top10: np.ndarray, store: SequenceStore, pushed: list[int]) -> float:
    """Share of the users who have not met a pushed item and get it in their top 10, mean over the items."""
    rows = torch.repeat_interleave(torch.arange(len(store)), store.lengths.cpu())
    shares = []
    for item in pushed:
        is_new = np.ones(len(store), bool)
        is_new[rows[store.items.cpu() == item].numpy()] = False
        shares.append((top10[is_new] == item).any(axis=1).mean())
    return float(np.mean(shares))


@torch.inference_mode()
def _degeneration(
    model: SequentialMethod, store: SequenceStore, targets: torch.Tensor, prepared: inputs.Prepared
) -> dict[str, Any]:
    """What the item vectors, and the states that score the targets, look like."""
    table = model.item_table()
    order = store.lengths.argsort(stable=True)  # like lengths together: less padding
    states = [model.query(store.histories(rows, model.max_len), table).float() for rows in order.split(512)]
    users = torch.cat(states)[order.argsort()]
    return degeneration(table.cpu(), prepared.info.item_counts, users.cpu(), targets)


def _noise(model: Method, prepared: inputs.Prepared, batch_size: int) -> dict[str, Any] | None:
    """What the model's weights of training sequences know of noise; None without weights.

    Where the truth is not known, that is how a noise model tells sequences with items replaced, as it is
    trained to, from the originals.
    """
    weigh = getattr(model, "sequence_weights", None)
    training = prepared.interactions[prepared.interactions["split"] == "train"]
    has_judge, is_known = getattr(model, "has_noise_model", False), not training["is_noise"].isna().any()
    if weigh is None or not (has_judge or is_known):
        return None
    users, weights, replaced = [], [], []
    # Cut and put together as in training: a weight may depend on the company.
    order, rng = generator(0, "noise validity"), generator(0, "replaced items")
    for batch in training_batches(prepared.store(["train"]), batch_size, model.max_len, order):
        found = weigh(batch)
        if found is None:
            return None
        users.append(batch.user_id.cpu().numpy())
        weights.append(found.cpu().numpy().astype(np.float64))
        if has_judge:
            assert batch.targets is not None
            spoilt = model.spoilt(batch.history, batch.targets[:, -1], rng)  # type: ignore[operator]
            opinion = weigh(batch.replaced(history=spoilt)).cpu().numpy().astype(np.float64)
            replaced.append(np.where((spoilt != batch.history).any(1).cpu().numpy(), opinion, np.nan))
    original = np.concatenate(weights)
    record: dict[str, Any] = {"sequences": len(original)}
    if is_known:
        record = {"noise_share": float(training["is_noise"].mean())}
    if has_judge:
        others = np.concatenate(replaced)
        record["auc_replaced"] = auc(original[~np.isnan(others)], others[~np.isnan(others)])
    if is_known:
        truth = sequence_truth(training, prepared.info.item_counts.numpy(), model.max_len)
        record |= validity(original, truth.loc[np.concatenate(users)])
    return record


def _rank_columns(ranking: Ranking) -> dict[str, np.ndarray]:
    return {
        "rank": ranking.rank.numpy(),
        "rank_unmasked": ranking.rank_unmasked.numpy(),
        "n_candidates": ranking.n_candidates.numpy(),
        "n_ties": ranking.n_ties.numpy(),
    }


def _account(ranking: Ranking, top10: np.ndarray, counts: np.ndarray, seconds: float) -> dict[str, Any]:
    """What cannot be recomputed from ranks: the lists' breadth, their popularity, and the cost."""
    return {
        "coverage@10": len(np.unique(top10)) / (len(counts) - 1),
        "mean_popularity@10": float(counts[top10].mean()),
        "tie_share": float((ranking.n_ties > 0).float().mean()),
        "users": len(top10),
        "seconds": round(seconds, 2),
        "users_per_second": round(len(top10) / seconds),
    }


if __name__ == "__main__":
    study.run(main)
