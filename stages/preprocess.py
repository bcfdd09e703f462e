"""Raw files to the prepared tables of one dataset, with its statistics."""

from pathlib import Path

import study
import typer

from ballast.data import readers, schemas
from ballast.data.preparation import dataset_params, prepare
from ballast.reproducibility import atomic_path, environment, output_lock, prepare_process
from ballast.robustness.poisons import poison


def main(dataset: str = typer.Option()) -> None:
    prepare_process()
    params = dataset_params(study.params(), dataset)
    with output_lock(study.SCRATCH, f"preprocess-{dataset}"):
        raw = readers.read(study.raw(dataset), params.reader, f"params.yaml: datasets.{dataset}.reader")
        if raw.notes.get("missing_image_files", 0) and raw.items["image"].isna().all():
            typer.echo(
                f"warning: {dataset}: no picture that its item table names is in {study.raw(dataset)}; list "
                f"their folder in params.yaml: datasets.{dataset}.source.folders",
                err=True,
            )
        prepared = prepare(dataset, raw, params)
        if params.poison is not None:
            prepared = poison(prepared, params.poison, f"params.yaml: datasets.{dataset}.poison")
        with atomic_path(study.prepared(dataset)) as folder:
            schemas.write("items", prepared.items, folder / "items.parquet")
            schemas.write("users", prepared.users, folder / "users.parquet")
            schemas.write("interactions", prepared.interactions, folder / "interactions.parquet")
            study.write_json(folder / "stats.json", prepared.stats)
        # What makes fake users may train a model: its bits are those of a machine.
        made_on = {} if params.poison is None else {"environment": environment()}
        study.write_json(Path("reports/cells/preprocess") / f"{dataset}.json", {**prepared.stats, **made_on})


if __name__ == "__main__":
    study.run(main)
