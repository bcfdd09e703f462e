"""The whole study's cells, ranks and robustness ranks to metrics.json, tables, figures and the page.

Reads what is in git only, and exactly the grid of params.yaml: a folder is never searched.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import study

from ballast.data import schemas
from ballast.errors import BallastError
from ballast.models import registry
from ballast.params import Params
from ballast.reporting import answer, page, plots, results, study_figures, study_tables, tables, transfer
from ballast.reporting.claims import default_claims
from ballast.reporting.evidence import Cell, Evidence, check
from ballast.reporting.variants import popularity_of_base
from ballast.reproducibility import atomic_path, numpy_generator, output_lock

REPORTS = Path("reports")


def main() -> None:
    params = study.params()
    mpl.use("agg")
    with output_lock(study.SCRATCH, "report"):
        evidence = _read(params)
        check(evidence)
        found = results.compute(evidence, numpy_generator(params.report.seed, "bootstrap"))
        claims = default_claims(found, params)
        printed = study_tables.build(found, params, claims)
        if evidence.pretraining:
            printed["pretraining"] = transfer.cost(evidence, params)
        labels = {name: block.label for name, block in params.all_methods().items()}
        style = plots.looks(labels, evidence.deterministic)
        drawings = _write_figures(found, params, style)
        _write_tables(printed)
        _write_plots(found, params)
        blocks = page.sections(printed, drawings)
        html = page.render(params, blocks, answer.answers(found, params, claims), style)
        with atomic_path(REPORTS / "index.html") as temporary:
            temporary.write_text(html, encoding="utf-8")
        study.write_json(study.METRICS, results.as_metrics(found))


def _read(params: Params) -> Evidence:
    methods = params.all_methods()
    is_stepped = {
        name: registry.method_class(block.method).is_trained_by_steps for name, block in methods.items()
    }
    return Evidence(
        params=params,
        cells=popularity_of_base({(d, m): _read_cell(d, m) for d, m in params.grid()}, params),
        datasets={d: _json(REPORTS / "cells/preprocess" / f"{d}.json", d) for d, _ in params.grid()},
        deterministic=frozenset(name for name, stepped in is_stepped.items() if not stepped),
        pretraining={name: _json(study.pretraining_cell(name), name) for name in params.transfer.pretraining},
        tuning={(d, m): _json(study.cell("tune", d, m), f"{d}--{m}") for d, m in params.tuned()},
    )


def _read_cell(dataset: str, method: str) -> Cell:
    name = f"{dataset}--{method}"
    for path in (study.ranks(dataset, method), study.robustness(dataset, method)):
        _require(path, name)
    train, evaluate, robustness = (
        _json(study.cell(stage, dataset, method), name) for stage in ("train", "evaluate", "robustness")
    )
    return Cell(
        dataset=dataset,
        method=method,
        ranks=schemas.read("ranks", study.ranks(dataset, method)),
        robustness=schemas.read("robustness", study.robustness(dataset, method)),
        train=train,
        evaluate=evaluate,
        robustness_record=robustness,
    )


def _require(path: Path, cell: str) -> None:
    if not path.is_file():
        raise BallastError(f"cell {cell}: {path} is missing; run `dvc repro`, which makes what is missing")


def _json(path: Path, cell: str) -> dict[str, Any]:
    _require(path, cell)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BallastError(
            f"cell {cell}: {path} is not valid JSON ({error}); run `dvc repro -f -s` on its stage"
        ) from None
    if not isinstance(record, dict):
        raise BallastError(f"cell {cell}: {path} does not hold a record; run `dvc repro -f -s` on its stage")
    return record


def _write_figures(
    found: results.Results, params: Params, style: dict[str, plots.Look]
) -> dict[str, page.Drawing]:
    drawings = {}
    with atomic_path(REPORTS / "figures") as folder:
        folder.mkdir()
        for figure in study_figures.build(found, params, style):
            plots.save(figure.whole(), tables.csv(figure.frame), folder, figure.name)
            panels = [plots.as_svg(panel, f"{figure.name}-{dataset}") for dataset, panel in figure.panels()]
            drawings[figure.name] = page.Drawing(figure.name, figure.caption, panels)
    return drawings


def _write_tables(printed: dict[str, tables.Table]) -> None:
    with atomic_path(REPORTS / "tables") as folder:
        folder.mkdir()
        for name, table in printed.items():
            (folder / f"{name}.csv").write_text(tables.csv(table.frame), encoding="utf-8")
            (folder / f"{name}.tex").write_text(tables.latex(table), encoding="utf-8")


def _write_plots(found: results.Results, params: Params) -> None:
    """What `dvc plots` draws: one point a row, named by panel and method."""
    frames = {
        "accuracy": found.accuracy,
        "training": results.best_so_far(found.training),
        "robustness": found.robustness,
    }
    columns = {
        "accuracy": ["ndcg@10", "hr@10", "low", "high"],
        "training": ["epoch", "best_valid_ndcg@10"],
        "robustness": ["budget", "relative"],
    }
    with atomic_path(REPORTS / "plots") as folder:
        folder.mkdir()
        for name, frame in frames.items():
            panel = frame["dataset"].map({dataset: block.label for dataset, block in params.datasets.items()})
            if "condition" in frame:
                panel = panel + ": " + frame["condition"]
            points = frame[["method", *columns[name]]]
            points.insert(0, "panel", panel)
            (folder / f"{name}.csv").write_text(tables.csv(points), encoding="utf-8")


if __name__ == "__main__":
    study.run(main)
