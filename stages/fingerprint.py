"""Fingerprint the code of every stage and of every method of the study: reports/code.json.

stages/study.py, which says where things lie, is left out: it changes no result.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import study
import torch

from ballast.content.settings import parse_settings
from ballast.data import readers
from ballast.errors import BallastError
from ballast.models import backbones, losses, registry
from ballast.models.method import DatasetInfo
from ballast.params import DatasetParams, Params, TrainedParams
from ballast.provenance import fingerprint
from ballast.robustness import attacks, poisons

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("reports/code.json")

# What a stage finds by name at run time, beside what it imports.
FOUND_BY_NAME = {
    "fetch": ["ballast.data.simulated.*"],
    "fitted": ["ballast.content.*"],
    "features": ["ballast.content.*"],
    "report": ["ballast/reporting/templates/page.html.j2"],
}
PARTS: dict[str, Callable[[dict[str, Any], str], tuple[type, Any]]] = {
    "backbone": backbones.configure,
    "loss": losses.configure,
}
STAGES = ("fetch", "fitted", "features", "pool", "report")
SECTIONS = ("methods", "content_methods", "transfer_methods")
CELL_STAGES = ("tune", "train", "evaluate", "robustness")


def main() -> None:
    """Write one hash a stage and, for stages that run a method, one a method."""
    params = study.params()
    _check_parts(params)
    code: dict[str, object] = {
        stage: fingerprint(ROOT, [f"stages.{stage}", *FOUND_BY_NAME.get(stage, [])]) for stage in STAGES
    }
    code["preprocess"] = {
        name: fingerprint(ROOT, _preprocessing(name, block)) for name, block in params.datasets.items()
    }
    code["pretrain"] = {
        name: fingerprint(ROOT, ["stages.pretrain", *_modules({f"transfer.pretraining.{name}": block})])
        for name, block in params.transfer.pretraining.items()
    }
    for stage in CELL_STAGES:
        code[stage] = {
            name: fingerprint(ROOT, [f"stages.{stage}", *_cell_modules(params, name, stage)])
            for name in params.all_methods()
        }
    study.write_json(OUTPUT, code)


def _check_parts(params: Params) -> None:
    """Readers and encoders of features are as they should be; _modules looks at methods."""
    for name, block in params.datasets.items():
        readers.configure(block.reader, f"params.yaml: datasets.{name}.reader")
    for modality, settings in params.features.items():
        parse_settings(modality, settings, f"params.yaml: features.{modality}")


def _check_sizes(method: str, config: Any, where: str) -> None:
    """Parts fit together, such as heads and dimensions: told by building the method for a tiny shop.

    Of one that reads features, whose sizes are not known yet, its backbone alone.
    """
    shop = DatasetInfo(num_users=4, num_items=8, item_counts=torch.ones(9, dtype=torch.int64))
    try:
        if not registry.needed_modalities(config):
            registry.build(method, config, shop)
        elif hasattr(config, "backbone"):
            sizes = config.dim, config.max_len, config.dropout
            backbones.build(config.backbone, *sizes, f"params.yaml: {where}.model.backbone")
        if hasattr(config, "candidates"):
            config.candidates()
    except BallastError as error:
        joint = "." if str(error).startswith("model.") else ": "
        raise BallastError(f"params.yaml: {where}{joint}{error}") from None


def _preprocessing(dataset: str, block: DatasetParams) -> list[str]:
    """What preparing a dataset runs: with fake users, the attack that makes them, too."""
    found = ["stages.preprocess", "ballast.data.readers.*"]
    if block.poison is not None:
        where = f"params.yaml: datasets.{dataset}.poison.attack"
        found.append(poisons.configure(block.poison.attack, where)[0].__module__)
    return found


def _cell_modules(params: Params, method: str, stage: str) -> list[str]:
    """The files that a method's block, and what its cells change, name."""
    section = next(name for name in SECTIONS if method in getattr(params, name))
    blocks = {f"{section}.{method}": params.all_methods()[method]}
    if stage != "tune":
        cells = [dataset for dataset, name in params.grid() if name == method]
        blocks |= {f"cells.{dataset}.{method}": params.cell(dataset, method) for dataset in cells}
    found = set()
    if stage == "robustness":
        for name, attack in params.robustness.attacks.items():
            where = f"params.yaml: robustness.attacks.{name}.attack"
            found.add(attacks.configure({**attack.attack, "surface": "any"}, where)[0].__module__)
    return sorted({*found, *_modules(blocks)})


def _modules(blocks: Mapping[str, TrainedParams]) -> list[str]:
    """The files that blocks, given with their places in params.yaml, name: methods, backbones and losses.

    Every block is checked on the way: a mistyped setting ends the run before anything is trained.
    """
    names = {"ballast.params:MethodParams", "ballast.params:changed"}
    for where, block in blocks.items():
        names.add(f"ballast.models.methods.{block.method}")
        if block.method not in registry.known_methods():
            known = ", ".join(registry.known_methods())
            raise BallastError(
                f"params.yaml: {where}.method: unknown method '{block.method}'; known: {known}"
            )
        config = registry.configure(block.method, block.model, f"params.yaml: {where}.model")
        for part, find in PARTS.items():
            chosen = getattr(config, part, None)
            if chosen is not None:
                names.add(find(chosen, f"params.yaml: {where}.model.{part}")[0].__module__)
        _check_sizes(block.method, config, where)
    return sorted(names)


if __name__ == "__main__":
    study.run(main)
