"""ATJT: what is replaced, who judges whom, and which way the weights push."""

from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk

from ballast.data.sequences import Batch, training_batches
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.reproducibility import seed_dropout

HISTORY = torch.tensor([[0, 0, 3, 9, 4], [1, 2, 3, 4, 5], [0, 0, 0, 0, 7]])
TARGET = torch.tensor([8, 6, 2])


def built(info: DatasetInfo, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    model = {"dim": 8, "max_len": 10, "dropout": 0.0, **settings}
    return registry.build("atjt", registry.configure("atjt", model, "model"), info).train()


def batch() -> Batch:
    return next(iter(training_batches(make_store(walk(12)), 12, 10, torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("replacement", ["uniform", "popularity"])
@pytest.mark.parametrize("replaced", [1, 3])
def test_what_is_replaced(replacement: str, replaced: int, toy_info: DatasetInfo) -> None:
    model = built(toy_info, replacement=replacement, replaced=replaced)
    rng, places = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        spoilt = model.spoilt(HISTORY, TARGET, rng)
        changed = spoilt != HISTORY
        assert changed.sum(1).tolist() == [min(replaced, 3), replaced, 1]
        assert not changed[HISTORY == 0].any()
        for row in range(3):
            new = spoilt[row][changed[row]].tolist()
            assert not set(new) & {*HISTORY[row].tolist(), int(TARGET[row])}
            assert all(1 <= item <= ITEMS for item in new)
        places |= {tuple(place) for place in changed.nonzero().tolist()}
    assert len(places) == int((HISTORY != 0).sum())  # every item's turn comes, in each row by itself


def test_a_half_is_judged_by_the_model_trained_on_the_other(toy_info: DatasetInfo) -> None:
    model = built(toy_info)
    users = torch.tensor([2, 4, 6])  # all of half 0
    model._noise_loss(users, HISTORY, TARGET, torch.Generator().manual_seed(0)).backward()
    trained = [
        any(p.grad is not None and p.grad.any() for p in one.parameters()) for one in model.noise_models
    ]
    assert trained == [True, False]
    model.zero_grad()
    model.cleanness(users, HISTORY, TARGET, sees_half=False).sum().backward()
    asked = [any(p.grad is not None and p.grad.any() for p in one.parameters()) for one in model.noise_models]
    assert asked == [False, True]


def test_weights_of_one_are_the_base(toy_info: DatasetInfo) -> None:
    base = registry.configure("next_item", {"dim": 8, "max_len": 10, "dropout": 0.0}, "model")
    seed_dropout(0, "initial weights")
    plain = registry.build("next_item", base, toy_info).train()
    ours = built(toy_info, weighting="none")
    losses = [model.training_step(batch(), torch.Generator())["loss"].item() for model in (plain, ours)]
    assert losses[0] == losses[1]


def test_the_recommender_trains_the_noise_model_unless_detached(toy_info: DatasetInfo) -> None:
    for weighting, is_trained in (("learned", True), ("detached", False)):
        model = built(toy_info, weighting=weighting, kappa=0.0)
        model.training_step(batch(), torch.Generator().manual_seed(0))["loss"].backward()
        found = any(p.grad is not None and bool(p.grad.any()) for p in model.noise_models.parameters())
        assert found == is_trained


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "bce", "gbce"])
def test_losses_of_sequences_are_their_own(loss: str, toy_info: DatasetInfo) -> None:
    model = built(toy_info, weighting="truncated", loss={"name": loss}).double()
    view, table = batch(), model.item_table()
    found = model._sequence_losses(view, table, torch.Generator().manual_seed(3))
    for row in range(len(view.history)):
        alone = (torch.arange(len(view.history)) == row).double()
        expected = model.next_item_loss(view, table, table, torch.Generator().manual_seed(3), alone)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-9)


def test_truncation_leaves_out_the_largest_losses(toy_info: DatasetInfo) -> None:
    model = built(toy_info, weighting="truncated", drop=0.25)
    view, table = batch(), model.item_table()
    losses = model._sequence_losses(view, table, torch.Generator())
    weights = model._fixed_weights(view, table, torch.Generator())
    assert int(weights.sum()) == 9
    assert losses[weights == 0].min() >= losses[weights == 1].max()


def test_learns_to_tell_replaced_items_where_order_tells(toy_info: DatasetInfo) -> None:
    """Histories are runs of neighbours, so that a random item stands out."""
    starts = torch.randint(1, ITEMS - 8, (512,), generator=torch.Generator().manual_seed(0))
    runs = starts[:, None] + torch.arange(7)
    history, target, users = runs[:, :6], runs[:, 6], torch.arange(512)
    model = built(toy_info)
    rng = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.noise_models.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        model._noise_loss(users, history, target, rng).backward()
        optimizer.step()
    with torch.no_grad():
        clean = model.cleanness(users, history, target, sees_half=False)
        noisy = model.cleanness(users, model.spoilt(history, target, rng), target, sees_half=False)
    auc = (clean[:, None] > noisy[None]).float().mean()
    assert auc > 0.8
