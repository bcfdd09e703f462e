"""One method under every condition: rows, shared clean ranks, and the items that are pushed."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import ITEMS, make_store, walk

from ballast.evaluation.ranking import rank_targets
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.reproducibility import seed_dropout
from ballast.robustness import attacks
from ballast.robustness.checks import check_outcomes
from ballast.robustness.corruption import corrupt
from ballast.robustness.suite import Subject, pushed_items, surfaces_for

USERS = 30


@pytest.fixture(scope="module")
def subject(toy_info: DatasetInfo) -> Subject:
    seed_dropout(0, "initial weights")
    settings = {"dim": 16, "max_len": 5, "modalities": ["text"]}
    model: Any = registry.build(
        "sasrec_features", registry.configure("sasrec_features", settings, "m"), toy_info
    )
    model.surfaces = {"items": "items.weight", "text": "features_text"}
    histories = walk(USERS, seed=1)
    targets = torch.tensor([history[-1] for history in histories])
    return Subject(model.eval(), make_store([history[:-1] for history in histories]), targets, ITEMS)


def attack(**settings: Any) -> attacks.Attack:
    return attacks.build({"name": "fgm", "surface": "items", **settings}, "attack")


def test_answers_have_a_row_a_user_and_share_their_clean_ranks(subject: Subject) -> None:
    noise = corrupt(subject.clean, "replace", 0.3, 0, ITEMS, subject.targets)
    clean = rank_targets(subject.method, subject.clean, subject.targets).rank.numpy()
    answers = [subject.corrupted(noise), subject.without("text", 0.5, 0), subject.attacked(attack(), 0.3, 0)]
    for answer in answers:
        assert np.array_equal(answer.user_id, subject.clean.user_ids.numpy())
        assert np.array_equal(answer.clean_rank, clean)
        assert all(len(part) == USERS for part in (answer.rank, answer.size, answer.truncated, answer.rbo))
        assert not np.array_equal(answer.rank, clean)
    assert answers[0].truncated.any()
    assert answers[2].size == pytest.approx(0.3)
    assert answers[0].outcome is None
    assert answers[2].outcome is not None
    untouched = subject.attacked(attack(), 0.0, 0)
    assert np.array_equal(untouched.rank, clean)
    assert (untouched.rbo == 1).all()


def test_a_pushed_item_is_ranked_among_those_who_have_not_met_it(subject: Subject) -> None:
    push = attack(goal="promote")
    answer = subject.attacked(push, 2.0, 0, item=7)
    new = [u for u, h in enumerate(walk(USERS, seed=1), start=1) if 7 not in h]
    assert answer.user_id.tolist() == new
    everyone = rank_targets(subject.method, subject.clean, torch.full((USERS,), 7)).rank.numpy()
    assert np.array_equal(answer.clean_rank, everyone[np.array(new) - 1])
    assert answer.rank.mean() < answer.clean_rank.mean()


def test_outcomes_of_one_ball_are_compared(subject: Subject) -> None:
    answers = [subject.attacked(attack(name=name), 0.3, 0) for name in ("random", "fgm", "pgd")]
    outcomes = [answer.outcome for answer in answers if answer.outcome]
    clean = subject.untouched(attack())
    assert len({outcome.group for outcome in [*outcomes, clean]}) == 1
    assert clean.gains.mean() < outcomes[1].gains.mean() <= outcomes[2].gains.mean() + 1e-9
    assert [f for f in check_outcomes([clean, *outcomes]) if f.name != "more steps still gain"] == []
    assert subject.surface_flags(attack(), 0.1, 0) == []


def test_pushed_items_are_of_all_popularities_and_the_same_for_everybody() -> None:
    counts = torch.arange(301)
    chosen = pushed_items(counts, 4, 0)
    assert chosen == pushed_items(counts, 4, 0) != pushed_items(counts, 4, 1)
    assert [(item - 1) // 100 for item in chosen] == [0, 1, 2, 0]
    assert len(set(chosen)) == 4
    assert pushed_items(counts, 2, 0) == chosen[:2]


def test_surfaces_are_those_asked_for(subject: Subject) -> None:
    assert surfaces_for(subject.method, []) == ["items", "text"]
    assert surfaces_for(subject.method, ["text", "image"]) == ["text"]
