"""Pool source domains into one dataset for pre-training: data/pooled/<pool>/."""

from pathlib import Path

import numpy as np
import pandas as pd
import study
import typer

from ballast.data import schemas
from ballast.errors import BallastError
from ballast.reproducibility import atomic_path, output_lock


def main(pool: str = typer.Option()) -> None:
    params = study.params()
    sources = study.block(params.transfer.pools, pool, "transfer.pools")
    with output_lock(study.SCRATCH, f"pool-{pool}"), atomic_path(study.pooled(pool)) as folder:
        tables = {name: _stacked(name, sources) for name in ("interactions", "items", "users")}
        for name, table in tables.items():
            schemas.write(name, table, folder / f"{name}.parquet")
        for modality in params.features:
            paths = [study.features(source, modality) for source in sources]
            schemas.write("features", _features(paths), folder / "features" / f"{modality}.parquet")


def _stacked(name: str, sources: list[str]) -> pd.DataFrame:
    """One table of all sources; user and item ids of each follow those of the one before."""
    parts, users, items = [], 0, 0
    for source in sources:
        folder = study.prepared(source)
        table = schemas.read(name, folder / f"{name}.parquet")
        shift = {"user_id": users, "item_id": items}
        parts.append(table.assign(**{key: table[key] + by for key, by in shift.items() if key in table}))
        users += len(schemas.read("users", folder / "users.parquet"))
        items += len(schemas.read("items", folder / "items.parquet"))
    return pd.concat(parts, ignore_index=True)


def _features(paths: list[Path]) -> pd.DataFrame:
    tables = [schemas.read("features", path) for path in paths]
    widths = {len(table["vector"].iloc[0]) for table in tables}
    if len(widths) > 1:
        raise BallastError(
            f"{paths[0]}: the pooled domains have vectors of different widths: {sorted(widths)}"
        )
    pooled = pd.concat(tables, ignore_index=True)
    return pooled.assign(item_id=np.arange(1, len(pooled) + 1, dtype=np.int32))


if __name__ == "__main__":
    study.run(main)
