"""Text, pictures and prices as vectors: determinism, missing content, gradients to the pixels."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import features
import fitted
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from ballast.content import image, price, sheet, text, whitening
from ballast.content.contrast import Contrastive, nt_xent, train_encoder, views
from ballast.content.encoder import ImageEncoder, encode
from ballast.content.features import Features, category_agreement, nearest, scattered, statistics
from ballast.content.settings import parse_settings
from ballast.data import schemas
from ballast.errors import BallastError
from ballast.reproducibility import generator

CPU = torch.device("cpu")
SMALL = Contrastive(size=16, width=4, dim=8, steps=9, batch_size=8)


def coloured(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) uint8: two flat colours in turn, with noise."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.tensor([[200, 40, 40], [40, 40, 200]])[torch.arange(count) % 2]  # (count, 3)
    noise = torch.randint(-30, 30, (count, 3, size, size), generator=rng)
    return (base[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)


def save_pictures(folder: Path, count: int, size: int = 20) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(coloured(count, size)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(count)]


# Whitening


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_whitened_covariance_is_the_identity(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 6, generator=rng) @ torch.randn(6, 6, generator=rng) + 3
    missing = torch.arange(400) % 5 == 0
    mixed[missing] = 0
    fitted = whitening.fit(mixed, missing, shrinkage=0.0, kind=kind)
    result = fitted.apply(mixed, missing)
    assert torch.equal(result[missing], torch.zeros(80, 6))
    present = result[~missing].double()
    assert torch.allclose(present.T @ present / 320, torch.eye(6).double(), atol=1e-4)
    assert torch.allclose(present.mean(dim=0), torch.zeros(6).double(), atol=1e-5)


def test_whitening_without_variance_or_items_stays_finite() -> None:
    flat = torch.cat([torch.randn(30, 2), torch.ones(30, 2)], dim=1)  # two columns do not vary
    none_missing = torch.zeros(30, dtype=torch.bool)
    result = whitening.fit(flat, none_missing, shrinkage=0.0).apply(flat)
    assert torch.isfinite(result).all()
    assert result[:, 2:].abs().max() < 1e-3
    empty = whitening.fit(flat, ~none_missing)
    assert torch.equal(empty.apply(flat), flat)
    assert whitening.fit(flat, none_missing, kind="pca", dim=2).apply(flat).shape == (30, 2)
    with pytest.raises(ValueError, match="only with pca"):
        whitening.fit(flat, none_missing, dim=2)


# Text


def texts() -> list[str]:
    return ["red wool scarf", "blue wool scarf", "steel cook pot", "steel pot lid", "", "unheard"]


def test_tfidf_puts_like_texts_together_and_flags_empty_ones() -> None:
    config = text.TfidfSvd(dim=3)
    found = text.embed_tfidf(config, texts(), texts())
    assert found.missing.tolist() == [False, False, False, False, True, True]
    assert found.record["texts_without_known_terms"] == 1
    assert found.vectors.shape == (6, 3)
    assert found.vectors.dtype == np.float32
    assert not found.vectors[found.missing].any()
    assert nearest(found.vectors, np.arange(4), 1)[:, 0].tolist() == [1, 0, 3, 2]
    again = text.embed_tfidf(config, texts(), texts())
    assert np.array_equal(found.vectors, again.vectors)


def test_tfidf_fitted_elsewhere_gives_one_space() -> None:
    pool = [*texts(), "red cook pot"]
    config = text.TfidfSvd(dim=3)
    together = text.embed_tfidf(config, pool, pool).vectors
    alone = text.embed_tfidf(config, pool[:2], pool).vectors
    assert np.allclose(alone, together[:2], atol=1e-6)


def test_texts_without_common_terms_are_all_missing() -> None:
    found = text.embed_tfidf(text.TfidfSvd(dim=4), ["", ""], ["", ""])
    assert found.missing.all()
    assert found.vectors.shape == (2, 4)


def test_documents_join_the_chosen_fields() -> None:
    items = pd.DataFrame({"title": ["Mug", None], "category": ["Cups", None], "description": [None, None]})
    assert text.documents(items, ["title", "category", "description"]) == ["Mug\nCups", ""]
    assert text.documents(items, ["title"]) == ["Mug", ""]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(BallastError, match="pip install sentence-transformers"):
        text.embed_sentences(text.SentenceTransformers(encoder="x"), ["a"], "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BallastError, match="pip install transformers"):
        image.embed_hub(image.Transformers(encoder="x"), tmp_path, [None], CPU)


class FakeVision(torch.nn.Module):
    """A vision model of the transformers package as seen from outside: its vector is the mean colour."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output
        if output == "projected":  # as CLIP has it
            self.get_image_features = lambda pixel_values: pixel_values.mean(dim=(2, 3))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        if self.output == "pooled":
            return SimpleNamespace(pooler_output=pixel_values.mean(dim=(2, 3)))
        return SimpleNamespace(last_hidden_state=pixel_values.flatten(2).transpose(1, 2))


