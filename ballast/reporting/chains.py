"""What diffusion models owe to their schedule, their draws and the length of the reverse chain."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.reporting.evidence import Cell, Evidence
from ballast.reporting.tables import Column, Table, labelled, number, percent

DRAWS = (
    "dataset",
    "method",
    "users",
    "steps",
    "draws",
    "alpha_bar_last",
    HEADLINE,
    "single_mean",
    "single_sd",
    "single_low",
    "single_high",
    "overlap@10",
)
STEPS = ("dataset", "method", "users", "steps", HEADLINE, "low", "high")
SCHEDULE = ("dataset", "method", "step", "alpha_bar", "low", "high")
SCHEDULES = "schedules"


def draws(evidence: Evidence, accuracy: pd.DataFrame) -> pd.DataFrame:
    """A row a method that samples: NDCG@10 as evaluated, and of single passes, sd over these within a seed.

    single_low and single_high: the lowest and highest single pass of any seed. overlap@10: see
    ballast/evaluation/diffusion.py. All means are over seeds; alpha_bar_last is the schedule's end.
    """
    means = accuracy.set_index(["dataset", "method"])[HEADLINE]
    rows = []
    for cell, records in _records(evidence, "passes"):
        passes = np.array([record["passes"] for record in records])  # (S, P)
        model = evidence.params.cell(cell.dataset, cell.method).model
        whole = len(records[0]["alpha_bar"])
        rows.append({
            "dataset": cell.dataset,
            "method": cell.method,
            "users": _users(cell),
            "steps": (model.get("reverse_steps") or whole) if "reverse_steps" in records[0] else np.nan,
            "draws": model.get("draws", 1),
            "alpha_bar_last": records[0]["alpha_bar"][-1],
            HEADLINE: means.loc[(cell.dataset, cell.method)],
            "single_mean": passes.mean(),
            "single_sd": passes.std(axis=1, ddof=1).mean(),
            "single_low": passes.min(),
            "single_high": passes.max(),
            "overlap@10": np.mean([record["overlap@10"] for record in records]),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=list(DRAWS))


def by_steps(evidence: Evidence) -> pd.DataFrame:
    """NDCG@10 by the steps of the reverse chain, of the same weights; low and high: one sd over seeds."""
    rows = []
    for cell, records in _records(evidence, "reverse_steps"):
        for steps in records[0]["reverse_steps"]:
            values = [record["reverse_steps"][steps] for record in records]
            mean, spread = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
            keys = {"dataset": cell.dataset, "method": cell.method, "users": _users(cell)}
            rows.append(
                {**keys, "steps": int(steps), HEADLINE: mean, "low": mean - spread, "high": mean + spread}
            )
    return pd.DataFrame(rows, columns=list(STEPS))


def schedules(evidence: Evidence) -> pd.DataFrame:
    """alpha_bar_t by t over T, a row a step, `dataset` being SCHEDULES: one curve a method and schedule.

    `low` and `high` are alpha_bar itself, for the drawing.
    """
    rows = [
        {
            "dataset": SCHEDULES,
            "method": cell.method,
            "step": (place + 1) / len(records[0]["alpha_bar"]),
            "alpha_bar": value,
            "low": value,
            "high": value,
        }
        for cell, records in _records(evidence, "alpha_bar")
        for place, value in enumerate(records[0]["alpha_bar"])
    ]
    return pd.DataFrame(rows, columns=list(SCHEDULE)).drop_duplicates()


def _records(evidence: Evidence, key: str) -> list[tuple[Cell, list[dict[str, Any]]]]:
    """Cells whose seeds have recorded `key`, and what they recorded of diffusion."""
    found = []
    for cell in evidence.cells.values():
        records = [seed.get("diffusion", {}) for seed in cell.evaluate["seeds"].values()]
        if all(key in record for record in records):
            found.append((cell, records))
    return found


def _users(cell: Cell) -> int:
    return int(cell.ranks["user_id"].nunique())


def table(frame: pd.DataFrame, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """How much a single pass leaves to chance."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Reverse steps", number("steps", 0)),
        Column("Draws", number("draws", 0)),
        Column("Signal left at T", number("alpha_bar_last", 3)),
        Column("NDCG@10", number(HEADLINE)),
        Column("One pass", number("single_mean")),
        Column("sd over passes", number("single_sd")),
        Column("Lowest", number("single_low")),
        Column("Highest", number("single_high")),
        Column("Top 10 shared", percent("overlap@10")),
    ]
    note = (
        "NDCG@10: scores averaged over the draws. One pass: the mean of ten single ones with other draws, "
        "their standard deviation within a seed, and the extremes of all seeds. Top 10 shared: what two "
        "passes agree on. Signal left at T: the last alpha-bar, what is left of a clean vector's variance."
    )
    return Table("draws", "What do random draws decide?", frame, columns, note, headings=headings)
