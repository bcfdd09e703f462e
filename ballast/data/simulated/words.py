"""Titles and descriptions: readable, telling of category, style, brand and quality, never of all."""

import numpy as np

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import Category, Domain
from ballast.data.simulated.items import Catalogue
from ballast.data.simulated.style import STYLE_WORDS, StyleMap
from ballast.reproducibility import numpy_generator

WORD_SHARPNESS = 2.5  # how strictly a style picks its words
WORDS_PER_ITEM = 5

QUALITY_PHRASES = (
    ("good value", "everyday quality", "easy on the budget"),
    ("well made", "reliable quality", "made with care"),
    ("premium quality", "finished by hand", "made to last a lifetime"),
)


def write_texts(
    config: ShopConfig, domain: Domain, catalogue: Catalogue, style: StyleMap, colour_names: list[str]
) -> tuple[list[str], list[str | None]]:
    """Titles and descriptions of the I items; a description may be missing (None).

    `colour_names` are the I names of the pictures' main colours: some titles tell them.
    """
    rng = numpy_generator(config.seed, config.domain, "words")
    odds = WORD_SHARPNESS * catalogue.style @ style.words.T + rng.gumbel(
        size=(len(catalogue), len(STYLE_WORDS))
    )
    chosen = np.argsort(-odds, axis=1)[:, :WORDS_PER_ITEM]  # Gumbel top-k: draws without replacement
    titles, descriptions = [], []
    for item, indices in enumerate(chosen):
        category = domain.categories[catalogue.category[item]]
        words = [STYLE_WORDS[index] for index in indices]
        brand = domain.brands[catalogue.brand[item]]
        material = domain.materials[catalogue.material[item]]
        titles.append(_title(category, domain, brand, words[0], material, colour_names[item], rng))
        collection = domain.collections[catalogue.collection[item]]
        quality = catalogue.quality[item]
        description = _description(category, domain, words[1:], material, collection, quality, rng)
        descriptions.append(None if rng.random() < config.missing_description_share else description)
    return titles, descriptions


def _title(
    category: Category,
    domain: Domain,
    brand: str,
    word: str,
    material: str,
    colour: str,
    rng: np.random.Generator,
) -> str:
    noun = _noun(category, domain, rng)
    parts = [word, material, noun] if rng.random() < 0.5 else [word, noun]
    title = " ".join(parts).title()
    if rng.random() < 0.5:
        title = f"{brand} {title}"
    return f"{title}, {colour.title()}" if rng.random() < 0.35 else title


def _noun(category: Category, domain: Domain, rng: np.random.Generator) -> str:
    """A noun of the category, or one that could be anything."""
    return str(rng.choice(domain.pieces if rng.random() < 0.2 else category.nouns))


def _description(
    category: Category,
    domain: Domain,
    words: list[str],
    material: str,
    collection: str,
    quality: float,
    rng: np.random.Generator,
) -> str:
    noun = _noun(category, domain, rng)
    detail, occasion = rng.choice(category.details), rng.choice(domain.occasions)
    phrase = rng.choice(QUALITY_PHRASES[int(np.digitize(quality + 0.5 * rng.normal(), [-0.6, 0.6]))])
    companion = _companion(category, domain, rng)
    openings = (
        f"{words[0].capitalize()}, {words[1]} {noun} in {material}.",
        f"{words[0].capitalize()} {noun}, {words[1]} in look.",
        f"{words[0].capitalize()} and {words[1]}: our {noun}.",
    )
    optional = (
        (0.6, f"With {detail}."),
        (0.5, f"{phrase.capitalize()}, with a {words[2]} feel."),
        (0.5, f"Our {words[3]} choice for {occasion}."),
        (0.85, f"From the {collection} collection."),
        (0.5, f"Goes well with any {companion}."),
    )
    sentences = [str(rng.choice(openings)), *(text for share, text in optional if rng.random() < share)]
    return " ".join(sentences)


def _companion(category: Category, domain: Domain, rng: np.random.Generator) -> str:
    name = category.complements[0 if rng.random() < 0.7 else 1]
    return str(rng.choice(next(other.nouns for other in domain.categories if other.name == name)))
