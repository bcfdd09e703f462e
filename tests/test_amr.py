"""AMR's adversary against its definition, its controls, and the plumbing against cornac's frozen figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor

from ballast.data.sequences import Batch, training_batches
from ballast.models import registry, training
from ballast.models.method import DatasetInfo
from ballast.models.methods.amr import Amr, loss_gradient
from ballast.models.pairwise import ContentPairwiseMethod, Pairs, bpr_loss, draw_pairs
from ballast.models.training import Validation
from ballast.params import TrainingParams
from ballast.reproducibility import seed_dropout

MODALITIES = (["image"], ["image", "text", "price"])


def built(info: DatasetInfo, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    model = {"dim": 4, "init_scale": 0.5, **settings}
    return registry.build("amr", registry.configure("amr", model, "model"), info).double()


def batch(seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return next(iter(training_batches(make_store(walk(12, seed)), 12, 1000, rng)))


def drawn(seed: int = 0) -> Pairs:
    return draw_pairs(batch(seed), ITEMS, torch.Generator().manual_seed(seed))


def loss_at(model: Any, pairs: Pairs, deltas: dict[str, Tensor]) -> Tensor:
    """() the BPR loss where `deltas` (I, F) are added to the features, by way of the features themselves."""
    moved = {name: getattr(model, f"features_{name}") + delta for name, delta in deltas.items()}
    vectors = model.items.weight + sum(moved[name] @ model.projections[name].T for name in moved)  # (I, D)
    user = model.users.weight[pairs.user_id[pairs.owner]]
    apart = vectors[pairs.items[pairs.positive]] - vectors[pairs.items[pairs.negative]]
    return bpr_loss((user * apart).sum(1))


def nothing(model: Any) -> dict[str, Tensor]:
    return {name: torch.zeros_like(getattr(model, f"features_{name}")) for name in model.config.modalities}


def attack(model: Any, pairs: Pairs) -> dict[str, Tensor]:
    """(I, F) Delta of each modality as the method makes it."""
    user, items, bias = model._vectors(pairs)
    difference = model._difference(user, items, bias, pairs)
    gradient = loss_gradient(difference.detach(), user.detach(), pairs)
    deltas = nothing(model)
    for name, delta in deltas.items():
        delta[pairs.items] = model.perturbation(gradient, pairs.items, name)
    return deltas


def step(model: Any, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parts of one training step, and the gradients that it leaves."""
    model.zero_grad()
    parts = model.training_step(batch(), torch.Generator().manual_seed(seed))
    parts["loss"].backward()
    return parts, {name: weight.grad.clone() for name, weight in model.named_parameters()}


# The perturbation


@pytest.mark.parametrize("modalities", MODALITIES)
def test_delta_is_that_of_central_finite_differences(modalities: list[str], toy_info: DatasetInfo) -> None:
    model = built(toy_info, modalities=modalities, radius=0.3)
    pairs, bump = drawn(), 1e-4
    deltas = attack(model, pairs)
    both = set(pairs.positive.tolist()) & set(pairs.negative.tolist())
    chosen = pairs.items[sorted(both)].tolist()[:3]  # these occur on both sides
    assert chosen
    with torch.no_grad():
        for name in modalities:
            for item in chosen:
                slopes = []
                for column in range(deltas[name].shape[1]):
                    up, down = nothing(model), nothing(model)
                    up[name][item, column], down[name][item, column] = bump, -bump
                    slopes.append((loss_at(model, pairs, up) - loss_at(model, pairs, down)) / (2 * bump))
                gamma = torch.stack(slopes)
                present = bool(getattr(model, f"present_{name}")[item])
                expected = 0.3 * gamma / gamma.norm() * present
                torch.testing.assert_close(deltas[name][item], expected, rtol=1e-5, atol=1e-8)


