"""What a shopper takes next: a category that follows from the last ones, then an item that suits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import Domain
from ballast.data.simulated.items import Catalogue, Integers
from ballast.data.simulated.style import DIMENSIONS, Floats, StyleMap

Booleans = NDArray[np.bool_]

NOVELTY_DAYS = 30.0
FIRST_COMPLEMENT = 0.85  # chance of the first of two complements
INTEREST_SPREAD = 0.2  # Dirichlet parameter: below 1, a user cares for few categories
CURIOSITY = 0.05  # share of the interest that goes to all categories alike


@dataclass
class Shoppers:
    """The state of B users during the simulation; updated in place."""

    taste: Floats  # (B, 8)
    budget: Floats  # (B,) preferred price level
    price_weight: Floats  # (B,)
    interests: Floats  # (B, categories), rows sum to 1
    last: Integers  # (B,) last genuine item, -1 before the first
    earlier: Integers  # (B,) the genuine item before that, or -1
    seen: Booleans  # (B, I)


@dataclass(frozen=True, kw_only=True)
class ChoiceModel:
    """How users of one shop choose. `transitions` (categories, categories): from a category to its
    complements, rows sum to 1. `rows` are always indices of users into the Shoppers, (R,)."""

    config: ShopConfig
    catalogue: Catalogue
    style: StyleMap
    transitions: Floats

    def new_shoppers(self, count: int, rng: np.random.Generator) -> Shoppers:
        """`count` users before their first interaction."""
        categories = len(self.transitions)
        interests = rng.dirichlet(np.full(categories, INTEREST_SPREAD), size=count)
        return Shoppers(
            taste=rng.normal(size=(count, DIMENSIONS)) @ self.style.taste.T,
            budget=0.8 * rng.normal(size=count),
            price_weight=rng.lognormal(-0.3, 0.8, size=count),
            interests=(1.0 - CURIOSITY) * interests + CURIOSITY / categories,
            last=np.full(count, -1),
            earlier=np.full(count, -1),
            seen=np.zeros((count, len(self.catalogue)), dtype=bool),
        )

    def genuine_chances(self, shoppers: Shoppers, rows: Integers, today: Floats) -> Floats:
        """(R, I) chances of the next genuine item, rows sum to 1 unless a category is sold out.

        `today` (R,) in days: what is not yet launched, or already taken, has no chance.
        """
        odds = self._odds(shoppers, rows, today)
        weights = np.exp(odds - odds.max(axis=1, keepdims=True))
        desire = self._desire(shoppers, rows)
        mass = weights @ np.eye(len(self.transitions))[self.catalogue.category]  # (R, categories)
        return weights * (desire / np.maximum(mass, np.finfo(np.float64).tiny))[:, self.catalogue.category]

    def noise_chances(self, shoppers: Shoppers, rows: Integers, today: Floats) -> Floats:
        """(R, I) chances of a noise item: half by popularity, half uniform, whatever the user likes."""
        popular = np.exp(self.catalogue.popularity)
        allowed = (self.catalogue.launch <= today[:, None]) & ~shoppers.seen[rows]
        return np.where(allowed, 0.5 * popular / popular.sum() + 0.5 / len(popular), 0.0)

    def record(self, shoppers: Shoppers, rows: Integers, items: Integers, is_noise: Booleans) -> None:
        """Note the items taken, (R,). Noise leaves no trace but `seen`: the next genuine choice follows
        the last genuine one."""
        shoppers.seen[rows, items] = True
        genuine = rows[~is_noise]
        shoppers.earlier[genuine] = shoppers.last[genuine]
        shoppers.last[genuine] = items[~is_noise]

    def drift(self, shoppers: Shoppers, rows: Integers, rng: np.random.Generator) -> None:
        """Let tastes move on by one interaction: rotated, and partly forgotten."""
        fresh = rng.normal(size=(len(rows), DIMENSIONS)) @ self.style.taste.T
        kept = self.config.taste_persistence
        moved = shoppers.taste[rows] @ self.style.drift.T
        shoppers.taste[rows] = kept * moved + np.sqrt(1.0 - kept**2) * fresh

    def _odds(self, shoppers: Shoppers, rows: Integers, today: Floats) -> Floats:
        """(R, I) log-odds of the items of one category among themselves."""
        config, catalogue, last = self.config, self.catalogue, shoppers.last[rows]
        match = shoppers.taste[rows] @ catalogue.style.T / np.sqrt(DIMENSIONS)
        odds = config.taste_strength * match + catalogue.popularity
        same_collection = catalogue.collection[last, None] == catalogue.collection
        odds += config.collection_strength * (same_collection & (last >= 0)[:, None])
        distance = catalogue.price_level - shoppers.budget[rows, None]
        odds -= config.price_strength * shoppers.price_weight[rows, None] * distance**2 / 2
        age = today[:, None] - catalogue.launch
        fresh = np.exp(-np.abs(age) / NOVELTY_DAYS) * (catalogue.launch > 0)
        odds += config.novelty_strength * fresh
        odds[(age < 0) | shoppers.seen[rows]] = -np.inf
        return odds

    def _desire(self, shoppers: Shoppers, rows: Integers) -> Floats:
        """(R, categories) chances of the next genuine category, rows sum to 1."""
        config, categories = self.config, len(self.transitions)
        soon = config.complement_share * (1.0 - config.delayed_share) * self.transitions
        late = config.complement_share * config.delayed_share * self.transitions
        stay = config.repeat_share * np.eye(categories)
        # Item -1 is "none yet": it finds the category past the last one, a row that pulls nowhere.
        nowhere = np.zeros((1, categories))
        category = np.append(self.catalogue.category, categories)
        desire = np.vstack([soon + stay, nowhere])[category[shoppers.last[rows]]]
        desire = desire + np.vstack([late, nowhere])[category[shoppers.earlier[rows]]]
        return desire + (1.0 - desire.sum(axis=1, keepdims=True)) * shoppers.interests[rows]


def category_transitions(domain: Domain) -> Floats:
    """(categories, categories) chances to go on from a category to each of its complements."""
    index = {category.name: position for position, category in enumerate(domain.categories)}
    matrix = np.zeros((len(index), len(index)))
    for category in domain.categories:
        first, second = category.complements
        matrix[index[category.name], index[first]] = FIRST_COMPLEMENT
        matrix[index[category.name], index[second]] = 1.0 - FIRST_COMPLEMENT
    return matrix
