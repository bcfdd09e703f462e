"""Users and their histories: drifting taste, complements in order, budgets, novelty and noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import Domain
from ballast.data.simulated.items import Catalogue, Integers
from ballast.data.simulated.style import DIMENSIONS, Floats, StyleMap
from ballast.reproducibility import numpy_generator

Booleans = NDArray[np.bool_]

BLOCK = 1024  # users simulated together: bounds memory at about BLOCK x items x 8 bytes a few times over
END_OF_TIME = 1_719_792_000  # unix seconds of the last possible interaction: 2024-07-01
SECONDS_PER_DAY = 86_400
NOVELTY_DAYS = 30.0
import os

INTEREST_SPREAD = float(os.environ.get("INT", ".3"))
FIRST_COMPLEMENT = 0.72  # chance of the first complement; the second has the rest


@dataclass(frozen=True, kw_only=True)
class Histories:
    """N interactions, sorted by user, then time: indices `user`, `item`, `timestamp` (unix seconds,
    strictly rising within a user), `is_noise` (N,); and `taste` (users, 8), each user's first taste."""

    user: Integers
    item: Integers
    timestamp: Integers
    is_noise: Booleans
    taste: Floats


@dataclass
class _Block:
    """The state of B users during the simulation."""

    taste: Floats  # (B, 8)
    budget: Floats  # (B,)
    price_weight: Floats  # (B,)
    interests: Floats  # (B, categories), rows sum to 1
    previous: Integers  # (B, 2) the last genuine item and the one before, -1 where there is none
    seen: Booleans  # (B, I)


def draw_histories(config: ShopConfig, domain: Domain, catalogue: Catalogue, style: StyleMap) -> Histories:
    """Simulate every user's interactions."""
    rng = numpy_generator(config.seed, config.domain, "users")
    lengths = _lengths(config, rng)
    days = [_days(config, length, rng) for length in lengths]
    tastes = np.empty((config.users, DIMENSIONS))
    items, noise = [], []
    for start in range(0, config.users, BLOCK):
        users = slice(start, min(start + BLOCK, config.users))
        block = _new_block(users.stop - users.start, domain, catalogue, style, rng)
        tastes[users] = block.taste
        for history, flags in _simulate(config, domain, catalogue, style, block, days[users], rng):
            items.append(history)
            noise.append(flags)
    first = END_OF_TIME - round(config.window_days * SECONDS_PER_DAY)
    # A minute a step keeps the order strict after rounding.
    seconds = [np.round(first + each * SECONDS_PER_DAY) + 60 * np.arange(len(each)) for each in days]
    return Histories(
        user=np.repeat(np.arange(config.users), lengths),
        item=np.concatenate(items),
        timestamp=np.concatenate(seconds).astype(np.int64),
        is_noise=np.concatenate(noise),
        taste=tastes,
    )


