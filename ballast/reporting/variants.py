"""Datasets that are one and the same but for what was done to their training."""

import dataclasses

import pandas as pd

from ballast.params import Params
from ballast.reporting.evidence import Cell

# What may be done to training, in params.yaml's words, and the name of its share in figures.
KINDS = {"noise": "share of training interactions that is noise", "sample": "share of users trained on"}
_UNTOUCHED = {"noise": 0.0, "sample": 1.0}


def base(params: Params, dataset: str) -> str:
    """The first dataset that is the same but for its training: together they make one panel."""
    wanted, *others = (
        (block.source, block.reader, block.filter, block.split)
        for block in (params.datasets[dataset], *params.datasets.values())
    )
    return list(params.datasets)[others.index(wanted)]


def share(params: Params, dataset: str, kind: str) -> float:
    """How much of its training is noise, or is used: the `share` of the dataset's block `kind`."""
    block = getattr(params.datasets[dataset], kind)
    return _UNTOUCHED[kind] if block is None else float(block.share)


def is_untouched(params: Params, dataset: str, but: str) -> bool:
    """Whether nothing was done to its training, whatever its share of the kind `but` is."""
    return params.datasets[dataset].poison is None and all(
        share(params, dataset, kind) == untouched for kind, untouched in _UNTOUCHED.items() if kind != but
    )


def popularity_of_base(cells: dict[tuple[str, str], Cell], params: Params) -> dict[tuple[str, str], Cell]:
    """The cells, each target counted in the training that nothing was done to, where the study has it.

    Else the rare targets of a sample would be other users than those of the whole, and could not be compared.
    """
    counts = {
        dataset: cell.ranks.drop_duplicates("user_id").set_index("user_id")["target_n_train"]
        for (dataset, _), cell in cells.items()
    }
    found = {}
    for (dataset, method), cell in cells.items():
        of_base = counts.get(base(params, dataset), counts[dataset])
        if not of_base.index.symmetric_difference(counts[dataset].index).size:
            own = cell.ranks["user_id"].map(of_base).astype(cell.ranks["target_n_train"].dtype)
            cell = dataclasses.replace(cell, ranks=cell.ranks.assign(target_n_train=own))
        found[dataset, method] = cell
    return found


def by_share(frame: pd.DataFrame, params: Params, kind: str) -> pd.DataFrame:
    """Rows of datasets that differ in the share of `kind` alone: `variant` the dataset, `dataset` its base.

    Empty unless some base has several shares.
    """
    names = [str(name) for name in frame["dataset"]]
    rows = frame.assign(
        variant=names,
        dataset=[base(params, name) for name in names],
        share=[share(params, name, kind) for name in names],
    )
    is_alike = [is_untouched(params, name, but=kind) for name in names]
    rows = rows[is_alike]
    return rows[rows.groupby("dataset")["share"].transform("nunique") > 1] if len(rows) else rows
