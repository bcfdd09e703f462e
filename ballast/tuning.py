"""The search for a method's settings: as many trials for every method, drawn from one declared space.

A trial is a few changes of the method's block, by dotted key (`training.learning_rate`). The first trial is
the block as it is written, so that a search never loses to the settings it began with; the others are drawn
without replacement from all combinations of the space (random search: Bergstra & Bengio, JMLR 13, 2012), by
the seed of the search alone, so that methods with the same space try the same settings.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from ballast.errors import BallastError
from ballast.params import MethodParams, Params, TuningParams, changed
from ballast.reproducibility import numpy_generator

Change = dict[str, Any]


def trials(tuning: TuningParams, method: str) -> list[Change]:
    """`tuning.trials` changes to try, the first one empty; raises BallastError where the space has fewer."""
    space = {**tuning.space, **tuning.spaces.get(method, {})}
    every = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    if tuning.trials - 1 > len(every):
        raise BallastError(
            f"params.yaml: tuning.trials: {tuning.trials} is more than the {len(every)} combinations of the "
            f"space of {method}, and the block as written; add values under tuning.space"
        )
    drawn = numpy_generator(tuning.seed, "tuning").permutation(len(every))[: tuning.trials - 1]
    return [{}, *(every[index] for index in drawn)]


def tried(params: Params, dataset: str, method: str, change: Change) -> MethodParams:
    """The method's block with what holds for every method on the dataset, and a trial's change on top."""
    where = f"params.yaml: tuning: {method} on {dataset}"
    return changed(params.all_methods()[method], cell(params.tuning, dataset, change), where)


def cell(tuning: TuningParams, dataset: str, change: Change) -> dict[str, Any]:
    """What stands under `cells.<dataset>.<method>` when a trial's change is adopted."""
    block: dict[str, Any] = _copied(tuning.datasets[dataset])
    for key, value in change.items():
        *path, last = key.split(".")
        inner = block
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return block


def check(record: Mapping[str, Any], params: Params, dataset: str, method: str) -> None:
    """Raise BallastError unless the tune cell tried what params.yaml now asks for: no more and no fewer."""
    found = [trial["change"] for trial in record["trials"]]
    if found != trials(params.tuning, method) or record["seed"] != params.tuning.seed:
        raise BallastError(
            f"cell {dataset}--{method}: stale: its tune record holds other trials than params.yaml asks for; "
            "run `dvc repro`"
        )


def best(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trial of a tune cell with the highest validation NDCG@10; of equal ones the first."""
    found: Mapping[str, Any] = max(record["trials"], key=lambda trial: trial["valid_ndcg@10"])
    return found


def _copied(tree: Any) -> Any:
    return {key: _copied(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree
