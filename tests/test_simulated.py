"""The simulated shop: equal bytes for equal settings, and structure that methods can and must tell apart."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ballast.data.simulated import Shop, ShopConfig, generate, write
from ballast.data.simulated.domains import DOMAINS, Domain
from ballast.data.simulated.pictures import paletted
from ballast.data.simulated.style import IN_PICTURES, IN_WORDS, style_map
from ballast.errors import BallastError

Floats = NDArray[np.floating]

SMALL = ShopConfig(seed=3, domain="outdoor", users=40, items=48, image_size=32)


# Files


def file_hashes(config: ShopConfig, folder: Path) -> dict[str, str]:
    write(generate(config), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_settings_give_equal_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first = file_hashes(SMALL, tmp_path / "first")
    assert first == file_hashes(SMALL, tmp_path / "second")
    other = file_hashes(ShopConfig(**{**vars(SMALL), "seed": 4}), tmp_path / "other")
    assert {"interactions.parquet", "items.parquet"} <= first.keys() & other.keys()
    assert not [name for name in first.keys() & other.keys() if first[name] == other[name]]


def test_files_hold_the_tables_the_pictures_and_no_latent_truth(tmp_path: Path) -> None:
    shop = generate(SMALL)
    write(shop, tmp_path)
    interactions = pd.read_parquet(tmp_path / "interactions.parquet")
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert list(interactions) == ["user", "item", "timestamp", "is_noise"]
    assert list(items) == ["item", "title", "description", "category", "brand", "price", "image"]
    pd.testing.assert_frame_equal(interactions, shop.interactions, check_dtype=False)
    pd.testing.assert_frame_equal(items, shop.items, check_dtype=False)
    assert interactions["timestamp"].dtype == np.int64
    for path, picture in zip(items["image"], shop.images, strict=True):
        if isinstance(path, str):
            with Image.open(tmp_path / path) as image:
                np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)


def test_a_picture_with_too_many_colours_is_refused() -> None:
    ramp = np.stack([np.arange(300) % 256, np.arange(300) // 256, np.zeros(300)], axis=1)
    with pytest.raises(ValueError, match="300 colours in a picture"):
        paletted(ramp.reshape(10, 30, 3).astype(np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_share": 1.5}, "simulated: noise_share: got 1.5"),
        ({"domain": "food"}, "simulated: domain: got 'food'"),
        ({"complement_share": 0.8, "repeat_share": 0.3}, "complement_share and repeat_share"),
        ({"arrival_share": 0.8, "gradual_share": 0.3}, "arrival_share and gradual_share"),
        ({"min_length": 20}, "min_length 20"),
    ],
)
def test_settings_out_of_range_are_told(change: dict[str, object], message: str) -> None:
    with pytest.raises(BallastError, match=re.escape(message)):
        generate(ShopConfig(**{**vars(SMALL), **change}))  # type: ignore[arg-type]


@pytest.mark.parametrize("domain", ["decor", "apparel", "outdoor"])
def test_the_smallest_shop_still_works(domain: str) -> None:
    shop = generate(ShopConfig(seed=0, domain=domain, users=30, items=24, image_size=16))  # type: ignore[arg-type]
    assert shop.interactions["user"].nunique() == 30
    assert not shop.interactions.duplicated(["user", "item"]).any()


# One shop of the default size (but for its pictures)


@dataclass(frozen=True)
class LeaveOneOut:
    """Item ids from 1; `sequences` whole; the last item is the target, the one before validation."""

    shop: Shop
    sequences: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    is_noise: NDArray[np.bool_]  # of the targets
    counts: NDArray[np.int64]  # (I,) training interactions

    @property
    def histories(self) -> list[NDArray[np.int64]]:
        return [sequence[:-1] for sequence in self.sequences]

    @property
    def is_cold(self) -> NDArray[np.bool_]:
        return np.asarray(self.counts[self.targets] < 3)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return generate(ShopConfig(seed=7, domain="decor", image_size=32))


@pytest.fixture(scope="module")
def data(shop: Shop) -> LeaveOneOut:
    ids = pd.Series(np.arange(1, len(shop.items) + 1), index=shop.items["item"])
    items = ids[shop.interactions["item"]].to_numpy()
    starts = np.flatnonzero(~shop.interactions["user"].duplicated().to_numpy())[1:]
    sequences = np.split(items, starts)
    ends = np.append(starts, len(items)) - 1
    counts = np.zeros(len(ids) + 1, dtype=np.int64)
    for sequence in sequences:
        np.add.at(counts, sequence[:-2], 1)
    noise = shop.interactions["is_noise"].to_numpy()[ends]
    return LeaveOneOut(shop, sequences, items[ends], noise, counts)


def target_ranks(scores: Floats, data: LeaveOneOut) -> NDArray[np.int64]:
    """Full ranking, history masked, ties pessimistic."""
    scores = scores.copy()
    scores[:, 0] = -np.inf
    for row, history in enumerate(data.histories):
        scores[row, history] = -np.inf
    target = scores[np.arange(len(scores)), data.targets]
    return np.asarray((scores >= target[:, None]).sum(axis=1))


def ndcg(ranks: NDArray[np.int64]) -> float:
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())


def history_matrix(data: LeaveOneOut, fade: float) -> Floats:
    """(users, I) weights of the history's items, the most recent first."""
    matrix = np.zeros((len(data.sequences), len(data.counts)), dtype=np.float32)
    for row, history in enumerate(data.histories):
        matrix[row, history] = fade ** np.arange(len(history))[::-1]
    return matrix


