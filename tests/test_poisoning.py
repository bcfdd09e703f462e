"""Fake users: how many, what they push, what each attack makes of them, and who is shown it."""

from collections.abc import Sequence

import evaluate
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ITEMS, make_store, walk
from test_splits import params, random_frame, raw

from ballast.data.preparation import Prepared, prepare
from ballast.errors import BallastError
from ballast.models.methods.next_item import NextItem
from ballast.params import PoisonParams
from ballast.robustness import poisons
from ballast.robustness.poisons import Known, poison, pushed_items
from ballast.robustness.poisons.gradient import Poisoner as GradientMatching
from ballast.robustness.poisons.gradient import _gradient, _match, _matched, _store

NAMES = ("random", "bandwagon", "injection", "gradient")
CLEAN = prepare("d", raw(random_frame(0)), params())
QUICK = {"gradient": {"dim": 8, "epochs": 2, "exchanges": 2, "max_len": 8}}


def poisoned(name: str, share: float, **changes: int) -> Prepared:
    attack = {"name": name, **QUICK.get(name, {})}
    return poison(CLEAN, PoisonParams(attack=attack, share=share, **changes), "params.yaml: d.poison")


def fakes(prepared: Prepared) -> list[list[int]]:
    rows = prepared.interactions[prepared.interactions["user_id"] > CLEAN.stats["users"]]
    assert set(rows["split"]) <= {"train"}
    return [list(own) for _, own in rows.groupby("user_id")["item_id"]]


@pytest.mark.parametrize("name", poisons.known_poisoners())
def test_fake_users_come_after_the_real_ones_and_push_one_item_each(name: str) -> None:
    made = poisoned(name, 0.2, pushed=3)
    users = CLEAN.stats["users"]
    pd.testing.assert_frame_equal(made.interactions.iloc[: len(CLEAN.interactions)], CLEAN.interactions)
    found = fakes(made)
    assert len(found) == round(0.2 * users) == made.stats["fake_users"]
    assert len(made.users) == users + len(found)
    pushed = made.stats["pushed_items"]
    assert [history[-1] for history in found] == np.resize(pushed, len(found)).tolist()
    assert all(len(history) > 1 and history[-1] not in history[:-1] for history in found)
    assert all(len(set(history)) == len(history) for history in found)
    train = made.interactions[made.interactions["split"] == "train"]
    counts = train["item_id"].value_counts().reindex(made.items["item_id"], fill_value=0)
    assert list(made.items["n_train"]) == list(counts)


@pytest.mark.parametrize("name", NAMES)
def test_more_fake_users_have_those_of_fewer(name: str) -> None:
    few, many = (fakes(poisoned(name, share, pushed=2)) for share in (0.05, 0.1))
    assert many[: len(few)] == few
    assert fakes(poisoned(name, 0.1, pushed=2)) == many
    assert fakes(poisoned(name, 0.1, pushed=2, seed=1)) != many


def test_a_share_of_zero_is_the_clean_data_with_the_same_items_watched() -> None:
    control = poisoned("random", 0.0)
    pd.testing.assert_frame_equal(control.interactions, CLEAN.interactions)
    pd.testing.assert_frame_equal(control.items, CLEAN.items)
    assert {tuple(poisoned(name, share).stats["pushed_items"]) for name in NAMES for share in (0.0, 0.1)} == {
        tuple(control.stats["pushed_items"])
    }


def test_what_is_pushed_is_rare_and_in_training() -> None:
    counts = np.array([0, 5, 0, 1, 9, 2, 2, 7])
    assert set(pushed_items(counts, 3, 0, "x")) == {3, 5, 6}
    with pytest.raises(BallastError, match=r"d.poison.pushed: 4 items to push, and only 3 rare ones"):
        pushed_items(counts, 4, 0, "params.yaml: d.poison")


def test_too_few_fake_users_to_push_all_are_refused() -> None:
    with pytest.raises(
        BallastError, match=r"d.poison: a share of 0.02 makes 1 fake users, too few to push 5 items"
    ):
        poisoned("random", 0.02)


def test_an_unknown_attack_is_named() -> None:
    with pytest.raises(
        BallastError, match=r"d.poison.attack: unknown poisoning attack 'evil'; known: bandwagon"
    ):
        poisoned("evil", 0.1)


def known(histories: Sequence[Sequence[int]], items: int = ITEMS) -> Known:
    sequences = [np.array(history) for history in histories]
    return Known(sequences, np.bincount(np.concatenate(sequences), minlength=items + 1))


def made(name: str, data: Known, pushed: Sequence[int], **settings: object) -> list[np.ndarray]:
    kind, config = poisons.configure({"name": name, **settings}, "test")
    return kind(config).histories(data, np.array(pushed), np.random.default_rng(0))


