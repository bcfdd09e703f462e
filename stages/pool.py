"""Pool source domains into one dataset for pre-training: data/pooled/<pool>/."""

from pathlib import Path

import numpy as np
import pandas as pd
import study
import typer

from ballast.data import schemas
from ballast.errors import BallastError
from ballast.params import PoolParams
from ballast.reproducibility import atomic_path, numpy_generator, output_lock


def main(pool: str = typer.Option()) -> None:
    params = study.params()
    chosen = study.block(params.transfer.pools, pool, "transfer.pools")
    with output_lock(study.SCRATCH, f"pool-{pool}"), atomic_path(study.pooled(pool)) as folder:
        for name, table in _tables(pool, chosen).items():
            schemas.write(name, table, folder / f"{name}.parquet")
        for modality in params.features:
            paths = [study.features(source, modality) for source in chosen.sources]
            schemas.write("features", _features(paths), folder / "features" / f"{modality}.parquet")


def _tables(pool: str, chosen: PoolParams) -> dict[str, pd.DataFrame]:
    """Interactions, items and users of all sources; ids of each source follow those of the one before."""
    tables = _stacked(chosen.sources)
    unwanted = {person for name in chosen.without_users_of for person in _read("users", name)["raw_user_id"]}
    tables = _without(tables, unwanted)
    if tables["interactions"].empty:
        raise BallastError(f"params.yaml: transfer.pools.{pool}.without_users_of leaves no user")
    if chosen.is_shuffled:
        tables["interactions"] = _shuffled(tables["interactions"], pool)
    return tables


def _stacked(sources: list[str]) -> dict[str, pd.DataFrame]:
    names = ("interactions", "items", "users")
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    shift = {"user_id": 0, "item_id": 0}
    for source in sources:
        own = {name: _read(name, source) for name in names}
        for name, table in own.items():
            moved = {key: table[key] + by for key, by in shift.items() if key in table}
            parts[name].append(table.assign(**moved))
        shift["user_id"] += len(own["users"])
        shift["item_id"] += len(own["items"])
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def _read(name: str, dataset: str) -> pd.DataFrame:
    return schemas.read(name, study.prepared(dataset) / f"{name}.parquet")


def _without(tables: dict[str, pd.DataFrame], unwanted: set[str]) -> dict[str, pd.DataFrame]:
    """The tables without these people (raw user ids), users numbered anew and training counts redone."""
    if not unwanted:
        return tables
    users, interactions, items = tables["users"], tables["interactions"], tables["items"]
    users = users[~users["raw_user_id"].isin(unwanted)]
    number = pd.Series(np.arange(1, len(users) + 1, dtype=np.int32), index=users["user_id"])
    interactions = interactions[interactions["user_id"].isin(users["user_id"])]
    interactions = interactions.assign(user_id=interactions["user_id"].map(number).astype(np.int32))
    trained = interactions.loc[interactions["split"] == "train", "item_id"].value_counts()
    counts = items["item_id"].map(trained).fillna(0).astype(np.int32)
    return {
        "interactions": interactions.reset_index(drop=True),
        "items": items.assign(n_train=counts),
        "users": users.assign(user_id=number.to_numpy()).reset_index(drop=True),
    }


def _shuffled(interactions: pd.DataFrame, pool: str) -> pd.DataFrame:
    """Every user's items in random order; what is held out stays where it was."""
    rows = np.flatnonzero(interactions["split"].isin(["train", "history"]).to_numpy())
    users = interactions["user_id"].to_numpy()[rows]
    order = np.lexsort([numpy_generator(0, "shuffled pool", pool).random(len(rows)), users])
    items = interactions["item_id"].to_numpy().copy()
    items[rows] = items[rows[order]]
    return interactions.assign(item_id=items)


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