def co_occurrence(data: LeaveOneOut) -> Floats:
    """(I, I) cosine of the training users of two items."""
    users = np.zeros((len(data.sequences), len(data.counts)), dtype=np.float32)
    for row, sequence in enumerate(data.sequences):
        users[row, sequence[:-2]] = 1
    norms = np.sqrt(data.counts) + 1e-9
    cosine = users.T @ users / norms / norms[:, None]
    np.fill_diagonal(cosine, 0)
    return np.asarray(cosine, dtype=np.float32)


def transitions(data: LeaveOneOut) -> Floats:
    """(I, I) how often the second item came right after the first."""
    matrix = np.zeros((len(data.counts), len(data.counts)), dtype=np.float32)
    for sequence in data.sequences:
        np.add.at(matrix, (sequence[:-3], sequence[1:-2]), 1)
    return matrix


def tfidf(items: pd.DataFrame) -> Floats:
    """(I, words) of titles and descriptions, rows of unit length."""
    texts = items["title"] + " " + items["description"].fillna("")
    documents = [re.findall(r"[a-z]+", text.lower()) for text in texts]
    words = {word: column for column, word in enumerate(sorted({w for each in documents for w in each}))}
    matrix = np.zeros((len(documents), len(words)), dtype=np.float32)
    for row, document in enumerate(documents):
        np.add.at(matrix[row], [words[word] for word in document], 1)
    matrix = np.log1p(matrix) * np.log(len(documents) / (matrix > 0).sum(axis=0), dtype=np.float32)
    return np.asarray(matrix / (np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-9), dtype=np.float32)


def transformer_scores(data: LeaveOneOut, length: int = 12, dim: int = 64, epochs: int = 8) -> Floats:
    """(users, I) of a small causal Transformer, full cross entropy, trained for a fixed time."""

    def rows(sequences: list[NDArray[np.int64]], width: int) -> torch.Tensor:
        table = np.zeros((len(sequences), width), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            table[row, -len(sequence[-width:]) :] = sequence[-width:]
        return torch.from_numpy(table)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        items, places = nn.Embedding(len(data.counts), dim), nn.Parameter(0.02 * torch.randn(length, dim))
        nn.init.normal_(items.weight, std=0.05)
        layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.3, activation="gelu", batch_first=True)
        encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        train = rows([sequence[:-2] for sequence in data.sequences], length + 1)
        parameters = [*items.parameters(), *encoder.parameters(), places]
        optimiser = torch.optim.Adam(parameters, 5e-3)
        batches = -(-len(train) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=epochs * batches)
        for _ in range(epochs):
            for batch in torch.randperm(len(train)).split(64):
                inputs, targets = train[batch, :-1], train[batch, 1:]
                hidden = encoder(nn.functional.dropout(items(inputs), 0.3) + places, mask=mask)
                logits = nn.functional.dropout(hidden[targets > 0], 0.3) @ items.weight.T
                optimiser.zero_grad()
                nn.functional.cross_entropy(logits, targets[targets > 0]).backward()
                optimiser.step()
                schedule.step()
        encoder.eval()
        with torch.no_grad():
            hidden = encoder(items(rows(data.histories, length)) + places, mask=mask)
            return np.asarray((hidden[:, -1] @ items.weight.T).numpy())


