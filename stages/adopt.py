"""Write the settings that validation chose into params.yaml, under `cells`: run it after the tune stages.

Not a stage of the pipeline, since it changes the pipeline's own parameters: `python stages/adopt.py` in a
study's folder, then `dvc repro`.
"""

import io
import json
from typing import Any

import study
import typer
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from ballast import tuning
from ballast.errors import BallastError
from ballast.params import Params
from ballast.reproducibility import atomic_path


def main() -> None:
    """Every cell that the tuning section names, all or none."""
    params = study.params()
    chosen = {(dataset, method): _chosen(params, dataset, method) for dataset, method in params.tuned()}
    if not chosen:
        raise BallastError("params.yaml: tuning names no datasets or no methods: there is nothing to adopt")
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(study.PARAMS)
    changed = 0
    for (dataset, method), block in chosen.items():
        cells = document["cells"].setdefault(dataset, CommentedMap())
        if cells.get(method) != block:
            cells[method] = _flowing(block)
            changed += 1
    text = io.StringIO()
    yaml.dump(document, text)
    with atomic_path(study.PARAMS) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    typer.echo(f"params.yaml: {changed} of {len(chosen)} cells changed; run `dvc repro`")


def _chosen(params: Params, dataset: str, method: str) -> dict[str, Any]:
    path = study.cell("tune", dataset, method)
    if not path.is_file():
        raise BallastError(f"{path}: not found; run the tune stages first: dvc repro")
    record = json.loads(path.read_text(encoding="utf-8"))
    tuning.check(record, params, dataset, method)
    return tuning.cell(params.tuning, dataset, tuning.best(record)["change"])


def _flowing(tree: Any) -> Any:
    """Mappings on one line, as the cells are written by hand."""
    if not isinstance(tree, dict):
        return tree
    flow = CommentedMap((key, _flowing(value)) for key, value in tree.items())
    flow.fa.set_flow_style()
    return flow


if __name__ == "__main__":
    study.run(main)