class FakeInputs(dict[str, torch.Tensor]):
    def to(self, device: torch.device) -> "FakeInputs":
        return self


def fake_processor(images: list[Image.Image], return_tensors: str) -> FakeInputs:
    pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() for picture in images]
    return FakeInputs(pixel_values=torch.stack(pixels))


@pytest.mark.parametrize("output", ["projected", "pooled", "hidden"])
def test_hub_vision_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str) -> None:
    module = SimpleNamespace(
        AutoImageProcessor=SimpleNamespace(from_pretrained=lambda name, revision: fake_processor),
        AutoModel=SimpleNamespace(from_pretrained=lambda name, revision: FakeVision(output)),
    )
    monkeypatch.setitem(sys.modules, "transformers", module)
    names: list[str | None] = [*save_pictures(tmp_path, 3), None, "gone.png"]
    config = image.Transformers(encoder="fake", batch_size=2)
    found = image.embed_hub(config, tmp_path, names, CPU)
    assert found.missing.tolist() == [False, False, False, True, True]
    assert found.unreadable == ("gone.png",)
    with Image.open(tmp_path / "2.png") as picture:
        assert np.allclose(found.vectors[2], np.array(picture).mean(axis=(0, 1)), atol=1e-3)
    with pytest.raises(BallastError, match=r"gone\.png: cannot be read"):
        image.embed_hub(replace(config, unreadable="error"), tmp_path, names, CPU)
    with pytest.raises(BallastError, match="none of the 1 pictures can be read"):
        image.embed_hub(config, tmp_path, ["gone.png"], CPU)
    assert image.embed_hub(config, tmp_path, [None, None], CPU).vectors.shape == (2, 3)


def test_hub_text_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, revision: str | None, device: str) -> SimpleNamespace:
        if name != "fake":
            raise OSError(f"no such model:\n{name}")
        return SimpleNamespace(
            encode=lambda lines, batch_size: np.array([[len(line), 1.0] for line in lines])
        )

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=load))
    found = text.embed_sentences(text.SentenceTransformers(encoder="fake"), ["ab", "", "abc"], "cpu")
    assert found.vectors.tolist() == [[2, 1], [0, 0], [3, 1]]
    assert found.missing.tolist() == [False, True, False]
    assert text.embed_sentences(text.SentenceTransformers(encoder="fake"), [""], "cpu").vectors.shape == (
        1,
        2,
    )
    with pytest.raises(BallastError, match=r"encoder 'other' could not be loaded: .*no such model: other"):
        text.embed_sentences(text.SentenceTransformers(encoder="other"), ["a"], "cpu")


# Prices


def test_price_statistics_ignore_items_outside_training() -> None:
    config = price.Sinusoidal(dim=8)
    prices, n_train = np.array([1.0, 2.0, 4.0, np.nan, 50.0]), np.array([3, 1, 2, 4, 0])
    found = price.embed(config, prices, price.fit(prices, n_train))
    changed = np.array([1.0, 2.0, 4.0, np.nan, 9000.0])
    after = price.embed(config, changed, price.fit(changed, n_train))
    assert np.array_equal(found.vectors[:4], after.vectors[:4])
    assert not np.array_equal(found.vectors[4], after.vectors[4])
    assert found.missing.tolist() == [False, False, False, True, False]
    assert np.allclose(np.linalg.norm(found.vectors[~found.missing], axis=1), 2.0)


