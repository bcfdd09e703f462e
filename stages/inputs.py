"""What the stages that run a method read: prepared tables, features, and trained states."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import study
import torch
from torch import Tensor

from ballast.data import schemas
from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError
from ballast.models import registry
from ballast.models.method import DatasetInfo, Method
from ballast.params import Params, TrainedParams
from ballast.reproducibility import device, seed_dropout


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset: its interactions, what a method may know of it, and a hash of what was read."""

    interactions: pd.DataFrame
    info: DatasetInfo
    digest: str

    def store(self, splits: Sequence[str], user_ids: np.ndarray | None = None) -> SequenceStore:
        """Sequences of these splits on the device of this process; of `user_ids`, to rank for them, with what
        of their history is not trained on. Behind `valid` comes what they met before the test target."""
        if user_ids is not None:
            splits = ["history", *splits]
        if "valid" in splits:
            splits = [*splits, "between"]
        return SequenceStore.from_interactions(self.interactions, splits, user_ids).to(device())

    def held_out(self, split: str) -> tuple[np.ndarray, Tensor]:
        """(U,) users with a target in `split` (valid or test), and the (U,) int64 targets."""
        rows = self.interactions[self.interactions["split"] == split]
        return rows["user_id"].to_numpy(), torch.from_numpy(rows["item_id"].to_numpy(np.int64))


def load(folder: Path, features: Mapping[str, Path]) -> Prepared:
    """Read a folder of prepared tables and, for methods that need them, feature tables by modality."""
    paths = [folder / "interactions.parquet", folder / "items.parquet", *features.values()]
    for path in paths:
        if not path.exists():
            raise BallastError(f"{path}: not found; run the stage that makes it, or `dvc pull` it")
    interactions = schemas.read("interactions", paths[0])
    items = schemas.read("items", paths[1])
    counts = np.concatenate([[0], items["n_train"].to_numpy(np.int64)])
    vectors, missing = {}, {}
    for modality, path in features.items():
        vectors[modality], missing[modality] = _features(path)
    info = DatasetInfo(
        num_users=int(interactions["user_id"].max()),
        num_items=len(items),
        item_counts=torch.from_numpy(counts),
        features=vectors,
        missing=missing,
    )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return Prepared(interactions, info, digest)


def load_cell(params: Params, dataset: str, method: str) -> Prepared:
    """What the method's cell reads: data/prepared/<dataset> and the features that its block names."""
    cell = params.cell(dataset, method)
    chosen = config(cell, f"params.yaml: methods.{method}")
    if params.datasets[dataset].sample is not None and registry.method_class(cell.method).learns_users:
        raise BallastError(
            f"params.yaml: datasets.{dataset}.sample: methods.{method} learns a vector a user and knows "
            "nothing of those who are not trained on; leave one of the two out of the study"
        )
    modalities = registry.needed_modalities(chosen)
    for name in modalities:
        if dataset not in params.content_datasets or name not in params.features:
            raise BallastError(
                f"params.yaml: methods.{method} needs {name} features of '{dataset}': list the dataset under "
                f"content_datasets and {name} under features"
            )
    return load(study.prepared(dataset), {name: study.features(dataset, name) for name in modalities})


def _features(path: Path) -> tuple[Tensor, Tensor]:
    """(I, F) float32 vectors and (I,) bool missing marks, row 0 (padding) zero and missing."""
    table = schemas.read("features", path)
    vectors = np.stack(list(table["vector"])).astype(np.float32)  # (I - 1, F)
    padded = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors])
    missing = np.concatenate([[True], table["is_missing"].to_numpy(bool)])
    return torch.from_numpy(padded), torch.from_numpy(missing)


def code(stage: str, method: str) -> str:
    """The fingerprint of what a stage runs for a method: runs resume under the same code alone."""
    path = Path("reports/code.json")
    if not path.exists():
        raise BallastError(f"{path}: not found; run the fingerprint stage first: dvc repro -s fingerprint")
    return str(json.loads(path.read_text())[stage].get(method, ""))


def config(cell: TrainedParams, where: str) -> Any:
    """The Config of the cell's method; raises BallastError naming the key of the first problem."""
    return registry.configure(cell.method, cell.model, f"{where}.model")


def fresh(cell: TrainedParams, chosen: Any, info: DatasetInfo, seed: int) -> Method:
    """An untrained method whose initial weights depend on the seed alone."""
    seed_dropout(seed, "initial weights")
    return registry.build(cell.method, chosen, info).to(device())


def trained(params: Params, dataset: str, method: str, prepared: Prepared, seed: int) -> Method:
    """The method as its train stage left it, in evaluation mode on the device of this process."""
    cell = params.cell(dataset, method)
    where = f"params.yaml: methods.{method}"
    state = study.model(dataset, method) / f"seed-{seed}.safetensors"
    return registry.restore(fresh(cell, config(cell, where), prepared.info, seed), state, device())


def seeds(params: Params, dataset: str, method: str) -> list[int]:
    """The dataset's seeds, or the first alone for a method that draws nothing at random."""
    every = params.datasets[dataset].seeds
    is_random = registry.method_class(params.cell(dataset, method).method).is_trained_by_steps
    return every if is_random else every[:1]
