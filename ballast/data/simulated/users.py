"""Users' histories: how long, when, and which items in which order."""

from dataclasses import dataclass

import numpy as np

from ballast.data.simulated.choices import Booleans, ChoiceModel, Shoppers, category_transitions
from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import Domain
from ballast.data.simulated.items import Catalogue, Integers
from ballast.data.simulated.style import DIMENSIONS, Floats, StyleMap
from ballast.errors import BallastError
from ballast.reproducibility import numpy_generator

BLOCK = 1024  # users simulated together: memory is a few arrays of BLOCK x items numbers
END_OF_TIME = 1_719_792_000  # unix seconds of the last possible interaction: 2024-07-01
SECONDS_PER_DAY = 86_400
DAYS_BETWEEN = 22.0  # typical, from one interaction of a user to the next
LENGTH_SPREAD = 1.1  # standard deviation of the log of the length above the least


@dataclass(frozen=True, kw_only=True)
class Histories:
    """N interactions, sorted by user, then time: indices `user` and `item`, `timestamp` (unix seconds,
    strictly rising within a user), `is_noise`, all (N,); and `taste` (users, 8), each user's first taste."""

    user: Integers
    item: Integers
    timestamp: Integers
    is_noise: Booleans
    taste: Floats


def draw_histories(config: ShopConfig, domain: Domain, catalogue: Catalogue, style: StyleMap) -> Histories:
    """Simulate every user's interactions; no user takes an item twice.

    Raises BallastError if too few items are on sale from the first day for the shortest history.
    """
    rng = numpy_generator(config.seed, config.domain, "users")
    model = ChoiceModel(
        config=config, catalogue=catalogue, style=style, transitions=category_transitions(domain)
    )
    lengths = _lengths(config, catalogue, rng)
    days = [_days(config, length, rng) for length in lengths]
    tastes = np.empty((config.users, DIMENSIONS))
    items, noise = [], []
    for start in range(0, config.users, BLOCK):
        block = slice(start, min(start + BLOCK, config.users))
        shoppers = model.new_shoppers(block.stop - start, rng)
        tastes[block] = shoppers.taste
        for history, is_noise in _simulate(model, shoppers, days[block], rng):
            items.append(history)
            noise.append(is_noise)
    return Histories(
        user=np.repeat(np.arange(config.users), lengths),
        item=np.concatenate(items),
        timestamp=np.concatenate([_timestamps(config, each) for each in days]),
        is_noise=np.concatenate(noise),
        taste=tastes,
    )


def _lengths(config: ShopConfig, catalogue: Catalogue, rng: np.random.Generator) -> Integers:
    """(users,) interactions each: log-normal above the least, with a heavy tail."""
    # Half of what is on sale on the first day: nobody may run out of items that are new to them.
    most = min(config.max_length, int((catalogue.launch == 0).sum()) // 2)
    if most < config.min_length:
        raise BallastError(
            f"simulated: min_length {config.min_length} is more than max_length or than half of the items "
            f"on sale from the first day allow ({most}); raise `items` or lower `min_length`"
        )
    centre = np.log(max(config.mean_length - config.min_length + 0.5, 0.5)) - LENGTH_SPREAD**2 / 2
    extra = np.floor(rng.lognormal(centre, LENGTH_SPREAD, size=config.users)).astype(np.int64)
    return np.minimum(config.min_length + extra, most)


def _days(config: ShopConfig, length: int, rng: np.random.Generator) -> Floats:
    """(length,) rising days of one user's interactions within the window."""
    recent = min(config.arrival_days, config.window_days)
    if rng.random() < config.recent_share:
        last = config.window_days - recent * rng.random()
    else:
        last = (config.window_days - recent) * (1.0 - 0.6 * rng.random())
    span = min(last, DAYS_BETWEEN * (length - 1) * rng.lognormal(0.0, 0.4))
    gaps = rng.dirichlet(np.full(length - 1, 1.5))
    before_last = np.append(np.cumsum(gaps[::-1])[::-1], 0.0)
    return np.maximum(last - span * before_last, 0.0)


def _timestamps(config: ShopConfig, days: Floats) -> Integers:
    """Days of one user to unix seconds; a minute an interaction keeps the order strict after rounding."""
    first = END_OF_TIME - config.window_days * SECONDS_PER_DAY
    return np.floor(first + days * SECONDS_PER_DAY).astype(np.int64) + 60 * np.arange(len(days))


def _simulate(
    model: ChoiceModel, shoppers: Shoppers, days: list[Floats], rng: np.random.Generator
) -> list[tuple[Integers, Booleans]]:
    """Items and noise flags of each shopper, in order of time; all take their n-th item together."""
    lengths = np.array([len(each) for each in days])
    items = np.full((len(days), lengths.max()), -1)
    is_noise: Booleans = np.less(rng.random(items.shape), model.config.noise_share)
    for step in range(lengths.max()):
        rows = np.flatnonzero(lengths > step)
        today = np.array([days[row][step] for row in rows])
        stray = is_noise[rows, step]
        chances = np.empty((len(rows), len(model.catalogue)))
        chances[~stray] = model.genuine_chances(shoppers, rows[~stray], today[~stray])
        chances[stray] = model.noise_chances(shoppers, rows[stray], today[stray])
        items[rows, step] = _pick(chances, rng)
        model.record(shoppers, rows, items[rows, step], stray)
        model.drift(shoppers, rows, rng)
    return [(items[row, :length], is_noise[row, :length]) for row, length in enumerate(lengths)]


def _pick(chances: Floats, rng: np.random.Generator) -> Integers:
    """(R,) one index a row, with a chance in proportion to (R, I) `chances`."""
    totals = np.cumsum(chances, axis=1)
    threshold = rng.random(len(chances)) * totals[:, -1]
    return (totals <= threshold[:, None]).sum(axis=1)