def test_price_features_by_hand() -> None:
    config = price.Sinusoidal(dim=4, min_frequency=1.0, max_frequency=2.0)
    vector = price.embed(config, np.array([np.e - 1]), price.LogPriceScale(0.5, 2.0)).vectors[0]
    z = (1 - 0.5) / 2
    assert np.allclose(vector, [np.sin(z), np.sin(2 * z), np.cos(z), np.cos(2 * z)], atol=1e-6)


def test_dataset_without_prices_is_all_missing() -> None:
    prices = np.full(3, np.nan)
    found = price.embed(price.Sinusoidal(), prices, price.fit(prices, np.ones(3, int)))
    assert found.missing.all()
    assert found.vectors.shape == (3, 64)
    assert not found.vectors.any()
    same = price.fit(np.full(3, 7.0), np.ones(3, int))  # one price only: no division by zero
    assert same.deviation == 1.0


# Pictures


def test_gradient_reaches_the_pixels() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(size=16, dim=8, width=4).eval().double()
    pixels = (coloured(2).double() / 255).requires_grad_()
    direction = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    encoder(pixels)[0].sum().backward()
    assert pixels.grad is not None
    assert pixels.grad[0].abs().sum() > 0
    assert not pixels.grad[1].any()  # one picture's vector depends on no other picture
    with torch.no_grad():
        step = 1e-6 * direction
        difference = (encoder(pixels + step) - encoder(pixels - step))[0].sum() / 2e-6
    assert torch.isclose((pixels.grad * direction)[0].sum(), difference, rtol=1e-5)


def test_encoder_training_is_deterministic_and_resumes(tmp_path: Path) -> None:
    pixels = coloured(20)
    whole, history = train_encoder(SMALL, pixels, CPU)
    again, _ = train_encoder(SMALL, pixels, CPU)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert states_equal(whole, again)

    class KilledError(Exception):
        pass

    checkpoint = tmp_path / "encoder.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ballast.content.contrast._train_epoch", killed_after(2, KilledError))
        with pytest.raises(KilledError):
            train_encoder(SMALL, pixels, CPU, checkpoint)
    torch.rand(5)  # whatever else draws from the global generator
    resumed, resumed_history = train_encoder(SMALL, pixels, CPU, checkpoint)
    assert states_equal(whole, resumed)
    assert [entry["loss"] for entry in resumed_history] == [entry["loss"] for entry in history]
    other, _ = train_encoder(replace(SMALL, seed=1), pixels, CPU)
    assert not states_equal(whole, other)


def killed_after(epochs: int, error: type[Exception]):  # type: ignore[no-untyped-def]
    from ballast.content.contrast import _train_epoch

    def train_epoch(config, model, optimizer, schedule, pixels, epoch):  # type: ignore[no-untyped-def]
        if epoch == epochs:
            raise error
        return _train_epoch(config, model, optimizer, schedule, pixels, epoch)

    return train_epoch


