"""Ours beside published numbers: the harness must reproduce them before it may judge."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ballast.errors import BallastError
from ballast.evaluation.metrics import METRICS
from ballast.params import Params
from ballast.reporting.results import DIVERSITY
from ballast.reporting.tables import Column, Row, Table, number, text

TOLERANCE = 0.05


def calibration(accuracy: pd.DataFrame, params: Params) -> Table:
    """Ours beside published numbers; passes within the tolerance, or from a stated minimum on."""
    labels = {name: block.label for name, block in params.all_methods().items()}
    rows = []
    for index, entry in enumerate(params.report.calibration):
        rows.append(_calibration_row(entry, accuracy, f"params.yaml: report.calibration[{index}]"))
    names = [
        "dataset",
        "method",
        "metric",
        "ours",
        "theirs",
        "ratio",
        "tolerance",
        "minimum",
        "verdict",
        "source",
    ]
    columns = [
        Column("Dataset", lambda row: params.datasets[row["dataset"]].label, is_number=False),
        Column("Method", lambda row: labels[row["method"]], is_number=False),
        Column("Metric", text("metric"), is_number=False),
        Column("Ours", number("ours")),
        Column("Theirs", number("theirs")),
        Column("Ratio", number("ratio", 3)),
        Column("Asked", _asked),
        Column("Verdict", text("verdict"), is_number=False),
        Column("Source", text("source"), is_number=False),
    ]
    return Table("calibration", "Calibration", pd.DataFrame(rows, columns=names), columns, group=None)


def _calibration_row(entry: Mapping[str, Any], accuracy: pd.DataFrame, where: str) -> dict[str, Any]:
    required, optional = {"dataset", "method", "metric", "theirs", "source"}, {"tolerance", "minimum"}
    for key in sorted({*entry, *required} - (required & set(entry)) - optional):
        raise BallastError(f"{where}.{key}: this key is {'unknown' if key in entry else 'missing'}")
    for key in ("theirs", *(optional & set(entry))):
        if not isinstance(entry[key], int | float) or not math.isfinite(entry[key]) or entry[key] <= 0:
            raise BallastError(f"{where}.{key}: got {entry[key]!r}, expected a number above 0")
    row = accuracy[(accuracy["dataset"] == entry["dataset"]) & (accuracy["method"] == entry["method"])]
    if row.empty:
        raise BallastError(f"{where}: {entry['dataset']} x {entry['method']} is not a cell of this study")
    known = [*METRICS, *DIVERSITY]
    if entry["metric"] not in known:
        raise BallastError(f"{where}.metric: unknown metric '{entry['metric']}'; known: {', '.join(known)}")
    ours = float(row[entry["metric"]].iloc[0])
    ratio, tolerance = ours / entry["theirs"], entry.get("tolerance", TOLERANCE)
    minimum = entry.get("minimum", float("nan"))
    passes = abs(ratio - 1) <= tolerance if math.isnan(minimum) else ours >= minimum
    return {
        **entry,
        "ours": ours,
        "ratio": ratio,
        "tolerance": tolerance if math.isnan(minimum) else float("nan"),
        "minimum": minimum,
        "verdict": "pass" if passes else "fail",
    }


def _asked(row: Row) -> str:
    return (
        f"± {row['tolerance']:.0%}".replace("%", " %")
        if np.isnan(row["minimum"])
        else f"at least {row['minimum']:.4f}"
    )
