"""A whole shop: its tables and pictures, and the files that the generic reader takes."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import DOMAINS, Domain
from ballast.data.simulated.items import Catalogue, draw_catalogue
from ballast.data.simulated.pictures import Looks, Pixels, colour_names, draw_looks, paletted, render
from ballast.data.simulated.style import Floats, StyleMap, style_map
from ballast.data.simulated.users import Histories, draw_histories
from ballast.data.simulated.words import write_texts
from ballast.errors import BallastError
from ballast.reproducibility import numpy_generator
from ballast.strict import parse

INTERACTIONS_SCHEMA = pa.schema(
    [("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64()), ("is_noise", pa.bool_())]
)
ITEMS_SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("image", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the files do not tell: latents of the items, looks, style maps, users' first tastes (U, 8)."""

    catalogue: Catalogue
    looks: Looks
    style: StyleMap
    taste: Floats


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A generated shop.

    `interactions`: user, item, timestamp (unix seconds, strictly rising within a user), is_noise; sorted
    by user, then time; no user has an item twice. `items`: item, title, description (or null), category
    ("department > name"), brand, price (or null), image (relative path, or null). `images`: (I, H, W, 3)
    uint8 RGB in the order of `items`, those without a path too.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame
    images: Pixels
    truth: Truth


def generate(config: ShopConfig) -> Shop:
    """Generate a shop; equal settings give an equal shop. Raises BallastError on a setting out of range."""
    config = parse(ShopConfig, asdict(config), "simulated")
    for first, second in (("complement_share", "repeat_share"), ("arrival_share", "gradual_share")):
        if getattr(config, first) + getattr(config, second) > 1.0:
            raise BallastError(
                f"simulated: {first} and {second} are shares of one whole; their sum is above 1"
            )
    domain = DOMAINS[config.domain]
    style = style_map(config.seed, config.domain, config.shared_style)
    catalogue = draw_catalogue(config, domain)
    looks = draw_looks(config, catalogue, style)
    histories = draw_histories(config, domain, catalogue, style)
    names = np.array([f"{config.domain}-i{number:05d}" for number in range(config.items)], dtype=object)
    return Shop(
        interactions=_interactions(config, histories, names),
        items=_items(config, domain, catalogue, looks, style, names),
        images=render(config, domain, catalogue, looks),
        truth=Truth(catalogue=catalogue, looks=looks, style=style, taste=histories.taste),
    )


def _interactions(config: ShopConfig, histories: Histories, names: np.ndarray) -> pd.DataFrame:
    users = np.array([f"{config.domain}-u{number:05d}" for number in range(config.users)], dtype=object)
    return pd.DataFrame(
        {
            "user": users[histories.user],
            "item": names[histories.item],
            "timestamp": histories.timestamp,
            "is_noise": histories.is_noise,
        }
    )


def _items(
    config: ShopConfig, domain: Domain, catalogue: Catalogue, looks: Looks, style: StyleMap, names: np.ndarray
) -> pd.DataFrame:
    titles, descriptions = write_texts(config, domain, catalogue, style, colour_names(looks))
    missing = numpy_generator(config.seed, config.domain, "missing").random((2, config.items))
    has_image = missing[1] >= config.missing_image_share
    return pd.DataFrame(
        {
            "item": names,
            "title": titles,
            "description": descriptions,
            "category": [domain.categories[index].path for index in catalogue.category],
            "brand": [domain.brands[index] for index in catalogue.brand],
            "price": np.where(missing[0] < config.missing_price_share, np.nan, catalogue.price),
            "image": [
                f"images/{name}.png" if has else None for name, has in zip(names, has_image, strict=True)
            ],
        }
    )


def write(shop: Shop, folder: Path) -> None:
    """Write `interactions.parquet`, `items.parquet` and `images/<item>.png` into `folder`, the same
    bytes for the same shop. Files of these names are replaced."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write_table(shop.interactions, INTERACTIONS_SCHEMA, folder / "interactions.parquet")
    _write_table(shop.items, ITEMS_SCHEMA, folder / "items.parquet")
    for path, picture in zip(shop.items["image"], shop.images, strict=True):
        if isinstance(path, str):
            paletted(picture).save(folder / path, optimize=True)


def _write_table(frame: pd.DataFrame, schema: pa.Schema, path: Path) -> None:
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    # pandas' own metadata names its version, which is no part of the data.
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")