def _lengths(config: ShopConfig, rng: np.random.Generator) -> Integers:
    """(users,) interactions each: log-normal above the least."""
    spread = 1.1
    centre = np.log(max(config.mean_length - config.min_length + 0.5, 0.5)) - spread**2 / 2
    extra = np.floor(rng.lognormal(centre, spread, size=config.users)).astype(np.int64)
    return np.minimum(config.min_length + extra, min(config.max_length, config.items // 2))


def _days(config: ShopConfig, length: int, rng: np.random.Generator) -> Floats:
    """(length,) rising days of one user's interactions within the window."""
    last = config.window_days
    if rng.random() < config.recent_share:
        last -= config.arrival_days * rng.random()
    else:
        last -= config.arrival_days + (config.window_days - config.arrival_days) * 0.6 * rng.random()
    span = min(last, 22.0 * (length - 1) * rng.lognormal(0.0, 0.4))
    gaps = rng.dirichlet(np.full(length - 1, 1.5))
    days = last - span * np.concatenate([np.cumsum(gaps[::-1])[::-1], [0.0]])
    return np.maximum(days, 0.0)


def _new_block(
    count: int, domain: Domain, catalogue: Catalogue, style: StyleMap, rng: np.random.Generator
) -> _Block:
    return _Block(
        taste=rng.normal(size=(count, DIMENSIONS)) @ style.taste.T,
        budget=0.8 * rng.normal(size=count),
        price_weight=rng.lognormal(-0.3, 0.8, size=count),
        interests=rng.dirichlet(np.full(len(domain.categories), INTEREST_SPREAD), size=count),
        previous=np.full((count, 2), -1),
        seen=np.zeros((count, len(catalogue)), dtype=bool),
    )


def _simulate(
    config: ShopConfig,
    domain: Domain,
    catalogue: Catalogue,
    style: StyleMap,
    block: _Block,
    days: list[Floats],
    rng: np.random.Generator,
) -> list[tuple[Integers, Booleans]]:
    """Items and noise flags of each user of the block, in order of time."""
    lengths = np.array([len(each) for each in days])
    table = np.full((len(days), lengths.max()), np.inf)
    for user, each in enumerate(days):
        table[user, : len(each)] = each
    items = np.full(table.shape, -1)
    noise = rng.random(table.shape) < config.noise_share
    transitions = _transitions(domain)
    for step in range(lengths.max()):
        active = np.flatnonzero(lengths > step)
        today = table[active, step]
        chances = _chances(config, catalogue, style, transitions, block, active, today)
        stray = noise[active, step]
        chances[stray] = _noise_chances(catalogue, today[stray], block.seen[active[stray]])
        chosen = _pick(chances, rng)
        items[active, step] = chosen
        block.seen[active, chosen] = True
        # Noise leaves no trace: the next genuine choice follows the last genuine one.
        genuine = active[~stray]
        block.previous[genuine] = np.stack([chosen[~stray], block.previous[genuine, 0]], axis=1)
        _drift(config, style, block, active, rng)
    return [(items[user, :length], noise[user, :length]) for user, length in enumerate(lengths)]


def _transitions(domain: Domain) -> Floats:
    """(categories, categories): from a category to its complements; rows sum to 1."""
    index = {category.name: position for position, category in enumerate(domain.categories)}
    matrix = np.zeros((len(index), len(index)))
    for category in domain.categories:
        first, second = category.complements
        matrix[index[category.name], index[first]] += FIRST_COMPLEMENT
        matrix[index[category.name], index[second]] += 1.0 - FIRST_COMPLEMENT
    return matrix


def _chances(
    config: ShopConfig,
    catalogue: Catalogue,
    style: StyleMap,
    transitions: Floats,
    block: _Block,
    active: Integers,
    today: Floats,
) -> Floats:
    """(B, I) chances of the next genuine item: first which category, then which of its items."""
    previous = block.previous[active, 0]
    match = block.taste[active] @ catalogue.style.T / np.sqrt(DIMENSIONS)
    odds = config.taste_strength * match + catalogue.popularity
    is_same = catalogue.collection[previous, None] == catalogue.collection
    odds += config.follow_strength * (is_same & (previous >= 0)[:, None])
    distance = catalogue.price_level - block.budget[active, None]
    odds -= config.price_strength * block.price_weight[active, None] * distance**2 / 2
    age = today[:, None] - catalogue.launch
    is_new = catalogue.launch > 0
    odds += config.novelty_strength * np.where(is_new & (age >= 0), np.exp(-np.abs(age) / NOVELTY_DAYS), 0.0)
    odds[(age < 0) | block.seen[active]] = -np.inf
    weights = np.exp(odds - odds.max(axis=1, keepdims=True))
    desire = _desire(config, catalogue, transitions, block, active)
    mass = weights @ np.eye(len(transitions))[catalogue.category]  # (B, categories)
    return weights * (desire / np.maximum(mass, 1e-12))[:, catalogue.category]


def _desire(
    config: ShopConfig, catalogue: Catalogue, transitions: Floats, block: _Block, active: Integers
) -> Floats:
    """(B, categories) chances of the next genuine category, rows sum to 1."""
    last, earlier = block.previous[active].T
    soon = config.complement_share * (1.0 - config.delayed_share)
    late = config.complement_share * config.delayed_share
    stay = np.eye(len(transitions))
    # The row past the end stands for "no such item yet": it pulls nowhere.
    pull_last = np.vstack([soon * transitions + config.repeat_share * stay, np.zeros(len(transitions))])
    pull_earlier = np.vstack([late * transitions, np.zeros(len(transitions))])
    category = np.append(catalogue.category, len(transitions))
    desire = pull_last[category[last]] + pull_earlier[category[earlier]]
    return desire + (1.0 - desire.sum(axis=1, keepdims=True)) * block.interests[active]


def _noise_chances(catalogue: Catalogue, today: Floats, seen: Booleans) -> Floats:
    """(B, I) chances of a noise item: half by popularity, half uniform, among what is on sale."""
    popular = np.exp(catalogue.popularity)
    allowed = (catalogue.launch <= today[:, None]) & ~seen
    return np.where(allowed, 0.5 * popular / popular.sum() + 0.5 / len(catalogue), 0.0)


def _pick(chances: Floats, rng: np.random.Generator) -> Integers:
    """(B,) one index a row, with chance in proportion to (B, I) `chances`."""
    totals = np.cumsum(chances, axis=1)
    threshold = rng.random(len(chances)) * totals[:, -1]
    return (totals <= threshold[:, None]).sum(axis=1)


def _drift(
    config: ShopConfig, style: StyleMap, block: _Block, active: Integers, rng: np.random.Generator
) -> None:
    fresh = rng.normal(size=(len(active), DIMENSIONS)) @ style.taste.T
    kept = config.taste_persistence
    block.taste[active] = kept * block.taste[active] @ style.drift.T + np.sqrt(1.0 - kept**2) * fresh
