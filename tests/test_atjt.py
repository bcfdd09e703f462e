"""ATJT: what is replaced, who judges whom, and which way the weights push."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk

from ballast.data.sequences import Batch, training_batches
from ballast.errors import BallastError
from ballast.evaluation.noise import auc
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.params import TrainingParams
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


def test_each_sequence_has_replacements_of_its_own(toy_info: DatasetInfo) -> None:
    """The release draws one place and one item for a whole batch."""
    model = built(toy_info)
    history, target = HISTORY[:1].repeat(40, 1), TARGET[:1].repeat(40)
    spoilt = model.spoilt(history, target, torch.Generator().manual_seed(0))
    rows, columns = (spoilt != history).nonzero(as_tuple=True)
    assert rows.tolist() == list(range(40))
    assert len(columns.unique()) == int((HISTORY[0] != 0).sum())
    assert len(spoilt[rows, columns].unique()) > 10


def test_a_training_step_weighs_a_user_by_the_model_that_never_saw_it(toy_info: DatasetInfo) -> None:
    model = built(toy_info, kappa=0.0)
    given = batch()
    for half in (0, 1):
        model.zero_grad()
        own = replace(given, user_id=given.user_id * 2 + half)
        model.training_step(own, torch.Generator().manual_seed(0))["loss"].backward()
        asked = [
            any(p.grad is not None and p.grad.any() for p in one.parameters()) for one in model.noise_models
        ]
        assert asked == [half == 1, half == 0]


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


def test_its_judges_learn_at_a_rate_of_their_own(toy_info: DatasetInfo) -> None:
    rates = TrainingParams(learning_rate=0.01)
    (optimizer,) = built(toy_info, noise_rate=5.0).optimizers(rates)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]
    sizes = [sum(weight.numel() for weight in group["params"]) for group in optimizer.param_groups]
    model = built(toy_info)
    assert sizes[1] == sum(weight.numel() for weight in model.noise_models.parameters())
    assert sum(sizes) == sum(weight.numel() for weight in model.parameters())


def test_judges_learn_to_see_replaced_items_of_users_that_they_never_met() -> None:
    """Where one half of the users has one half of the items; the guard against judges that never learn."""
    rng = torch.Generator().manual_seed(0)
    drawn = torch.rand(400, ITEMS // 2, generator=rng).argsort(1)[:, :6] + 1  # (U, 6)
    group = torch.arange(400)[:, None] // 2 % 2
    store = make_store((drawn + group * (ITEMS // 2)).tolist())
    model = built(DatasetInfo(400, ITEMS, torch.bincount(store.items, minlength=ITEMS + 1)))
    optimizer = torch.optim.Adam(model.noise_models.parameters(), lr=0.01)
    for epoch in range(80):
        for part in training_batches(store, 64, 10, torch.Generator().manual_seed(epoch)):
            assert part.targets is not None
            optimizer.zero_grad()
            model._noise_loss(part.user_id, part.history, part.targets[:, -1], rng).backward()
            optimizer.step()
    part = next(iter(training_batches(store, 400, 10, rng)))
    assert part.targets is not None
    target = part.targets[:, -1]
    with torch.no_grad():
        original, replaced = (
            model.cleanness(part.user_id, history, target, sees_half=False).numpy()
            for history in (part.history, model.spoilt(part.history, target, rng))
        )
    assert auc(original, replaced) > 0.65


def test_judges_that_give_up_on_everybody_leave_a_loss(toy_info: DatasetInfo) -> None:
    """Without the auxiliary task nothing keeps weights from 0, and 0 / 0 was the end of a run."""
    model = built(toy_info, kappa=0.0)
    for judge in model.noise_models:
        torch.nn.init.constant_(judge.judge[-1].bias, -1e4)
    parts = model.training_step(batch(), torch.Generator().manual_seed(0))
    parts["loss"].backward()
    assert parts["next_item"].isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("wrong", [{"noise_rate": 0.0}, {"replaced": 0}, {"drop": 1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], toy_info: DatasetInfo) -> None:
    with pytest.raises(BallastError, match=next(iter(wrong))):
        built(toy_info, **wrong)
