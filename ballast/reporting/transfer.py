"""What pre-training gained or cost: each adapted method beside the same method from scratch."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.params import Params
from ballast.reporting.differences import shares
from ballast.reporting.evidence import Evidence
from ballast.reporting.pairs import find
from ballast.reporting.tables import (
    Column,
    Table,
    heading,
    labelled,
    number,
    p_value,
    percent,
    text,
)

METRICS = tuple(
    f"{name}@{k}{mask}" for mask in ("", "-unmasked") for name in ("hr", "ndcg") for k in (10, 50)
)
COLUMNS = (
    "dataset",
    "method",
    "scratch",
    *METRICS,
    "users",
    "scratch_mean",
    "gain",
    "low",
    "high",
    "seed_low",
    "seed_high",
    "p_holm",
    "verdict",
)


def gains(evidence: Evidence, pairs: pd.DataFrame) -> pd.DataFrame:
    """A row an adapted method of `report.scratch` and dataset.

    gain: (adapted - scratch) / scratch of NDCG@10, below 0 where transfer is negative; low and high: its 95 %
    interval over users and seeds, that of the difference over the mean from scratch; seed_low and
    seed_high over seeds alone.
    p_holm and verdict are those of the study's family of tests.
    """
    rows: list[dict[str, Any]] = []
    for (dataset, method), cell in evidence.cells.items():
        scratch = evidence.params.report.scratch.get(method)
        if scratch is None or (dataset, scratch) not in evidence.cells:
            continue
        test = find(pairs, dataset, method, scratch)
        scale = test["mean_b"] or float("nan")
        spread = {key: test[key] / scale for key in ("low", "high", "seed_low", "seed_high")}
        rows.append(
            {
                "dataset": dataset,
                "method": method,
                "scratch": scratch,
                **{name: float(metrics.per_user(name, cell.ranks).mean()) for name in METRICS},
                "users": cell.ranks["user_id"].nunique(),
                "scratch_mean": test["mean_b"],
                "gain": test["difference"] / scale,
                **spread,
                "p_holm": test["p_holm"],
                "verdict": test["verdict"],
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def by_similarity(frame: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The rows of `gains` on simulated targets, with their `shared_style`; empty unless it varies."""
    simulated = {name: block.source.simulated for name, block in params.datasets.items()}
    styles = {
        name: shop["shared_style"] for name, shop in simulated.items() if shop and "shared_style" in shop
    }
    rows = frame[frame["dataset"].isin(list(styles))]
    rows = rows.assign(shared_style=rows["dataset"].map(styles).astype(float))
    return rows if rows["shared_style"].nunique() > 1 else rows.iloc[:0]


def table(frame: pd.DataFrame, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """Adapted against scratch; the metrics that papers on transfer report stand beside it."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("From scratch", labelled(labels, "scratch"), is_number=False),
        Column("Transfer", percent("gain", "+")),
        Column("95 % over users and seeds", shares("low", "high")),
        Column("over seeds alone", shares("seed_low", "seed_high")),
        Column("Adjusted p", p_value("p_holm")),
        Column("Verdict", text("verdict"), is_number=False),
        *(Column(heading(name), number(name), best=name) for name in METRICS),
    ]
    note = (
        "Transfer: (adapted - from scratch) / from scratch of NDCG@10, history masked; below zero it is "
        "negative transfer. Both have as many seeds; the pre-trained state is one for all of them. Verdict: "
        "better or worse where the test of the accuracy section holds."
    )
    return Table("transfer", "Pre-trained against from scratch", frame, columns, note, headings=headings)


def curves(evidence: Evidence) -> pd.DataFrame:
    """Pre-training by epoch: a row an epoch, `dataset` the pool and `method` what was pre-trained on it."""
    rows = [
        {
            "dataset": evidence.params.transfer.pretraining[name].pool,
            "method": name,
            "epoch": epoch["epoch"],
            "loss": epoch["loss"],
            f"valid_{HEADLINE}": epoch[f"valid_{HEADLINE}"],
        }
        for name, record in evidence.pretraining.items()
        for account in record["seeds"].values()
        for epoch in account["history"]
    ]
    return pd.DataFrame(rows, columns=["dataset", "method", "epoch", "loss", f"valid_{HEADLINE}"])


def cost(evidence: Evidence, params: Params) -> Table:
    """What each pre-training took."""
    rows = []
    for name, record in evidence.pretraining.items():
        for account in record["seeds"].values():
            block = params.transfer.pretraining[name]
            kept = (
                "epochs",
                "best_epoch",
                f"valid_{HEADLINE}",
                "seconds",
                "targets_per_second",
                "parameters",
            )
            rows.append(
                {
                    "pretraining": name,
                    "label": block.label,
                    "pool": block.pool,
                    "sources": ", ".join(params.transfer.pools[block.pool].sources),
                    **{key: account[key] for key in kept},
                    "peak_memory_mb": account["peak_memory_mb"],
                    "device": record["environment"]["device"],
                }
            )
    columns = [
        Column("Pre-trained", text("label"), is_number=False),
        Column("On", text("sources"), is_number=False),
        Column("Epochs", number("epochs", 0)),
        Column("Validation NDCG@10", number(f"valid_{HEADLINE}")),
        Column("Seconds", number("seconds", 0)),
        Column("Targets a second", number("targets_per_second", 0)),
        Column("Parameters", number("parameters", 0)),
        Column("Peak memory, MB", number("peak_memory_mb", 0)),
        Column("Device", text("device"), is_number=False),
    ]
    note = "One state a row, from which every seed of the methods that name it starts; the pool's validation."
    return Table("pretraining", "What was pre-trained", pd.DataFrame(rows), columns, note, group=None)
