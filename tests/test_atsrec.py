"""ATSRec against its definition written out, and its controls."""

from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor

from ballast.data.sequences import Batch, training_batches
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.perturbation import direction, projected, random_direction, sizes
from ballast.reproducibility import seed_dropout

LOSSES = ("cross_entropy", "sampled_softmax", "bce", "gbce")


def built(info: DatasetInfo, method: str = "atsrec", dropout: float = 0.0, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    model = {"dim": 8, "max_len": 10, "dropout": dropout, **settings}
    return registry.build(method, registry.configure(method, model, "model"), info).double().train()


def batch() -> Batch:
    return next(iter(training_batches(make_store(walk(12)), 12, 10, torch.Generator().manual_seed(0))))


def step(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parts of one training step, and the gradients that it leaves."""
    torch.manual_seed(0)
    model.zero_grad()
    parts = model.training_step(batch(), torch.Generator().manual_seed(1))
    parts["loss"].backward()
    return parts, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["table", "row"])
@pytest.mark.parametrize("perturb", ["both", "input", "output"])
def test_gradients_are_those_of_the_naive_algorithm(
    loss: str, norm: str, perturb: str, toy_info: DatasetInfo
) -> None:
    settings = {"loss": {"name": loss}, "norm": norm, "perturb": perturb, "steps": 3, "step_size": 0.3}
    model = built(toy_info, **settings, radius=0.5, weight=0.7)
    parts, gradients = step(model)

    def loss_at(delta: Tensor) -> Tensor:
        table = model.items.weight
        inputs = table if perturb == "output" else table + delta
        outputs = table if perturb == "input" else table + delta
        return model.next_item_loss(batch(), inputs, outputs, torch.Generator().manual_seed(1))

    delta = torch.zeros_like(model.items.weight)
    for _ in range(3):
        delta = delta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_at(delta), delta)
        moved = delta.detach() + 0.3 * direction(gradient, norm)
        delta = projected(moved, 0.5, norm)
    model.zero_grad()
    whole = loss_at(torch.zeros_like(delta)) + 0.7 * loss_at(delta.detach())
    whole.backward()
    assert parts["loss"].item() == pytest.approx(whole.item(), rel=1e-10)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_weight_it_is_the_base_bit_for_bit(loss: str, toy_info: DatasetInfo) -> None:
    base = built(toy_info, "next_item", dropout=0.3, loss={"name": loss})
    ours = built(toy_info, dropout=0.3, loss={"name": loss}, weight=0.0)
    (_, expected), (_, found) = step(base), step(ours)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("attack", ["pgd", "fgm", "fgsm"])
def test_the_attack_raises_the_loss_more_than_a_random_direction(
    loss: str, attack: str, toy_info: DatasetInfo
) -> None:
    """Fails where the sign of the perturbation is wrong, as in two published libraries."""
    settings = {"loss": {"name": loss}, "radius": 0.05, "step_size": 0.02}
    attacked, _ = step(built(toy_info, attack=attack, **settings))
    random, _ = step(built(toy_info, adversary="random", **settings))
    nothing, _ = step(built(toy_info, adversary="none", **settings))
    assert nothing["adversarial"] == nothing["clean"] == attacked["clean"]
    assert attacked["adversarial"] > attacked["clean"]
    assert attacked["adversarial"] > random["adversarial"]


@pytest.mark.parametrize("norm", ["table", "row"])
@pytest.mark.parametrize(
    "settings",
    [
        {"attack": "pgd"},
        {"attack": "fgm"},
        {"attack": "fgsm"},
        {"adversary": "random"},
        {"adversary": "isotropic"},
    ],
)
def test_every_perturbation_is_as_large_as_the_ball(
    norm: Any, settings: dict[str, Any], toy_info: DatasetInfo
) -> None:
    """Signs of a whole table are dozens of times as long as a step of its gradient: equal budgets."""
    model = built(toy_info, norm=norm, radius=0.05, step_size=0.02, **settings)

    def loss_at(delta: Tensor) -> Tensor:
        loss: Tensor = model._loss(batch(), batch(), delta, torch.Generator().manual_seed(1))
        return loss

    delta = torch.zeros_like(model.items.weight, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_at(delta), delta)
    found = model._perturbation(gradient, loss_at, torch.Generator().manual_seed(1))
    assert sizes(found.detach(), norm).max().item() == pytest.approx(0.05, rel=1e-4)


def test_random_perturbations_are_of_the_rows_that_the_attack_moves(toy_info: DatasetInfo) -> None:
    """A direction over the whole table hardly moves the few rows that a batch reads: no control."""
    gradient = torch.zeros(ITEMS + 1, 8, dtype=torch.float64)
    gradient[3], gradient[7] = 1.0, 3.0
    rng = torch.Generator().manual_seed(1)
    found = built(toy_info, adversary="random", radius=0.5)._perturbation(gradient, None, rng)
    assert found.norm(dim=1).nonzero().flatten().tolist() == [3, 7]
    assert (found[7].norm() / found[3].norm()).item() == pytest.approx(3.0)
    across = built(toy_info, adversary="isotropic", radius=0.5)._perturbation(gradient, None, rng)
    assert (across[1:].norm(dim=1) > 0).all()
    assert across[[3, 7]].norm() < 0.5 * found.norm()


def test_the_first_step_agrees_with_finite_differences(toy_info: DatasetInfo) -> None:
    model = built(toy_info)
    table = model.items.weight.detach()
    gradient = model._gradients(model._loss(batch(), batch(), None, torch.Generator()))["items.weight"]
    for row, column in [(1, 0), (7, 3), (ITEMS, 7)]:
        bump = torch.zeros_like(table)
        bump[row, column] = 1e-6
        up, down = (model._loss(batch(), batch(), sign * bump, torch.Generator()) for sign in (1, -1))
        assert gradient[row, column].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-5, abs=1e-9)


def test_free_carries_its_perturbation_within_the_ball(toy_info: DatasetInfo) -> None:
    model = built(toy_info, attack="free", radius=0.5, step_size=0.3)
    lengths = []
    for _ in range(4):
        step(model)
        lengths.append(model.delta.norm().item())
    assert lengths[0] == pytest.approx(0.3)
    assert lengths[-1] == pytest.approx(0.5)
    assert not model.delta[0].any()


def test_draws_of_the_loss_are_those_of_the_base(toy_info: DatasetInfo) -> None:
    """An adversary that shifted the negatives would be compared with a base of other luck."""
    for settings in ({}, {"adversary": "random"}, {"adversary": "isotropic"}, {"attack": "free"}):
        rng, expected = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        built(toy_info, loss={"name": "bce"}, **settings).training_step(batch(), rng)
        built(toy_info, "next_item", loss={"name": "bce"}).training_step(batch(), expected)
        assert torch.equal(rng.get_state(), expected.get_state())


@pytest.mark.parametrize("norm", ["table", "row"])
def test_budgets(norm: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    delta = torch.randn(9, 4, generator=rng)
    assert (sizes(projected(delta, 0.5, norm), norm) <= 0.5 + 1e-6).all()
    small = 0.01 * delta
    assert torch.equal(projected(small, 0.5, norm), small)
    unit = random_direction(delta, norm, rng)
    assert not unit[0].any()
    torch.testing.assert_close(sizes(unit, norm)[-1], torch.ones(1))
    assert not direction(torch.zeros(9, 4), norm).any()