@pytest.fixture(scope="module")
def ranks(data: LeaveOneOut) -> dict[str, NDArray[np.int64]]:
    users, cosine = len(data.sequences), co_occurrence(data)
    text = np.pad(tfidf(data.shop.items), ((1, 0), (0, 0)))
    recent = history_matrix(data, 0.8)
    scores: dict[str, Floats] = {
        "popularity": np.tile(data.counts.astype(np.float32), (users, 1)),
        "co_occurrence": history_matrix(data, 1.0) @ cosine,
        "recent_co_occurrence": recent @ cosine,
        "first_order": history_matrix(data, 0.0) @ (transitions(data) + 1e-3 * cosine),
        "content": recent @ (text @ text.T),
        "transformer": transformer_scores(data),
    }
    return {name: target_ranks(each, data) for name, each in scores.items()}


def test_histories_look_like_a_shop(shop: Shop) -> None:
    interactions = shop.interactions
    lengths = interactions.groupby("user").size()
    assert lengths.min() == 5
    assert 9 < lengths.mean() < 12
    assert lengths.max() > 5 * lengths.mean()
    gaps = interactions.groupby("user")["timestamp"].diff().dropna()
    assert (gaps > 0).all()
    assert not interactions.duplicated(["user", "item"]).any()
    counts = interactions["item"].value_counts()
    assert counts.iloc[:100].sum() > 0.3 * counts.sum()  # the top tenth of the items


def test_nothing_is_bought_before_its_launch(shop: Shop) -> None:
    launch = pd.Series(shop.truth.catalogue.launch, index=shop.items["item"])
    first = shop.interactions.groupby("item")["timestamp"].min() / 86_400
    start = shop.interactions["timestamp"].max() / 86_400 - 730
    assert (first - start - launch[first.index] > -1.0).all()


def test_some_content_is_missing(shop: Shop) -> None:
    shares = shop.items[["description", "price", "image"]].isna().mean()
    assert shares.between(0.01, 0.08).all()
    assert not shop.items[["item", "title", "category", "brand"]].isna().any(axis=None)


def test_pictures_are_small_files(tmp_path: Path) -> None:
    sizes = []
    for picture in generate(ShopConfig(seed=1, domain="apparel", users=5, items=48)).images:
        paletted(picture).save(tmp_path / "picture.png", optimize=True)
        sizes.append((tmp_path / "picture.png").stat().st_size)
    assert np.mean(sizes) < 3_000


def test_each_method_family_finds_structure_the_simpler_one_cannot(
    ranks: dict[str, NDArray[np.int64]],
) -> None:
    score = {name: ndcg(each) for name, each in ranks.items()}
    assert score["co_occurrence"] > 1.5 * score["popularity"]
    assert score["first_order"] > 1.5 * score["popularity"]
    for simpler in ("co_occurrence", "recent_co_occurrence", "first_order"):
        assert score["transformer"] > 1.15 * score[simpler], simpler
    assert score["transformer"] > 1.5 * score["content"]
    assert 0.08 < score["transformer"] < 0.25


def test_on_cold_items_content_wins(data: LeaveOneOut, ranks: dict[str, NDArray[np.int64]]) -> None:
    assert data.is_cold.sum() > 150
    hits = {name: int((each[data.is_cold] <= 10).sum()) for name, each in ranks.items()}
    chance = 10 / len(data.counts) * data.is_cold.sum()
    assert hits["content"] > 3 * chance
    others = [count for name, count in hits.items() if name != "content"]
    assert hits["content"] > 3 * max(others)