def test_random_is_even_and_bandwagon_follows_popularity() -> None:
    data = known([[1, 2, 3, 4], [1, 2, 3], [1, 2, 5, 6, 7]] * 20)
    drawn = {name: np.concatenate(made(name, data, [9] * 400)) for name in ("random", "bandwagon")}
    assert np.isin([1, 2], drawn["bandwagon"]).all()
    share = {name: np.isin(items, [1, 2]).mean() for name, items in drawn.items()}
    assert share["bandwagon"] > 0.4 > 0.1 > share["random"]
    assert set(drawn["bandwagon"]) <= {1, 2, 3, 4, 5, 6, 7}
    assert len(set(drawn["random"])) == ITEMS - 1  # every item but the pushed one


def test_injection_copies_real_users_without_the_pushed_item() -> None:
    histories = walk(30)
    pushed = histories[0][1]
    copied = [([item for item in history if item != pushed], len(history)) for history in histories]
    expected = {tuple(items[-(length - 1) :]) for items, length in copied}
    assert {tuple(history) for history in made("injection", known(histories), [pushed] * 200)} == expected
    with pytest.raises(BallastError, match="no user has met anything but item 4"):
        made("injection", known([[4], [4]]), [4])


@pytest.mark.parametrize("name", ["random", "bandwagon", "injection", "gradient"])
def test_fake_users_are_as_long_as_real_ones(name: str) -> None:
    """Attacks of equally many users would differ in interactions, and be compared by that."""
    settings = {"dim": 8, "epochs": 1, "exchanges": 1} if name == "gradient" else {}
    before = made(name, known([[1, 2, 3, 4, 5, 6]] * 20), [9] * 10, **settings)
    assert {len(history) + 1 for history in before} == {6}


def surrogate() -> tuple[GradientMatching, NextItem, Known]:
    kind, config = poisons.configure({"name": "gradient", "dim": 8, "epochs": 8, "max_len": 12}, "test")
    attack, data = kind(config), known(walk(120))
    assert isinstance(attack, GradientMatching)
    return attack, attack._surrogate(data, _store(data), 0), data


def test_the_match_is_the_cosine_of_two_gradients_and_its_change_their_derivative() -> None:
    attack, model, data = surrogate()
    model.double()
    wanted = attack._wanted(model, _store(data), 7, 0)
    rows = _store(data).histories(torch.arange(120), 12)
    logits = model.query(rows, model.item_table()) @ model.item_table().T
    logits[:, 0] = -torch.inf  # padding does not compete
    loss = -logits.log_softmax(1)[:, 7].mean()
    torch.testing.assert_close(wanted, torch.nn.functional.normalize(_gradient(loss, model), dim=0))
    items = torch.tensor([3, 4, 5, 9])
    match, change = _match(model, items, 7, wanted)
    assert _towards(model, items, 0, 3, 0.0, 7, wanted) == pytest.approx(match)
    assert change.gather(1, items[:, None]).abs().max() < 1e-12  # an item in place of itself
    # A little of the way from the item at a place to another: as input, and as target of the place before.
    for place, item in [(0, 20), (1, 20), (3, 31)]:
        ends = [_towards(model, items, place, item, sign * 1e-5, 7, wanted) for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(change[place, item]), rel=1e-4)


def _towards(
    model: NextItem, items: torch.Tensor, place: int, item: int, way: float, pushed: int, wanted: torch.Tensor
) -> float:
    """The match, gradients taken afresh, where the item at `place` is by `way` another one."""
    table = model.item_table()
    step = torch.zeros(len(items), table.shape[1], dtype=table.dtype)
    step[place] = way * (table[item] - table[items[place]]).detach()
    states = model.encode(
        (len(table) + torch.arange(len(items)))[None], torch.cat([table, table[items] + step])
    )
    targets = torch.nn.functional.one_hot(torch.cat([items[1:], torch.tensor([pushed])]), len(table)).double()
    if place:
        targets[place - 1, items[place]] -= way
        targets[place - 1, item] += way
    loss = -(targets[:, 1:] * (states[0] @ table[1:].T).log_softmax(1)).sum(1).mean()
    return float(torch.nn.functional.cosine_similarity(_gradient(loss, model), wanted, dim=0).detach())


def test_exchanges_raise_the_match_and_no_more_than_allowed() -> None:
    attack, model, data = surrogate()
    wanted = attack._wanted(model, _store(data), 7, 0)
    gains = []
    for history in data.sequences[:10]:
        start = history[history != 7][:6]
        end = _matched(model, start, 7, wanted, exchanges=3)
        assert len(end) == len(start)
        assert (end != start).sum() <= 3
        before, after = (_match(model, torch.from_numpy(items), 7, wanted)[0] for items in (start, end))
        assert after >= before
        gains.append(after - before)
    assert np.mean(gains) > 0.01


def test_exposure_counts_users_to_whom_the_item_is_new() -> None:
    store = make_store([[1, 2], [3], [4, 9]])
    top10 = np.array([[9, 5], [5, 6], [7, 5]])
    # Item 9: new to the first two, shown to the first. Item 5: new to all, shown to all. Item 8: to none.
    assert evaluate._exposure(top10, store, [9, 5, 8]) == pytest.approx((1 / 2 + 1 + 0) / 3)
