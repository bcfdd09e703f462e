"""The catalogue's latent truth: style, category, brand, quality, price, popularity, launch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import Domain
from ballast.data.simulated.style import DIMENSIONS, IN_WORDS, Floats
from ballast.reproducibility import numpy_generator

Integers = NDArray[np.int64]

# Of the styles of two items of one collection, by dimension: one idea in several colourways.
COLLECTION_CORRELATION = 0.75 * IN_WORDS
BRAND_CORRELATION = 0.35  # of the qualities of two items of one brand
PRICE_NOISE = 0.2


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Latent truth, one row an item (I rows).

    `style` (I, 8) standard normal; `category`, `collection` and `brand` (I,) indices into the domain's lists;
    `quality` (I,) standard normal; `material` (I,) index into `Domain.materials`; `price` (I,) in the
    shop's currency; `price_level` (I,) how dear the item is for its category, standardised;
    `popularity` (I,) log weight; `launch` (I,) day of its launch, 0 the first day.
    """

    style: Floats
    category: Integers
    collection: Integers
    brand: Integers
    quality: Floats
    material: Integers
    price: Floats
    price_level: Floats
    popularity: Floats
    launch: Floats

    def __len__(self) -> int:
        return len(self.category)


def draw_catalogue(config: ShopConfig, domain: Domain) -> Catalogue:
    """Draw the items of a shop."""
    rng = numpy_generator(config.seed, config.domain, "items")
    category = rng.permutation(np.arange(config.items) % len(domain.categories))
    collections = len(domain.collections)
    collection = rng.choice(collections, size=config.items, p=_falling(collections, 0.5))
    brand = rng.choice(len(domain.brands), size=collections)[collection]
    centres = rng.normal(size=(collections, DIMENSIONS))
    brand_quality = rng.normal(size=len(domain.brands))
    style = _blend(centres[collection], rng.normal(size=(config.items, DIMENSIONS)), COLLECTION_CORRELATION)
    quality = _blend(brand_quality[brand], rng.normal(size=config.items), BRAND_CORRELATION)
    premium = 0.45 * quality + PRICE_NOISE * rng.normal(size=config.items)
    medians = np.array([entry.price for entry in domain.categories])
    ranks = rng.permutation(config.items) + 1
    return Catalogue(
        style=style,
        category=category,
        collection=collection,
        brand=brand,
        quality=quality,
        material=_materials(domain, category, style, rng),
        price=_shop_price(medians[category] * np.exp(premium), rng),
        price_level=(premium - premium.mean()) / premium.std(),
        popularity=-config.zipf_exponent * np.log(ranks),
        launch=_launch_days(config, rng),
    )


def _blend(common: Floats, own: Floats, correlation: float | Floats) -> Floats:
    return np.sqrt(correlation) * common + np.sqrt(1.0 - correlation) * own


def _falling(count: int, exponent: float) -> Floats:
    weights = np.arange(1.0, count + 1.0) ** -exponent
    return weights / weights.sum()


def _materials(domain: Domain, category: Integers, style: Floats, rng: np.random.Generator) -> Integers:
    """(I,) a material that the category comes in, the one that suits the style more likely."""
    names = domain.materials
    allowed = np.array([[name in entry.materials for name in names] for entry in domain.categories])
    odds = style @ rng.normal(size=(DIMENSIONS, len(names))) * 0.5 + rng.gumbel(size=(len(style), len(names)))
    return np.where(allowed[category], odds, -np.inf).argmax(axis=1)


def _shop_price(price: Floats, rng: np.random.Generator) -> Floats:
    """Whole amounts less a few cents, as shops write them."""
    cents = rng.choice([0.01, 0.05, 0.5, 1.0], size=price.shape, p=[0.4, 0.2, 0.1, 0.3])
    return np.round(np.maximum(np.ceil(price), 2.0) - cents, 2)


def _launch_days(config: ShopConfig, rng: np.random.Generator) -> Floats:
    """(I,) days: most items are there at first, some come at an even pace, some in the last days."""
    last = max(config.window_days - config.arrival_days, 0.0)
    arrivals, gradual = (
        round(share * config.items) for share in (config.arrival_share, config.gradual_share)
    )
    launch = np.zeros(config.items)
    # None later than this, so that the newest are on sale for a while, too.
    launch[:arrivals] = last + 0.9 * (config.window_days - last) * rng.random(arrivals)
    late = launch[arrivals : arrivals + gradual]
    late[:] = last * rng.random(len(late))
    return rng.permutation(launch)
