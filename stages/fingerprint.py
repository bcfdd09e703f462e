"""Fingerprint the code of every stage and of every method of the study: reports/code.json.

stages/study.py, which says where things lie, is left out: it changes no result.
"""

from pathlib import Path

import study

from ballast.params import MethodParams
from ballast.provenance import fingerprint

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("reports/code.json")

# What a stage finds by name at run time, beside what it imports.
FOUND_BY_NAME = {
    "fetch": ["ballast.data.simulated.*"],
    "preprocess": ["ballast.data.readers.*"],
    "features": ["ballast.content.*"],
}
STAGES = ("fetch", "preprocess", "features", "pool", "report")
CELL_STAGES = ("pretrain", "train", "evaluate", "robustness")


def main() -> None:
    """Write one hash a stage and, for stages that run a method, one a method."""
    params = study.params()
    code: dict[str, object] = {
        stage: fingerprint(ROOT, [f"stages.{stage}", *FOUND_BY_NAME.get(stage, [])]) for stage in STAGES
    }
    for stage in CELL_STAGES:
        code[stage] = {
            name: fingerprint(ROOT, [f"stages.{stage}", *_modules(method)])
            for name, method in params.all_methods().items()
        }
    study.write_json(OUTPUT, code)


def _modules(method: MethodParams) -> list[str]:
    """The files that a method's block names: its own, and its backbone's."""
    names = [f"ballast.models.methods.{method.method}"]
    backbone = method.model.get("backbone")
    if isinstance(backbone, dict) and "name" in backbone:
        names.append(f"ballast.models.backbones.{backbone['name']}")
    return names


if __name__ == "__main__":
    study.run(main)
