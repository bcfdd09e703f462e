"""What the papers' methods add to their controls in all studies: one table and one figure.

Not a stage of any pipeline, since it reads what the pipelines of all studies wrote: `python
stages/overview.py` in the project's folder, after `dvc repro` in the studies.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import study
import typer
import yaml

from ballast import params
from ballast.errors import BallastError
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import judge
from ballast.reporting import plots
from ballast.reporting.pairs import find

CLAIMS = Path("studies/overview.yaml")
KEYS = {"paper", "study", "method", "control", "over"}
OPTIONAL = {"datasets", "note"}
COLUMNS = (
    *("paper", "study", "dataset", "method", "control", "over", "note", "users", "seeds", HEADLINE),
    *("control_mean", "gain", "low", "high", "seed_low", "seed_high", "p", "p_holm", "verdict"),
)


def main() -> None:
    """Write studies/overview.csv, .png and .pdf from studies/overview.yaml and the studies' tables."""
    frame = table(CLAIMS)
    figure = plots.forest(frame.rename(columns={"paper": "group"}), "NDCG@10 over the control")
    kept = frame[list(COLUMNS)].to_csv(index=False, float_format="%.6g")
    plots.save(figure, kept, CLAIMS.parent, CLAIMS.stem)
    counts = ", ".join(f"{count} {name}" for name, count in frame["verdict"].value_counts().items())
    typer.echo(f"{CLAIMS.parent}/{CLAIMS.stem}.csv, .png, .pdf: {len(frame)} comparisons: {counts}")


def table(path: Path) -> pd.DataFrame:
    """A row a comparison; `row` is its name; bounds are shares of the control's mean.

    p_holm and verdict are of one family, all rows of all studies: the papers' claims, not what scored best.
    Raises BallastError where the file or a study's table cannot be read, or names nothing.
    """
    rows = [row for claim in _claims(path) for row in _rows(claim, path)]
    frame = judge(pd.DataFrame(rows))
    bounds = ["low", "high", "seed_low", "seed_high"]
    frame[bounds] = frame[bounds].div(frame["mean_b"], axis=0)
    names = {"mean_a": HEADLINE, "mean_b": "control_mean", "relative": "gain"}
    return frame.rename(columns=names)


def _claims(path: Path) -> list[dict[str, Any]]:
    try:
        claims = yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BallastError(f"{path}: no list of claims can be read from it: {error}") from error
    for number, claim in enumerate(claims, 1):
        odd = sorted((KEYS - set(claim)) | (set(claim) - KEYS - OPTIONAL))
        if odd:
            raise BallastError(f"{path}: claim {number}: missing or unknown: {', '.join(odd)}")
    return list(claims)


def _rows(claim: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    folder = path.parent.parent / claim["study"]
    source = folder / "reports/tables/tests.csv"
    if not source.is_file():
        raise BallastError(f"{source}: not found; run `dvc repro` in {folder}")
    tests = pd.read_csv(source)
    known = params.load(folder / "params.yaml")
    measured = json.loads((folder / study.METRICS).read_text(encoding="utf-8"))
    pair = {claim["method"], claim["control"]}
    datasets = claim.get("datasets") or [name for name in measured if pair <= set(measured[name])]
    rows = []
    for dataset in datasets:
        if not pair <= set(measured.get(dataset, {})):
            raise BallastError(f"{path}: {claim['study']}: {dataset} has no test of {' against '.join(pair)}")
        label = known.datasets[dataset].label
        note = f", {claim['note']}" if claim.get("note") else ""
        found: dict[Any, Any] = find(tests, dataset, claim["method"], claim["control"]).to_dict()
        told = {"note": claim.get("note", ""), "dataset": dataset}
        rows.append({**found, **claim, **told, "row": f"{label}{note}, over {claim['over']}"})
    if not rows:
        raise BallastError(f"{path}: {claim['study']}: no data set has {' and '.join(sorted(pair))}")
    return rows


if __name__ == "__main__":
    study.run(main)