def test_noise_has_its_share_and_is_hard_to_predict(
    data: LeaveOneOut, ranks: dict[str, NDArray[np.int64]]
) -> None:
    assert data.shop.interactions["is_noise"].mean() == pytest.approx(0.1, abs=0.01)
    for name in ("transformer", "first_order", "content"):
        noise, genuine = ndcg(ranks[name][data.is_noise]), ndcg(ranks[name][~data.is_noise])
        assert noise < 0.4 * genuine, name


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_noise_share_is_a_setting(share: float) -> None:
    shop = generate(ShopConfig(**{**vars(SMALL), "users": 800, "noise_share": share}))
    assert shop.interactions["is_noise"].mean() == pytest.approx(share, abs=0.02)


def test_order_matters(data: LeaveOneOut) -> None:
    """Complements follow in one direction: a category's successors are not its predecessors."""
    category = data.shop.truth.catalogue.category
    counts = np.zeros((12, 12))
    for sequence in data.sequences:
        np.add.at(counts, (category[sequence[:-1] - 1], category[sequence[1:] - 1]), 1)
    share = counts / counts.sum(axis=1, keepdims=True)
    forward = np.array([np.delete(share[row], row).max() for row in range(12)])
    successors = np.array([np.where(np.arange(12) == row, -1, share[row]).argmax() for row in range(12)])
    backward = share[successors, np.arange(12)]
    assert forward.min() > 0.2
    assert (forward > 1.5 * backward).mean() > 0.8


# What each modality tells


def probe(features: Floats, truth: Floats, penalty: float = 3.0) -> Floats:
    """Ridge predictions of the second half's truth, learned on the first half."""
    half = len(features) // 2
    centre, spread = features[:half].mean(axis=0), features[:half].std(axis=0) + 1e-9
    scaled = np.column_stack([(features - centre) / spread, np.ones(len(features))])
    train = scaled[:half]
    gram = train.T @ train + penalty * np.sqrt(half) * np.eye(train.shape[1])
    return np.asarray(scaled[half:] @ np.linalg.solve(gram, train.T @ truth[:half]))


def explained(prediction: Floats, truth: Floats) -> Floats:
    """R^2 of each column."""
    residual = ((truth - prediction) ** 2).sum(axis=0)
    return np.asarray(1.0 - residual / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0))


