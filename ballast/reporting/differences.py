"""What a row adds to another: the pairs that `report.versus` of params.yaml declares, a family of tests."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import Scores, compare, judge
from ballast.reporting.evidence import Evidence
from ballast.reporting.tables import Column, Table, interval, labelled, number, p_value, percent, verdict

COLUMNS = (
    "dataset",
    "method",
    "reference",
    HEADLINE,
    "reference_mean",
    "users",
    "seeds",
    "gain",
    "low",
    "high",
    "seed_low",
    "seed_high",
    "p_holm",
    "verdict",
)


def differences(evidence: Evidence, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """A row a declared pair and dataset that has both methods.

    gain: (method - reference) / reference of NDCG@10; low and high: its 95 % interval over users and seeds,
    seed_low and seed_high over seeds alone, all shares of the reference's mean. p_holm and verdict: of the
    declared pairs of one dataset, a smaller family than that of all pairs, since nothing was picked by score.
    """
    parts = []
    for dataset in evidence.names():
        cells = {cell.method: cell for cell in evidence.of(dataset)}
        pairs = [pair for pair in evidence.params.report.versus if set(pair) <= set(cells)]
        if pairs:
            wanted = dict.fromkeys(name for pair in pairs for name in pair)
            scores = {
                name: user_scores(HEADLINE, cells[name].ranks, name in evidence.deterministic)
                for name in wanted
            }
            parts.append(judge(compare(scores, pairs, draws, rng)).assign(dataset=dataset))
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    frame = pd.concat(parts, ignore_index=True).rename(
        columns={
            "method_a": "method",
            "method_b": "reference",
            "mean_a": HEADLINE,
            "mean_b": "reference_mean",
            "relative": "gain",
        }
    )
    bounds = ["low", "high", "seed_low", "seed_high"]
    scale = frame["reference_mean"].where(frame["reference_mean"] != 0)
    frame[bounds] = frame[bounds].div(scale, axis=0)
    return frame[list(COLUMNS)]


def as_tests(frame: pd.DataFrame) -> pd.DataFrame:
    """What `differences` returns, in the columns of the tests of all pairs."""
    found = frame.rename(
        columns={
            "method": "method_a",
            "reference": "method_b",
            HEADLINE: "mean_a",
            "reference_mean": "mean_b",
            "gain": "relative",
        }
    )
    bounds = ["low", "high", "seed_low", "seed_high"]
    found[bounds] = found[bounds].mul(found["mean_b"], axis=0)
    return found.assign(difference=found["mean_a"] - found["mean_b"], users_with="all targets")


def user_scores(metric: str, ranks: pd.DataFrame, is_deterministic: bool) -> Scores:
    """The metric of each seed and user of a ranks table, users in the order of their ids."""
    ordered = ranks.sort_values(["seed", "user_id"])
    values = metrics.per_user(metric, ordered).reshape(ordered["seed"].nunique(), -1)  # (S, U)
    return Scores(values, is_deterministic)


def table(frame: pd.DataFrame, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """Each declared pair with its test."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Over", labelled(labels, "reference"), is_number=False),
        Column("NDCG@10", number(HEADLINE)),
        Column("NDCG@10 of the other", number("reference_mean")),
        Column("Difference", percent("gain", "+")),
        Column("95 % over users and seeds", shares("low", "high")),
        Column("over seeds alone", shares("seed_low", "seed_high")),
        Column("Adjusted p", p_value("p_holm")),
        Column("Verdict", verdict, is_number=False),
    ]
    note = (
        "Difference: (method - other) / other of NDCG@10, history masked. p: over users and seeds, "
        "Holm's correction over the pairs that params.yaml declares under report.versus, by dataset. "
        "Verdicts as for all pairs, which are a larger family: what is undecided there may be decided here."
    )
    return Table("differences", "What does each part add?", frame, columns, note, headings=headings)


def shares(low: str, high: str) -> Callable[[Mapping[Any, Any]], str]:
    """A cell with an interval of shares, in percent."""
    return lambda row: interval(low, high, digits=1, spec="+")({key: 100 * row[key] for key in (low, high)})
