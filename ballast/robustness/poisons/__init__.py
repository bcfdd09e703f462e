"""Poisoning: fake users in training, so that a victim trained with them shows chosen items to real users.

One file an attack, whose class is named `Poisoner`: it says what a fake user did before it met the item that
is pushed. What is the same for all: how many there are, which items are pushed, that each fake user pushes
one of them, all about equally often, and that it is the last item of that user. The attacker knows the
training interactions, as in the strongest setting of the literature (survey: Nguyen et al., Manipulating
Recommender Systems, ACM Computing Surveys 2024), and nothing of the victim.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ballast.data.preparation import Prepared
from ballast.errors import BallastError
from ballast.params import PoisonParams
from ballast.reproducibility import numpy_generator
from ballast.strict import Strict, parse_named

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What the attacker knows. sequences: real users' training items, oldest first; counts: (I,) training
    interactions an item, entry 0 is 0."""

    sequences: Sequence[Integers]
    counts: Integers


class Poisoner:
    """Base of the attacks: a file's subclass is named `Poisoner` and defines `histories`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        name: str

    def __init__(self, config: Any) -> None:
        self.config = config

    def histories(self, known: Known, pushed: Integers, rng: np.random.Generator) -> list[Integers]:
        """For each of the N fake users, items before the one it pushes (N,): any but that one."""
        raise NotImplementedError


def known_poisoners() -> list[str]:
    """Names of the attacks: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def configure(settings: dict[str, Any], where: str) -> tuple[type[Poisoner], Any]:
    """The attack named by `settings["name"]` and its settings; raises BallastError on an unknown one."""
    return parse_named(settings, known_poisoners(), _find, "poisoning attack", where)


def _find(name: str) -> type[Poisoner]:
    kind: type[Poisoner] = importlib.import_module(f"{__name__}.{name}").Poisoner
    return kind


def pushed_items(counts: Integers, number: int, seed: int, where: str) -> Integers:
    """(number,) items to push, drawn among the rarer half of those that are in training."""
    trained = np.flatnonzero(counts)
    rare = trained[counts[trained] <= np.median(counts[trained])]
    if len(rare) < number:
        raise BallastError(
            f"{where}.pushed: {number} items to push, and only {len(rare)} rare ones are in training"
        )
    return np.sort(numpy_generator(seed, "pushed items").permutation(rare)[:number])


def poison(prepared: Prepared, params: PoisonParams, where: str) -> Prepared:
    """`prepared` with round(share * U) fake users after its own, each with training interactions alone.

    A share of 0 is the control: the same items are watched, and nobody pushes them. A larger share has the
    fake users of a smaller one. Raises BallastError, naming the dataset by `where`, where settings are wrong.
    """
    kind, config = configure(params.attack, f"{where}.attack")
    interactions, items, users = prepared.interactions, prepared.items, prepared.users
    counts = np.concatenate([[0], items["n_train"].to_numpy(np.int64)])
    items_pushed = pushed_items(counts, params.pushed, params.seed, where)
    number = round(params.share * len(users))
    if params.share > 0 and number < params.pushed:
        raise BallastError(
            f"{where}: a share of {params.share:g} makes {number} fake users, too few to push "
            f"{params.pushed} items; raise share or lower pushed"
        )
    fakes: list[Integers] = []
    if number:
        train = interactions[interactions["split"] == "train"]
        sequences = [own.to_numpy(np.int64) for _, own in train.groupby("user_id", sort=True)["item_id"]]
        pushed = np.resize(items_pushed, number)
        rng = numpy_generator(params.seed, "fake users")
        before = kind(config).histories(Known(sequences, counts), pushed, rng)
        fakes = [np.append(history, item) for history, item in zip(before, pushed, strict=True)]
    table = pd.concat([interactions, _rows(fakes, interactions, len(users))], ignore_index=True)
    added = np.bincount(np.concatenate([*fakes, [0]]), minlength=len(counts))[1:]
    names = [f"fake-{config.name}-{params.seed}-{n}" for n in range(1, number + 1)]
    numbers = np.arange(len(users) + 1, len(users) + number + 1, dtype=np.int32)
    return replace(
        prepared,
        interactions=table,
        items=items.assign(n_train=(items["n_train"] + added).astype(np.int32)),
        users=pd.concat([users, pd.DataFrame({"user_id": numbers, "raw_user_id": names})], ignore_index=True),
        stats={**prepared.stats, "fake_users": number, "pushed_items": items_pushed.tolist()},
    )


def _rows(fakes: list[Integers], like: pd.DataFrame, users: int) -> pd.DataFrame:
    """Training interactions of the fake users, numbered after the real ones."""
    lengths = np.array([len(items) for items in fakes], dtype=np.int64)
    knows_noise = bool(like["is_noise"].notna().all())
    frame = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users + 1, users + 1 + len(fakes)), lengths),
            "item_id": np.concatenate([*fakes, np.zeros(0, np.int64)]),
            "position": np.concatenate([*(np.arange(n) for n in lengths), np.zeros(0, np.int64)]),
            "timestamp": pd.NA,
            "split": "train",
            "is_noise": True if knows_noise else pd.NA,
        }
    )
    return frame.astype(like.dtypes.to_dict())