def test_gradients_of_all_occurrences_are_added_up(toy_info: DatasetInfo) -> None:
    """Item 1 is once preferred and twice not: its pulls partly cancel, and none is lost."""
    model = built(toy_info)
    ids = torch.tensor([1, 2, 3])
    pairs = Pairs(
        torch.tensor([4, 5]),
        torch.tensor([0, 1, 1]),
        ids,
        torch.tensor([0, 1, 2]),
        torch.tensor([1, 0, 0]),
    )
    user, items, bias = model._vectors(pairs)
    items = items.detach().requires_grad_()
    difference = model._difference(user, items, bias, pairs)
    (expected,) = torch.autograd.grad(torch.nn.functional.softplus(-difference).sum(), items)
    found = loss_gradient(difference.detach(), user.detach(), pairs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    pull = torch.sigmoid(-difference)[:, None] * user
    torch.testing.assert_close(found[0], -pull[0] + pull[1] + pull[2], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("modalities", MODALITIES)
def test_size_is_the_radius_where_there_is_a_gradient_and_a_feature(
    modalities: list[str], toy_info: DatasetInfo
) -> None:
    model = built(toy_info, modalities=modalities, radius=0.2)
    pairs = drawn()
    deltas = attack(model, pairs)
    for name in modalities:
        norms = deltas[name].norm(dim=1)
        missing = toy_info.missing[name]
        is_moved = torch.zeros(ITEMS + 1, dtype=torch.bool)
        is_moved[pairs.items[torch.cat([pairs.positive, pairs.negative])]] = True
        assert (norms <= 0.2 * (1 + 1e-12)).all()
        torch.testing.assert_close(
            norms[is_moved & ~missing], torch.full_like(norms, 0.2)[is_moved & ~missing]
        )
        assert not deltas[name][~is_moved].any()  # no gradient
        assert not deltas[name][missing].any()  # no feature
        assert (is_moved & missing)[1:].any()


def test_no_gradient_is_no_perturbation(toy_info: DatasetInfo) -> None:
    model = built(toy_info)
    with torch.no_grad():
        model.users.weight.zero_()
    assert not any(delta.any() for delta in attack(model, drawn()).values())
    assert torch.isfinite(step(model)[0]["loss"])


def test_float32_keeps_the_radius(toy_info: DatasetInfo) -> None:
    model = built(toy_info, radius=0.1, init_scale=0.01).float()
    norms = attack(model, drawn())["image"].norm(dim=1)
    assert norms.max().item() == pytest.approx(0.1, rel=1e-5)


# The attack


@pytest.mark.parametrize("modalities", MODALITIES)
def test_the_loss_rises_and_more_than_in_a_random_direction(
    modalities: list[str], toy_info: DatasetInfo
) -> None:
    """Fails where the sign of the perturbation is wrong, as in a published library."""
    attacked = built(toy_info, modalities=modalities)
    random = built(toy_info, modalities=modalities, adversary="random")
    gains, by_chance, reversed_gains = [], [], []
    for seed in range(20):
        pairs, rng = drawn(seed), torch.Generator().manual_seed(seed)
        parts, control = attacked.pair_loss(pairs, rng), random.pair_loss(pairs, rng)
        assert parts["clean"] == control["clean"]
        gains.append((parts["adversarial"] - parts["clean"]).item())
        by_chance.append((control["adversarial"] - control["clean"]).item())
        deltas = attack(attacked, pairs)
        assert loss_at(attacked, pairs, deltas).item() == pytest.approx(
            parts["adversarial"].item(), rel=1e-10
        )
        turned = {name: -delta for name, delta in deltas.items()}
        reversed_gains.append((loss_at(attacked, pairs, turned) - parts["clean"]).item())
    assert min(gains) > 0
    assert max(reversed_gains) < 0
    assert sum(gains) > 10 * sum(map(abs, by_chance))


def test_random_perturbations_have_the_radius_and_spare_what_is_missing(toy_info: DatasetInfo) -> None:
    model = built(toy_info, adversary="random", radius=0.2, dim=6)
    with torch.no_grad():
        model.projections["image"].copy_(torch.eye(6))  # the shift is the perturbation itself
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    norms = model._random_shift(torch.arange(ITEMS + 1), rng).norm(dim=1)
    assert torch.equal(rng.get_state(), before)  # negatives are drawn as without an adversary
    missing = toy_info.missing["image"]
    assert not norms[missing].any()
    torch.testing.assert_close(norms[~missing], torch.full_like(norms, 0.2)[~missing])


@pytest.mark.parametrize("modalities", MODALITIES)
@pytest.mark.parametrize("adversary", ["gradient", "none"])
def test_gradients_are_those_of_the_naive_algorithm(
    adversary: str, modalities: list[str], toy_info: DatasetInfo
) -> None:
    settings = {"user_penalty": 0.3, "item_penalty": 0.2, "weight": 0.7, "adversary": adversary}
    model = built(toy_info, modalities=modalities, **settings)
    parts, gradients = step(model)
    pairs = draw_pairs(batch(), ITEMS, torch.Generator().manual_seed(1))
    start = {name: delta.requires_grad_() for name, delta in nothing(model).items()}
    found = torch.autograd.grad(loss_at(model, pairs, start), list(start.values()))
    deltas = {}
    for (name, zero), gamma in zip(start.items(), found, strict=True):
        length = gamma.norm(dim=1, keepdim=True)
        present = getattr(model, f"present_{name}")[:, None]
        size = 0.1 * (present & (length > 0)).double() if adversary == "gradient" else 0.0
        deltas[name] = zero.detach() + size * gamma / length.clamp(min=1e-300)
    user = model.users.weight[pairs.user_id[pairs.owner]]
    vectors = model.item_table()
    squares = [vectors[pairs.items[side]].square().sum() for side in (pairs.positive, pairs.negative)]
    penalty = (0.3 * user.square().sum() + 0.2 * sum(squares)) / len(pairs.owner)
    model.zero_grad()
    whole = loss_at(model, pairs, nothing(model)) + 0.7 * loss_at(model, pairs, deltas) + penalty
    whole.backward()
    assert parts["loss"].item() == pytest.approx(whole.item(), rel=1e-10)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-12, rtol=1e-8)


# Without adversary


def test_without_weight_it_is_the_base_bit_for_bit(toy_info: DatasetInfo) -> None:
    ours = built(toy_info, weight=0.0)
    parts, found = step(ours)
    ours.zero_grad()
    pairs = draw_pairs(batch(), ITEMS, torch.Generator().manual_seed(1))
    base = ContentPairwiseMethod.pair_loss(ours, pairs, torch.Generator())
    base["loss"].backward()
    assert torch.equal(parts["loss"], base["loss"])
    assert all(torch.equal(found[name], weight.grad) for name, weight in ours.named_parameters())


def test_draws_are_those_of_the_base(toy_info: DatasetInfo) -> None:
    """An adversary that shifted the negatives would be compared with a base of other luck."""
    states = []
    for settings in ({"weight": 0.0}, {}, {"adversary": "random"}, {"adversary": "none"}):
        rng = torch.Generator().manual_seed(1)
        built(toy_info, **settings).training_step(batch(), rng)
        states.append(rng.get_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_warm_steps_are_those_of_the_base(toy_info: DatasetInfo) -> None:
    base, adversarial = (step(built(toy_info, weight=weight))[1] for weight in (0.0, 1.0))
    model = built(toy_info, warm_steps=2)
    for _ in range(2):
        assert model.warm_left > 0
        parts, gradients = step(model)
        assert "adversarial" not in parts
        assert all(torch.equal(gradients[name], base[name]) for name in base)
    assert model.state_dict()["warm_left"] == 0  # kept with the weights, so that a resumed run goes on
    parts, gradients = step(model)
    assert "adversarial" in parts
    assert all(torch.equal(gradients[name], adversarial[name]) for name in base)


def test_phases_switch_the_adversary_on(toy_info: DatasetInfo) -> None:
    assert built(toy_info).phases == ("adversarial",)
    model = built(toy_info, has_base_phase=True)
    assert model.phases == ("base", "adversarial")
    assert "adversarial" in step(model)[0]  # a loop that knows no phases has the adversary from the start
    model.enter("base")
    for _ in range(3):
        assert "adversarial" not in step(model)[0]
    restored = built(toy_info, has_base_phase=True)
    restored.load_state_dict(model.state_dict())
    assert "adversarial" not in step(restored)[0]
    model.enter("adversarial")
    assert "adversarial" in step(model)[0]


# The optimiser


def test_adagrad_has_the_papers_rates(toy_info: DatasetInfo) -> None:
    model = built(toy_info, has_bias=True)
    (optimizer,) = model.optimizers(TrainingParams(learning_rate=0.01))
    assert isinstance(optimizer, torch.optim.Adagrad)
    rates = {id(part): group["lr"] for group in optimizer.param_groups for part in group["params"]}
    assert rates[id(model.users.weight)] == pytest.approx(1e-2)
    assert rates[id(model.items.weight)] == rates[id(model.bias)] == pytest.approx(1e-4)
    assert rates[id(model.projections["image"])] == pytest.approx(1e-3)
    assert len(rates) == len(list(model.parameters()))


def test_adagrad_on_means_steps_as_the_papers_on_sums(toy_info: DatasetInfo) -> None:
    """Over a batch of 512 triples: the mean with a start of 0.1 / 512^2 is the sum with one of 0.1."""
    rng = torch.Generator().manual_seed(0)
    own = torch.randint(1, ITEMS + 1, (512,), generator=rng)
    owner = torch.randint(0, 60, (512,), generator=rng)
    pairs = Pairs(torch.arange(1, 61), owner, torch.arange(ITEMS + 1), own, own % ITEMS + 1)
    ours, theirs = built(toy_info), built(toy_info)
    (optimizer,) = ours.optimizers(TrainingParams(learning_rate=0.01))
    groups = [
        {"params": [theirs.users.weight], "lr": 1e-2},
        {"params": [theirs.items.weight], "lr": 1e-4},
        {"params": list(theirs.projections.parameters()), "lr": 1e-3},
    ]
    reference = torch.optim.Adagrad(groups, initial_accumulator_value=0.1, eps=0)
    for _ in range(3):
        for model, stepper, scale in ((ours, optimizer, 1), (theirs, reference, 512)):
            stepper.zero_grad()
            (model.pair_loss(pairs, torch.Generator())["loss"] * scale).backward()
            stepper.step()
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight, theirs.get_parameter(name), atol=1e-8, rtol=1e-6)


# Frozen triples of cornac


class CornacAmr(Amr):
    """Cornac's update: each occurrence is moved up the gradient of its own log-likelihood, whatever its size.

    That makes the loss fall. It is here to prove what surrounds the adversary, not the adversary.
    """

    def attacked(self, difference: Tensor, user: Tensor, pairs: Pairs, rng: torch.Generator) -> Tensor:
        pull = torch.sigmoid(-difference.detach())[:, None] * user.detach()  # (n, D)
        projection = self.projections["image"]
        shift = pull @ (projection.detach() @ projection.T)  # the negative's is its opposite
        return difference + 2 * (user * shift).sum(1)

    def penalty(self, user: Tensor, items: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        return super().penalty(user, self.items.weight.index_select(0, pairs.items), bias, pairs)


def test_frozen_triples_of_cornac_give_its_parameters() -> None:
    record = json.loads((Path(__file__).parent / "fixtures" / "cornac_amr.json").read_text())
    settings = record["settings"]
    features = torch.tensor(record["features"])  # (I - 1, F), the largest is 1
    start, end = (
        {name: torch.tensor(value) for name, value in record[when].items()} for when in ("start", "end")
    )
    items = len(features)
    vectors, missing = torch.cat([torch.zeros_like(features[:1]), features]), torch.arange(items + 1) == 0
    info = DatasetInfo(len(start["Gu"]), items, torch.ones(items + 1), {"image": vectors}, {"image": missing})
    config = registry.configure(
        "amr", {"dim": start["E"].shape[1], "weight": settings["lambda_adv"]}, "model"
    )
    penalties = {
        "user_penalty": settings["lambda_w"] / 2,
        "item_penalty": settings["lambda_w"] / 2,
    }
    model = CornacAmr(dataclasses.replace(config, **penalties), info)
    with torch.no_grad():
        model.users.weight[1:] = start["Gu"]
        model.items.weight[1:] = start["Gi"][:items]
        model.projections["image"].copy_(start["E"].T)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    for users, positive, negative in record["batches"]:
        count = len(users)
        sides = (torch.tensor(side) + 1 for side in (positive, negative))
        pairs = Pairs(torch.tensor(users) + 1, torch.arange(count), torch.arange(items + 1), *sides)
        # cornac adds up a batch's losses, and its penalty on E is not one of the triples.
        loss = count * model.pair_loss(pairs, torch.Generator())["loss"]
        loss = loss + settings["lambda_e"] / 2 * model.projections["image"].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {"Gu": model.users.weight[1:], "Gi": model.items.weight[1:], "E": model.projections["image"].T}
    for name, value in found.items():
        expected = end[name][: len(value)]
        torch.testing.assert_close(value.detach(), expected, atol=1e-6, rtol=0)
        assert (value - start[name][: len(value)]).abs().max() > 0.05  # it went somewhere


def test_the_adversary_starts_from_the_trained_base(
    toy_info: DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each phase stops early by itself, and the state that is kept is never one from before the adversary."""
    model = {"dim": 4, "has_base_phase": True, "user_penalty": 0.0}
    settings = TrainingParams(batch_size=16, learning_rate=0.1, max_epochs=3)
    seed_dropout(0, "initial weights")
    method = registry.build("amr", registry.configure("amr", model, "model"), toy_info)
    histories = walk(40)
    store = make_store([history[:-1] for history in histories])
    targets = torch.tensor([history[-1] for history in histories])
    starts, real = [], training.fit

    def fit(method: Any, *given: Any, **named: Any) -> Any:
        starts.append(method.users.weight.detach().clone())
        found = real(method, *given, **named)
        starts.append(method.users.weight.detach().clone())
        return found

    monkeypatch.setattr(training, "fit", fit)
    validation, state = Validation(store, targets), tmp_path / "seed-0.safetensors"
    account = training.fit_phases(method, store, validation, settings, 0, state, "amr")
    assert list(account["phases"]) == ["base", "adversarial"]
    base, adversarial = account["phases"].values()
    assert all("adversarial" not in epoch for epoch in base["history"])
    assert all(epoch["adversarial"] > epoch["clean"] for epoch in adversarial["history"])
    assert torch.equal(starts[1], starts[2])  # the second phase begins where the first was best
    assert not torch.equal(starts[2], starts[3])
    assert account["history"] == adversarial["history"]
    assert account["seconds"] == pytest.approx(base["seconds"] + adversarial["seconds"], abs=0.01)
    assert int(method.warm_left) == 0