def picture_statistics(images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Colours (I, 9), the figure's mean, spread and quarter; shape (I, 64), coverage of an 8 x 8 grid."""
    pixels = images.astype(np.float64) / 255
    figure = (pixels.min(axis=3) < 0.8).astype(np.float64)  # the ground is pale
    weight = figure[..., None] / figure.sum(axis=(1, 2))[:, None, None, None]
    mean = (pixels * weight).sum(axis=(1, 2))
    spread = np.sqrt((weight * (pixels - mean[:, None, None]) ** 2).sum(axis=(1, 2)))
    skew = np.cbrt((weight * (pixels - mean[:, None, None]) ** 3).sum(axis=(1, 2)))
    size = images.shape[1] // 8
    shape = figure.reshape(len(images), 8, size, 8, size).mean(axis=(2, 4)).reshape(len(images), 64)
    return np.column_stack([mean, spread, skew]), shape


def price_statistics(items: pd.DataFrame) -> Floats:
    """(I, 12) soft bins of the log price."""
    price = np.log(items["price"].fillna(items["price"].median()).to_numpy())
    centres = np.quantile(price, np.linspace(0, 1, 12))
    return np.asarray(np.exp(-((price[:, None] - centres) ** 2) / 0.08))


def test_every_modality_tells_something_and_none_tells_all(shop: Shop) -> None:
    catalogue = shop.truth.catalogue
    colours, shape = picture_statistics(shop.images)
    seen = {
        "text": tfidf(shop.items),
        "image": np.hstack([colours, shape]),
        "price": price_statistics(shop.items),
    }
    half = len(catalogue) // 2
    category = catalogue.category
    accuracy = {
        name: (probe(each, np.eye(12)[category]).argmax(axis=1) == category[half:]).mean()
        for name, each in seen.items()
    }
    assert 0.5 < accuracy["text"] < 0.97
    assert 0.5 < accuracy["image"] < 0.97
    assert 1.8 / 12 < accuracy["price"] < 0.6
    style = {
        name: explained(probe(each, catalogue.style), catalogue.style[half:]) for name, each in seen.items()
    }
    assert 0.2 < style["text"].mean() < 0.8
    assert 0.1 < style["image"].mean() < 0.8
    # Each shows what the other hides.
    in_words, in_pictures = IN_WORDS > 0.7, IN_PICTURES > 0.85
    assert (style["text"] - style["image"])[in_words].mean() > 0.1
    assert (style["image"] - style["text"])[in_pictures & ~in_words].mean() > 0.1
    level = catalogue.price_level[:, None]
    assert explained(probe(seen["price"], level), level[half:])[0] > 0.05


# Domains that share their style space, or do not


@pytest.fixture(scope="module")
def pairs() -> dict[float, tuple[Shop, Shop]]:
    """Two domains of one seed, their style space apart (0) or shared (1)."""

    def shop(domain: Literal["decor", "outdoor"], shared: float) -> Shop:
        return generate(
            ShopConfig(seed=5, domain=domain, users=10, items=500, image_size=16, shared_style=shared)
        )

    return {shared: (shop("decor", shared), shop("outdoor", shared)) for shared in (0.0, 1.0)}


def transferred(pair: tuple[Shop, Shop], modality: str) -> tuple[float, float]:
    """R^2 of a style probe learned on the first domain: at home, and on the second."""
    if modality == "image":
        features = np.concatenate([picture_statistics(shop.images)[0] for shop in pair])
    else:
        features = tfidf(pd.concat([shop.items for shop in pair]))
    styles = np.concatenate([shop.truth.catalogue.style for shop in pair])
    items = len(styles) // 2
    at_home = explained(probe(features[:items], styles[:items]), styles[items // 2 : items])
    away = explained(probe(features, styles), styles[items:])  # the first half is all of the first domain
    return float(at_home.mean()), float(away.mean())


@pytest.mark.parametrize("modality", ["text", "image"])
def test_what_one_domain_teaches_holds_in_another_only_if_they_share_style(
    pairs: dict[float, tuple[Shop, Shop]], modality: str
) -> None:
    home_shared, away_shared = transferred(pairs[1.0], modality)
    home_apart, away_apart = transferred(pairs[0.0], modality)
    assert min(home_shared, home_apart) > 0.1
    assert away_shared > 0.4 * home_shared
    assert away_apart < 0.1 * home_apart


def test_shared_style_is_the_correlation_of_the_maps() -> None:
    for shared in (0.0, 0.7, 1.0):
        for name in ("words", "colours", "patterns", "taste"):
            first, second = (
                np.concatenate([getattr(style_map(seed, domain, shared), name).ravel() for seed in range(20)])
                for domain in ("decor", "apparel")
            )
            # Two domains each have `shared` of the common map, so between them its square.
            assert np.corrcoef(first, second)[0, 1] == pytest.approx(shared**2, abs=0.1), name
    rotation = style_map(11, "decor", 0.7).drift
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-12)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=list(DOMAINS))
def test_domains_are_complete(domain: Domain) -> None:
    names = [category.name for category in domain.categories]
    assert len(set(names)) == 12
    led_to = {name for category in domain.categories for name in category.complements}
    assert led_to == set(names)  # every category completes another
    for words in (domain.brands, domain.collections, domain.pieces, domain.occasions):
        assert len(set(words)) == len(words) > 3
    for category in domain.categories:
        assert len(category.complements) == 2
        for part in category.silhouette:
            layer, shape, *numbers = part.split()
            assert layer in ("body", "trim")
            assert len(numbers) % 2 == (shape == "line"), part