def states_equal(one: ImageEncoder, other: ImageEncoder) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_encoder_saves_and_loads(tmp_path: Path) -> None:
    encoder, _ = train_encoder(SMALL, coloured(10), CPU)
    encoder.save(tmp_path / "a.safetensors")
    encoder.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = ImageEncoder.load(tmp_path / "a.safetensors")
    vectors = encode(loaded, coloured(10))
    assert torch.equal(vectors, encode(encoder, coloured(10)))
    assert vectors.shape == (10, 8)
    assert torch.allclose(encode(loaded, coloured(10)[3:4]), vectors[3:4], atol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_to_contrast(count: int) -> None:
    encoder, history = train_encoder(SMALL, coloured(count), CPU)
    assert history == []
    assert torch.isfinite(encode(encoder, coloured(count))).all()


def test_contrast_lowers_the_loss_and_separates_colours() -> None:
    config = replace(SMALL, steps=120, grey_share=0.0, colour_jitter=0.1)
    encoder, history = train_encoder(config, coloured(64), CPU)
    assert history[-1]["loss"] < history[0]["loss"]
    names = np.array(["red", "blue"] * 32, dtype=object)
    found = scattered(encode(encoder, coloured(64)).numpy(), np.arange(64), 64)
    record = category_agreement(found, names)
    assert record["agreement"] > 0.9
    assert record["chance"] == pytest.approx(31 / 63, abs=1e-4)


def test_views_are_pictures_and_repeatable() -> None:
    pixels = coloured(6).float() / 255
    one, two = (views(pixels, SMALL, generator(0, "v")) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == pixels.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert not torch.equal(one, views(pixels, SMALL, generator(1, "v")))
    still = replace(SMALL, min_crop=1.0, colour_jitter=0.0, grey_share=0.0)
    left_right = torch.stack([pixels, pixels.flip(3)])
    seen = views(pixels, still, generator(0, "v"))  # a full crop differs only by ratio and mirroring
    assert (left_right.mean(dim=(3, 4)) - seen.mean(dim=(2, 3))).abs().max() < 0.05


def test_nt_xent_by_hand() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # Each view: partner at cosine 1, two others at cosine 0.
    expected = -np.log(np.exp(2) / (np.exp(2) + 2))
    assert nt_xent(one, 3 * one, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_damaged_and_absent_pictures(tmp_path: Path) -> None:
    names: list[str | None] = [*save_pictures(tmp_path, 4), None, "gone.png"]
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "1.png").write_text("not a picture")
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    pictures = image.read_pictures(tmp_path, names, 16, "missing")
    assert pictures.rows.tolist() == [0, 3]
    assert pictures.unreadable == ("1.png", "2.png", "gone.png")
    assert pictures.pixels.shape == (2, 3, 16, 16)
    assert pictures.pixels.dtype == torch.uint8
    with pytest.raises(BallastError, match=r"1\.png: cannot be read as a picture"):
        image.read_pictures(tmp_path, names, 16, "error")
    with pytest.raises(BallastError, match="none of the 2 pictures can be read"):
        image.read_pictures(tmp_path, ["1.png", None, "2.png"], 16, "missing")
    assert len(image.read_pictures(tmp_path, [None, None], 16, "missing").rows) == 0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (7, 9)).save(path)
    picture = image.open_picture(path)
    assert picture.mode == "RGB"
    assert picture.size == (7, 9)
    if mode in ("LA", "RGBA"):  # nothing but transparency: a white page
        assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_neighbour_sheet_shows_only_items_with_both(tmp_path: Path) -> None:
    paths: list[Path | None] = [tmp_path / name for name in save_pictures(tmp_path, 5)]
    paths[4] = None
    found = scattered(np.eye(5, dtype=np.float32), np.arange(5), 5)
    drawn = sheet.neighbour_sheet(paths, found, np.arange(5), k=2)
    assert drawn.size[1] == 4 * (sheet.TILE + sheet.GAP) + sheet.GAP
    assert drawn.getpixel((sheet.GAP + 9, sheet.GAP + 9)) != (255, 255, 255)
    assert sheet.neighbour_sheet([None] * 5, found, np.arange(5)).size[1] > 0


# Records


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_texts_that_all_say_the_same_are_no_error() -> None:
    """Numbers of one digit are no terms: nothing is left that tells these apart."""
    same = [f"thing {place} of a kind" for place in range(9)]
    found = text.embed_tfidf(text.TfidfSvd(dim=4), same, same)
    assert not found.missing.any()
    assert np.isfinite(found.vectors).all()
    json.dumps(found.record, allow_nan=False)


def test_attack_sheet_shows_what_was_added() -> None:
    clean = torch.full((2, 3, 8, 8), 0.5)
    attacked = clean.clone()
    attacked[1, :, 4:] += 4 / 255
    drawn = np.array(sheet.attack_sheet(clean, attacked)).astype(int)
    tile = sheet.TILE + sheet.GAP
    middle = sheet.GAP + sheet.TILE // 2
    first, second = middle, tile + middle
    added = 2 * tile + sheet.GAP  # the third line
    assert (abs(drawn[added + 5, first] - 128) <= 1).all()
    assert (abs(drawn[added + 5, second] - 128) <= 1).all()
    assert (drawn[added + sheet.TILE - 5, second] == 255).all()  # the largest change
    assert (drawn[tile + sheet.GAP + sheet.TILE - 5, second] - drawn[sheet.GAP + 5, second] == 4).all()


def test_statistics_and_neighbours_by_hand() -> None:
    vectors = np.array([[3, 4], [0, 0], [6, 8], [0, 2]], dtype=np.float32)
    found = Features(vectors, np.array([False, True, False, False]), ("a.png",))
    record = statistics(found)
    assert (record["dimension"], record["missing"], record["coverage"]) == (2, 1, 0.75)
    assert record["norm_quantiles"] == {"min": 2.0, "25%": 3.5, "median": 5.0, "75%": 7.5, "max": 10.0}
    assert record["unreadable"] == {"count": 1, "names": ["a.png"]}
    categories = np.array(["x", "x", "x", "y"], dtype=object)
    assert category_agreement(found, categories, k=1) == {
        "k": 1, "items": 3, "agreement": 0.6667, "chance": 0.3333,
    }  # fmt: skip
    assert category_agreement(found, np.array([None] * 4, dtype=object))["agreement"] is None


@pytest.mark.parametrize(
    ("modality", "block", "message"),
    [
        ("sound", {}, "features.sound: unknown modality; known: text, image, price"),
        ("text", {}, "features.text.name: got None, expected one of: tfidf_svd, sentence_transformers"),
        ("text", {"name": "tfidf_svd", "dims": 3}, "features.text.dims: unknown key; did you mean 'dim'?"),
        ("image", {"name": "contrastive", "size": 50}, "features.image.size: got 50"),
        ("price", {"name": "sinusoidal", "dim": 5}, "features.price.dim: got 5"),
        ("image", {"name": "transformers"}, "features.image.encoder: this key is missing"),
    ],
)
def test_settings_name_the_key(modality: str, block: dict[str, object], message: str) -> None:
    with pytest.raises(BallastError) as caught:
        parse_settings(modality, block, f"params.yaml: features.{modality}")
    assert message in str(caught.value)


# The stage


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with one dataset of eight items, six of them with pictures."""
    names = save_pictures(tmp_path / "data/raw/d/images", 6)
    items = pd.DataFrame(
        {
            "item_id": np.arange(1, 9, dtype=np.int32),
            "raw_item_id": [f"raw{index}" for index in range(8)],
            "title": pd.Series(["red mug", "blue mug"] * 3 + ["red pot", None], dtype="str"),
            "description": pd.Series([None] * 8, dtype="str"),
            "category": pd.Series(["red", "blue"] * 3 + ["red", None], dtype="str"),
            "price": np.array([1, 2, 3, 4, 5, 6, 7, np.nan], dtype=np.float32),
            "image": pd.Series([f"images/{name}" for name in names] + [None, None], dtype="str"),
            "n_train": np.arange(8, dtype=np.int32),
        }
    )
    schemas.write("items", items, tmp_path / "data/prepared/d/items.parquet")
    source = {"path": "somewhere", "files": [{"name": "log.csv"}]}
    dataset = {"label": "D", "terms": "none", "source": source, "reader": {"name": "tabular"}, "seeds": [0]}
    params = {
        "root": ".", "study": {"name": "s", "title": "S"}, "datasets": {"d": dataset}, "targets": ["d"],
        "content_datasets": ["d"], "methods": {}, "content_methods": {},
        "transfer_methods": {}, "transfer": {}, "tuning": {}, "cells": {},
        "evaluation": {}, "robustness": {}, "report": {},
        "features": {
            "text": {"name": "tfidf_svd", "dim": 4},
            "image": {"name": "contrastive", "size": 16, "width": 4, "dim": 8, "steps": 2},
            "price": {"name": "sinusoidal", "dim": 6},
        },
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BALLAST_DEVICE", "cpu")
    monkeypatch.setattr(features, "prepare_process", lambda: None)  # settings of the whole test process
    return tmp_path


@pytest.mark.parametrize("modality", ["text", "price"])
def test_stage_writes_every_item(shop: Path, modality: str) -> None:
    features.main("d", modality)
    table = schemas.read("features", shop / f"data/features/d/{modality}/features.parquet")
    assert table["is_missing"].tolist() == [False] * 7 + [True]
    record = json.loads((shop / f"reports/cells/features/d--{modality}.json").read_text())
    assert (record["items"], record["missing"], record["encoder"]["fit_on"]) == (8, 1, [])


def test_image_stage_warns_and_keeps_real_pictures_out_of_reports(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "data/raw/d/images/3.png").write_text("damaged")
    features.main("d", "image")
    assert capsys.readouterr().err == (
        "warning: data/raw/d/images/3.png: cannot be read as a picture; its item counts as missing\n"
    )
    folder = shop / "data/features/d/image"
    table = schemas.read("features", folder / "features.parquet")
    assert table["is_missing"].tolist() == [False, False, False, True, False, False, True, True]
    record = json.loads((shop / "reports/cells/features/d--image.json").read_text())
    assert record["unreadable"] == {"count": 1, "names": ["images/3.png"]}
    encoder = ImageEncoder.load(folder / "encoder.safetensors")
    pixels = image.read_pictures(shop / "data/raw/d", ["images/0.png"], 16, "error").pixels
    assert np.allclose(encode(encoder, pixels)[0].numpy(), table["vector"][0], atol=1e-5)
    assert (shop / ".scratch/content/d--image.png").exists()
    assert not (shop / "reports/content").exists()
    assert not list((shop / ".scratch").rglob("*.ckpt"))
    for path in (shop / "data/raw/d/images").iterdir():
        path.write_text("damaged")
    with pytest.raises(BallastError, match="data/raw/d: none of the 6 pictures can be read"):
        features.main("d", "image")
    assert (folder / "features.parquet").exists()  # what was there before stays whole


def test_stage_shares_one_space_between_datasets(shop: Path) -> None:
    params = yaml.safe_load((shop / "params.yaml").read_text())
    params["datasets"]["e"] = params["datasets"]["d"]
    for settings in params["features"].values():
        settings["fit_on"] = ["d"]
    (shop / "params.yaml").write_text(yaml.safe_dump(params))
    for part in ("raw", "prepared"):
        shutil.copytree(shop / f"data/{part}/d", shop / f"data/{part}/e")
    items = schemas.read("items", shop / "data/prepared/e/items.parquet").iloc[:3]
    schemas.write("items", items.assign(n_train=1), shop / "data/prepared/e/items.parquet")
    for modality in params["features"]:
        vectors = []
        for dataset in ("d", "e"):
            features.main(dataset, modality)
            table = schemas.read("features", shop / f"data/features/{dataset}/{modality}/features.parquet")
            vectors.append(np.stack(table["vector"].to_list()))
        assert np.allclose(vectors[0][:3], vectors[1], atol=1e-5), modality
    weights = [shop / f"data/features/{dataset}/image/encoder.safetensors" for dataset in ("d", "e")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_an_encoder_is_fitted_on_is_a_dependency(shop: Path) -> None:
    params = yaml.safe_load((shop / "params.yaml").read_text())
    params["features"]["text"]["fit_on"] = params["features"]["image"]["fit_on"] = ["d"]
    (shop / "params.yaml").write_text(yaml.safe_dump(params))

    def digests() -> dict[str, str]:
        fitted.main()
        return dict(json.loads((shop / "reports/fitted.json").read_text()))

    before = digests()
    assert before["price"] == ""
    assert digests() == before
    picture = next((shop / "data/raw/d/images").iterdir())
    picture.write_bytes(picture.read_bytes() + b" ")
    assert {name for name, digest in digests().items() if digest != before[name]} == {"image"}
    items = schemas.read("items", shop / "data/prepared/d/items.parquet")
    schemas.write("items", items.assign(title="red"), shop / "data/prepared/d/items.parquet")
    assert {name for name, digest in digests().items() if digest != before[name]} == {"text", "image"}


@pytest.mark.parametrize(
    ("dataset", "modality", "message"),
    [
        ("x", "text", "unknown dataset 'x'; known: d"),
        ("d", "sound", "features.sound is missing; there are: image, price, text"),
    ],
)
def test_stage_names_what_is_unknown(shop: Path, dataset: str, modality: str, message: str) -> None:
    with pytest.raises(BallastError, match=message):
        features.main(dataset, modality)
