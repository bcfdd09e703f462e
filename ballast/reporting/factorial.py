"""Encoder and loss as two factors: what each combination reached, and which of the two it is due to."""

from collections.abc import Mapping

import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.params import MethodParams, Params
from ballast.reporting.tables import Column, Table, number

FACTORS = ("backbone", "loss")


def combinations(accuracy: pd.DataFrame, params: Params) -> pd.DataFrame:
    """A row a dataset and method that names a backbone and a loss, where all their combinations are there.

    Columns dataset, method, backbone, loss, NDCG@10 and its sd over seeds. Empty for a study that does not
    cross at least two of each: comparing rows of different pairs would mix both factors.
    """
    plain = {name: block for name, block in params.all_methods().items() if block.method == "next_item"}
    factors = pd.DataFrame(
        [{"method": name, **_factors(block)} for name, block in plain.items()], columns=["method", *FACTORS]
    )
    sizes = factors[list(FACTORS)].nunique()
    is_crossed = (
        sizes.min() >= 2 and len(factors) == sizes.prod() and not factors.duplicated(list(FACTORS)).any()
    )
    frame = (
        accuracy.merge(factors, on="method") if is_crossed else accuracy.iloc[:0].assign(backbone="", loss="")
    )
    return frame[["dataset", "method", *FACTORS, HEADLINE, f"{HEADLINE}_sd"]]


def _factors(block: MethodParams) -> dict[str, str]:
    return {factor: block.model.get(factor, {}).get("name", "") for factor in FACTORS}


def shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of the variance of NDCG@10 over the combinations that each factor and their interaction make up.

    Two-way analysis of variance of the means over seeds, one row a dataset; the three add up to 1.
    """
    rows = []
    for dataset, cells in frame.groupby("dataset", sort=False):
        values = cells[HEADLINE]
        deviation = values - values.mean()
        main = {
            factor: (cells.groupby(factor)[HEADLINE].transform("mean") - values.mean()).pow(2).sum()
            for factor in FACTORS
        }
        total = deviation.pow(2).sum()
        parts = {factor: float(part / total) for factor, part in main.items()}
        rows.append({"dataset": dataset, **parts, "interaction": 1 - sum(parts.values())})
    return pd.DataFrame(rows, columns=["dataset", *FACTORS, "interaction"])


def table(frame: pd.DataFrame, headings: Mapping[str, str]) -> Table:
    """NDCG@10 by backbone (rows) and loss (columns); the CSV holds a row a combination."""
    losses = list(dict.fromkeys(frame["loss"]))
    shown = frame.pivot_table(index=["dataset", "backbone"], columns="loss", values=HEADLINE, sort=False)
    shown = shown.reset_index()
    shown["best"] = shown[losses].idxmax(axis=1) if len(shown) else ""
    columns = [
        Column("Backbone", lambda row: str(row["backbone"]).replace("_", "-"), is_number=False),
        *(Column(loss.replace("_", " "), number(loss), best=loss) for loss in losses),
        Column("Best loss", lambda row: str(row["best"]).replace("_", " "), is_number=False),
    ]
    parts = shares(frame).set_index("dataset")
    told = "; ".join(
        f"{headings[str(name)].split(' · ')[0]}: backbone {row['backbone']:.0%}, loss {row['loss']:.0%}, "
        f"interaction {row['interaction']:.0%}".replace("%", " %")
        for name, row in parts.iterrows()
    )
    note = f"NDCG@10, history masked, mean over seeds. Share of the variance between combinations: {told}."
    return Table("backbone_loss", "Backbone and loss", frame, columns, note, headings=headings, shown=shown)
