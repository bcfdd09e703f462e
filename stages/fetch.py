"""Raw files of one dataset: from a local folder, a mirror or the network, or a simulated shop."""

import os
import sys
from pathlib import Path

import study
import typer

from ballast.data import simulated
from ballast.data.downloads import Fetcher
from ballast.data.preparation import dataset_params
from ballast.errors import BallastError
from ballast.params import SourceParams
from ballast.reproducibility import atomic_path, output_lock
from ballast.strict import parse


def main(dataset: str = typer.Option()) -> None:
    where = f"params.yaml: datasets.{dataset}"
    source = dataset_params(study.params(), dataset).source
    with output_lock(study.SCRATCH, f"fetch-{dataset}"), atomic_path(study.raw(dataset)) as folder:
        if source.simulated is not None:
            config = parse(simulated.ShopConfig, source.simulated, f"{where}.source.simulated")
            simulated.write(simulated.generate(config), folder)
        else:
            fetcher = Fetcher(
                _folders(dataset, source, where), study.SCRATCH / "downloads" / dataset, warn=_warn
            )
            fetcher.fetch(source, folder, where)


def _folders(dataset: str, source: SourceParams, where: str) -> list[Path]:
    """Where to look before the network: `path`, then `$BALLAST_MIRROR/<collection>`."""
    folders = []
    if source.path is not None:
        folders.append(Path(source.path))
        if not folders[0].is_dir():
            raise BallastError(f"{where}.source.path: there is no folder '{source.path}'")
    mirror = os.environ.get("BALLAST_MIRROR")
    if mirror:
        if not Path(mirror).is_dir():
            raise BallastError(f"$BALLAST_MIRROR: there is no folder '{mirror}'")
        folders.append(Path(mirror) / (source.collection or dataset))
    return folders


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


if __name__ == "__main__":
    study.run(main)
