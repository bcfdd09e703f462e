"""A dataset's items as vectors: data/features/<d>/<m>/ and reports/cells/features/<d>--<m>.json."""

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import study
import torch
import typer
from filelock import FileLock

from ballast.content import image, price, text
from ballast.content.contrast import Contrastive, train_encoder
from ballast.content.encoder import encode
from ballast.content.features import Features, category_agreement, scattered, statistics
from ballast.content.settings import parse_settings
from ballast.content.sheet import neighbour_sheet
from ballast.data import schemas
from ballast.data.preparation import dataset_params
from ballast.params import Params
from ballast.provenance import fingerprint
from ballast.reproducibility import (
    atomic_path,
    config_hash,
    device,
    environment,
    output_lock,
    prepare_process,
)

ROOT = Path(__file__).resolve().parent.parent


def main(dataset: str = typer.Option(), modality: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    is_simulated = dataset_params(params, dataset).source.simulated is not None
    config = _settings(params, modality)
    items = _items(dataset)
    started = time.monotonic()
    with output_lock(study.SCRATCH, f"features-{dataset}--{modality}"):
        with atomic_path(study.features(dataset, modality).parent) as folder:
            folder.mkdir()
            features = _embed(config, dataset, items, folder)
            _write(features, items, folder / "features.parquet")
        _warn(dataset, features.unreadable)
        record = {
            "dataset": dataset,
            "modality": modality,
            "encoder": asdict(config),
            **statistics(features),
            "neighbours": category_agreement(features, items["category"].to_numpy(object)),
            **features.record,
            "seconds": round(time.monotonic() - started, 2),
            "environment": environment(),
        }
        study.write_json(study.features_stats(dataset, modality), record)
        if modality != "price":
            _draw_sheet(dataset, modality, is_simulated, items, features)


def _settings(params: Params, modality: str) -> Any:
    chosen = study.block(params.features, modality, "features")
    config = parse_settings(modality, chosen, f"params.yaml: features.{modality}")
    for other in getattr(config, "fit_on", []):
        dataset_params(params, other)
    return config


def _items(dataset: str) -> pd.DataFrame:
    return schemas.read("items", study.prepared(dataset) / "items.parquet")


def _embed(config: Any, dataset: str, items: pd.DataFrame, folder: Path) -> Features:
    """The items' vectors by the chosen encoder; what it learned may be saved in `folder`."""
    fit_on = getattr(config, "fit_on", []) or [dataset]
    if isinstance(config, text.TfidfSvd):
        fit_texts = [line for other in fit_on for line in text.documents(_items(other), config.fields)]
        return text.embed_tfidf(config, text.documents(items, config.fields), fit_texts)
    if isinstance(config, text.SentenceTransformers):
        return text.embed_sentences(config, text.documents(items, config.fields), str(device()))
    if isinstance(config, image.Transformers):
        return image.embed_hub(config, study.raw(dataset), _names(items), device())
    if isinstance(config, Contrastive):
        return _embed_pictures(config, dataset, items, folder, fit_on)
    fit_items = pd.concat([_items(other) for other in fit_on])
    scale = price.fit(fit_items["price"].to_numpy(np.float64), fit_items["n_train"].to_numpy(np.int64))
    return price.embed(config, items["price"].to_numpy(np.float64), scale)


def _embed_pictures(
    config: Contrastive, dataset: str, items: pd.DataFrame, folder: Path, fit_on: list[str]
) -> Features:
    """Train the encoder on the pictures of `fit_on`, save it beside the vectors, and encode the items'."""
    own = image.read_pictures(study.raw(dataset), _names(items), config.size, config.unreadable)
    pixels = torch.cat([own.pixels if other == dataset else _pixels(config, other) for other in fit_on])
    code = fingerprint(ROOT, ["ballast.content.contrast", "ballast.content.encoder"])
    pictures = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    key = config_hash(asdict(config), pictures, code, environment())
    checkpoint = study.SCRATCH / "features" / f"image-encoder-{key}.ckpt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    # Datasets that share an encoder wait for the first of them.
    with FileLock(checkpoint.with_suffix(".lock")):
        encoder, history = train_encoder(config, pixels, device(), checkpoint)
    encoder.save(folder / "encoder.safetensors")
    if fit_on == [dataset]:  # else the next dataset takes the finished encoder from there
        checkpoint.unlink(missing_ok=True)
    features = scattered(encode(encoder, own.pixels).numpy(), own.rows, len(items))
    record = {
        "trained_on_pictures": len(pixels),
        "training_seconds": round(sum(epoch["seconds"] for epoch in history), 2),
        "history": history,
    }
    return replace(features, unreadable=own.unreadable, record=record)


def _pixels(config: Contrastive, dataset: str) -> torch.Tensor:
    return image.read_pictures(
        study.raw(dataset), _names(_items(dataset)), config.size, config.unreadable
    ).pixels


def _names(items: pd.DataFrame) -> list[str | None]:
    return [name if isinstance(name, str) else None for name in items["image"]]


def _write(features: Features, items: pd.DataFrame, path: Path) -> None:
    vectors = pd.Series(list(features.vectors), dtype=object)
    table = pd.DataFrame({"item_id": items["item_id"], "vector": vectors, "is_missing": features.missing})
    schemas.write("features", table, path)


def _warn(dataset: str, unreadable: tuple[str, ...]) -> None:
    for name in unreadable[:5]:
        path = study.raw(dataset) / name
        typer.echo(f"warning: {path}: cannot be read as a picture; its item counts as missing", err=True)
    if len(unreadable) > 5:
        typer.echo(f"warning: {dataset}: {len(unreadable) - 5} more pictures cannot be read", err=True)


def _draw_sheet(
    dataset: str, modality: str, is_simulated: bool, items: pd.DataFrame, features: Features
) -> None:
    """A sheet of nearest neighbours for the eye, untracked if pictures are real: they may not be shared."""
    paths = [None if name is None else study.raw(dataset) / name for name in _names(items)]
    if all(path is None for path in paths):
        return
    target = (Path("reports") if is_simulated else study.SCRATCH) / "content" / f"{dataset}--{modality}.png"
    rows = np.unique(np.linspace(0, len(items) - 1, 12).astype(np.int64))
    with atomic_path(target) as temporary:
        neighbour_sheet(paths, features, rows).save(temporary)


if __name__ == "__main__":
    study.run(main)
