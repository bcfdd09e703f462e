"""Datasets that are one and the same but for what was done to their training."""

import pandas as pd

from ballast.params import Params

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
