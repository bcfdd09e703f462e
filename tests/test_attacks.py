"""Attacks: budgets are kept, gradients are right, stronger ones gain more, and the method stays untouched."""

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor

from ballast.content import whitening
from ballast.content.encoder import ImageEncoder, encode
from ballast.data.sequences import Batch, SequenceStore
from ballast.errors import BallastError
from ballast.evaluation.ranking import rank_targets
from ballast.models import registry
from ballast.models.method import DatasetInfo, Method
from ballast.models.training import Validation, fit
from ballast.params import TrainingParams
from ballast.perturbation import sizes
from ballast.reproducibility import generator, seed_dropout
from ballast.robustness import ascent, attacks, summary
from ballast.robustness.attacks import Attack, Perturbed
from ballast.robustness.ball import Ball
from ballast.robustness.objective import Objective, Sample, is_random
from ballast.robustness.pictures import Pictures
from ballast.robustness.surface import Overridden, call_with, surface

SURFACES = {"items": "items.weight", "text": "features_text", "image": "features_image"}
# Every attack in every norm and scope that it knows.
KINDS: list[dict[str, Any]] = [
    {"name": "random"},
    {"name": "random", "norm": "linf"},
    {"name": "random", "scope": "table", "tries": 2},
    {"name": "fgsm"},
    {"name": "fgm"},
    {"name": "fgm", "scope": "table"},
    {"name": "pgd", "steps": 4},
    {"name": "pgd", "steps": 4, "norm": "linf"},
    {"name": "pgd", "steps": 4, "scope": "table"},
]

# Methods that read features; these two read none that an attack could change.
CONTENT = [
    name
    for name in registry.known_methods()
    if "modalities" in registry.method_class(name).Config.__dataclass_fields__
    and name not in ("s3rec", "vqrec")
]


def built(info: DatasetInfo, method: str = "next_item", **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    model = {"dim": 16, "max_len": 10, "dropout": 0.1, **settings}
    return registry.build(method, registry.configure(method, model, "model"), info)


def trained(info: DatasetInfo, method: str = "next_item", **settings: Any) -> Any:
    model = built(info, method, **settings)
    params = TrainingParams(batch_size=16, learning_rate=5e-3, max_epochs=20, patience=20)
    fit(model, make_store(walk(60)), Validation(*held_out()), params, 0)
    return model.eval()


def held_out(users: int = 80) -> tuple[SequenceStore, Tensor]:
    histories = walk(users, seed=1)
    return make_store([history[:-1] for history in histories]), torch.tensor([h[-1] for h in histories])


@pytest.fixture(scope="module")
def model(toy_info: DatasetInfo) -> Method:
    return trained(toy_info)


@pytest.fixture(scope="module")
def content(toy_info: DatasetInfo) -> Method:
    """A method with item ids, texts and pictures that may be attacked."""
    method = trained(toy_info, "sasrec_features", modalities=["text", "image"])
    method.surfaces = SURFACES
    return method


def sample_of(method: Method) -> Sample:
    return Sample.of(*held_out(), method, ITEMS)


def run(method: Method, settings: dict[str, Any], budget: float, seed: int = 0, **more: Any) -> Perturbed:
    attack = attacks.build({"surface": "items", **settings, **more}, "params.yaml: attack")
    return attack.perturb(method, more.pop("sample", None) or sample_of(method), budget, generator(seed, "x"))


# Budgets


@pytest.mark.parametrize("name", ["items", "text", "image"])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_zero_budget_changes_nothing_bit_for_bit(settings: Any, name: str, content: Method) -> None:
    found = run(content, settings, 0.0, surface=name)
    batch = sample_of(content).batches[0]
    assert torch.equal(call_with(content, "score", found.overrides, batch), content.score(batch))
    assert found.size == 0
    assert not found.delta.any()


@pytest.mark.parametrize("name", ["items", "text"])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_realised_size_is_the_budget_at_most(settings: Any, name: str, content: Method) -> None:
    found = run(content, settings, 0.2, surface=name)
    target = surface(content, name)
    unit, delta = target.unit, found.delta
    assert unit == pytest.approx(target.values[target.is_real].norm(dim=1).mean().item())
    if settings.get("norm") == "linf" or settings["name"] == "fgsm":
        size = delta.abs().max().item() / (unit / delta.shape[1] ** 0.5)
    elif settings.get("scope") == "table":
        size = delta.norm().item() / (unit * target.is_real.sum().item() ** 0.5)
    else:
        size = sizes(delta, "row").max().item() / unit
    assert found.size == pytest.approx(size)
    assert 0.19 < size <= 0.2 * (1 + 1e-5)
    assert not delta[~target.is_real].any()
    assert (~target.is_real).sum() > (1 if name == "text" else 0)
    torch.testing.assert_close(found.overrides[SURFACES[name]], target.values + delta)


def stretched(info: DatasetInfo) -> DatasetInfo:
    """Texts some directions of which are far longer than others."""
    text = info.features["text"] * torch.logspace(-2, 2, 12)
    return replace(info, features={**info.features, "text": text})


@pytest.mark.parametrize(("norm", "scope"), [("l2", "row"), ("linf", "row"), ("l2", "table")])
@pytest.mark.parametrize("method", ["ant", "unisrec", "vbpr", "amr"])
def test_one_budget_is_one_change_of_content(
    method: str, norm: Any, scope: Any, toy_info: DatasetInfo
) -> None:
    """By the distance of whitened rows, of a method that keeps content as it came, too."""
    config = registry.configure(method, {"modalities": ["text"]}, "model")
    target = surface(registry.build(method, config, stretched(toy_info)), "text")
    rows, is_real = target.whole, target.is_real
    white = whitening.fit(rows, ~is_real)
    clean = white.apply(rows, ~is_real)
    assert target.unit == pytest.approx(clean[is_real].norm(dim=1).mean().item())
    delta = Ball.around(target, 0.2, norm, scope).random(target.values, generator(0, "x"))
    moved = target.moved(delta)["features_text"]
    torch.testing.assert_close(white.apply(moved, ~is_real) - clean, delta, rtol=0, atol=1e-3 * target.unit)
    assert torch.equal(moved[~is_real], rows[~is_real])
    assert not torch.allclose(moved, rows + delta)


def test_what_hardly_varies_is_not_moved(toy_info: DatasetInfo) -> None:
    """One long direction, and others that whitening takes for none: the way back must not blow them up."""
    text = torch.randn(ITEMS + 1, 1) @ torch.randn(1, 128) + torch.randn(ITEMS + 1, 128) * 1e-4
    text[toy_info.missing["text"]] = 0
    info = replace(toy_info, features={**toy_info.features, "text": text})
    config = registry.configure("ant", {"modalities": ["text"]}, "model")
    target = surface(registry.build("ant", config, info), "text")
    assert torch.linalg.matrix_rank(target.values.double(), rtol=1e-4) == 1
    delta = Ball.around(target, 0.2, "l2", "row").random(target.values, generator(0, "x"))
    moved = target.moved(delta)["features_text"] - target.whole
    assert 0.01 < moved.norm(dim=1).max() / target.whole.norm(dim=1).mean() < 1


@pytest.mark.parametrize("name", CONTENT)
def test_content_is_attacked_where_it_is_white(name: str, toy_info: DatasetInfo) -> None:
    """Whichever way a method keeps it: no direction is worth more of a budget than another."""
    text = toy_info.features["text"] * torch.logspace(-0.5, 0.5, 12)
    info = replace(toy_info, features={**toy_info.features, "text": text})
    method = registry.build(name, registry.configure(name, {"modalities": ["text"]}, "model"), info)

    def spread(rows: Tensor) -> float:
        values = torch.linalg.svdvals(rows - rows.mean(dim=0))
        return float(values[0] / values[-1])

    target = surface(method, "text")
    assert spread(text[target.is_real]) > 8
    assert spread(target.values[target.is_real]) < 2


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_attacks_on_content_kept_as_it_came(settings: Any, toy_info: DatasetInfo) -> None:
    model = trained(stretched(toy_info), "ant", modalities=["text", "image"])
    batch = sample_of(model).batches[0]
    found = run(model, settings, 0.0, surface="text")
    assert torch.equal(call_with(model, "score", found.overrides, batch), model.score(batch))
    found = run(model, settings, 0.2, surface="text")
    assert 0.19 < found.size <= 0.2 * (1 + 1e-5)
    assert not torch.equal(call_with(model, "score", found.overrides, batch), model.score(batch))


def test_content_that_is_whitened_already_is_attacked_as_it_is(toy_info: DatasetInfo) -> None:
    settings = {"modalities": ["text"], "is_whitened": True}
    model = registry.build("amr", registry.configure("amr", settings, "model"), toy_info)
    assert surface(model, "text").back is None
    assert torch.equal(surface(model, "text").values, model.get_buffer("features_text"))


def test_balls_lie_within_one_another(content: Method) -> None:
    target, rng = surface(content, "items"), generator(0, "x")
    linf, row, table = (
        Ball.around(target, 0.3, norm, scope)
        for norm, scope in [("linf", "row"), ("l2", "row"), ("l2", "table")]
    )
    for inner, outer in [(linf, row), (row, table)]:
        delta = inner.random(target.values, rng)
        assert inner.size(delta) == pytest.approx(0.3, rel=1e-5)
        assert outer.size(delta) <= 0.3 * (1 + 1e-5)
        torch.testing.assert_close(outer.projected(delta), delta)


# Strength


@pytest.mark.parametrize("loss", ["rank", "cross_entropy", "likelihood", "margin"])
@pytest.mark.parametrize("space", [{}, {"norm": "linf"}, {"scope": "table"}], ids=str)
def test_stronger_attacks_gain_more(space: dict[str, str], loss: str, model: Method) -> None:
    single = "fgsm" if space.get("norm") == "linf" else "fgm"
    clean, random, one, many = (
        run(model, {"name": name, **space}, budget, loss=loss).gains.mean()
        for name, budget in [("random", 0.0), ("random", 0.1), (single, 0.1), ("pgd", 0.1)]
    )
    assert clean < one <= many
    assert random < one


def test_attacks_lower_ranks_and_noise_of_the_same_size_does_not(model: Method) -> None:
    store, targets = held_out()

    def hits(found: Perturbed) -> float:
        ranks = rank_targets(Overridden(model, found.overrides), store, targets).rank
        return float((ranks <= 5).float().mean())

    clean, random, many = (
        hits(run(model, {"name": name}, budget))
        for name, budget in [("pgd", 0.0), ("random", 0.5), ("pgd", 0.5)]
    )
    assert many < 0.5 * clean
    assert random > 0.8 * clean


def test_pgd_keeps_its_best_point_and_tells_its_way(model: Method) -> None:
    found = run(model, {"name": "pgd", "steps": 10, "restarts": 1}, 0.3)
    assert len(found.trace) == 11
    assert list(found.trace) == sorted(found.trace)
    assert found.trace[-1] == pytest.approx(found.gains.mean().item())
    single = run(model, {"name": "fgm"}, 0.3)
    assert found.trace[1] == pytest.approx(single.gains.mean().item(), rel=1e-6)


@pytest.mark.parametrize("goal", ["untargeted", "promote"])
@pytest.mark.parametrize("loss", ["rank", "cross_entropy", "likelihood", "margin"])
def test_the_gradient_agrees_with_finite_differences(goal: Any, loss: Any, model: Any) -> None:
    def score(batch: Batch, rng: Any = None) -> Tensor:
        """In float64 to the end, where the method's own scores are float32."""
        table = exact.item_table()
        return exact.backbone.query(batch.history, table) @ table.T

    exact: Any = built(DatasetInfo(60, ITEMS, torch.ones(ITEMS + 1)))
    exact.load_state_dict(model.state_dict())
    exact.double().eval().score = score
    sample = sample_of(exact) if goal == "untargeted" else sample_of(exact).aimed_at(7)
    objective = Objective(exact, sample, surface(exact, "items"), goal, loss)
    start = 0.01 * torch.randn(ITEMS + 1, 16, dtype=torch.float64, generator=generator(0, "x"))
    gradient = objective.at(start).gradient
    assert gradient is not None
    for row, column in [(1, 0), (7, 3), (ITEMS, 15)]:
        bump = torch.zeros_like(start)
        bump[row, column] = 1e-5
        up, down = (objective.at(start + sign * bump, with_gradient=False).gain for sign in (1, -1))
        assert gradient[row, column].item() == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-9)


def test_the_smooth_rank_is_the_rank_where_scores_are_far_apart(model: Method) -> None:
    store, targets = held_out()
    sample = sample_of(model)
    objective = Objective(model, sample, surface(model, "items"), sharpness=1e6)
    gains = objective.at(torch.zeros_like(objective.surface.values)).gains
    rank = rank_targets(model, store, targets).rank[sample.user_ids - 1]
    torch.testing.assert_close(gains, -1 / torch.log2(1 + rank.double()), atol=1e-3, rtol=1e-3)


def test_scores_times_a_constant_are_attacked_alike(model: Method) -> None:
    found = run(model, {"name": "fgm"}, 0.1)
    plain = model.score
    try:
        model.score = lambda batch, rng=None: 100 * plain(batch, rng)  # type: ignore[method-assign]
        scaled = run(model, {"name": "fgm"}, 0.1)
    finally:
        del model.score  # type: ignore[method-assign]
    torch.testing.assert_close(scaled.delta, found.delta, atol=1e-4, rtol=1e-3)


# Promotion


@pytest.mark.parametrize("name", ["items", "text", "image"])
def test_promotion_raises_the_exposure_of_its_item_and_moves_nothing_else(name: str, content: Method) -> None:
    item = next(i for i in range(5, ITEMS) if all(surface(content, s).is_real[i] for s in SURFACES))
    sample = sample_of(content).aimed_at(item)
    attack = attacks.build({"name": "pgd", "surface": name, "goal": "promote"}, "attack")
    found = attack.perturb(content, sample, 3.0, generator(0, "x"))
    assert found.delta.any(dim=1).nonzero().squeeze(1).tolist() == [item]
    store, _ = held_out()
    pushed = torch.full((len(store),), item)
    before, after = (
        summary.exposure(rank_targets(m, store, pushed).rank.numpy().astype(np.int64))
        for m in (content, Overridden(content, found.overrides))
    )
    assert after > before
    clean = attack.perturb(content, sample, 0.0, generator(0, "x"))
    assert found.gains.mean() > clean.gains.mean()


def test_a_pushed_item_is_pushed_to_those_who_have_not_met_it(model: Method) -> None:
    store, targets = held_out()
    sample = sample_of(model).aimed_at(7)
    owners = {
        user
        for user, history, target in zip(
            store.user_ids.tolist(), store.histories(torch.arange(len(store))).tolist(), targets, strict=True
        )
        if 7 in history or target == 7
    }
    assert set(sample.user_ids.tolist()) == set(store.user_ids.tolist()) - owners
    assert set(sample.items.tolist()) == {7}


# What must not change


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_weights_gradients_and_generators_stay_untouched(settings: Any, content: Method) -> None:
    before = {name: value.clone() for name, value in content.state_dict().items()}
    for weight in content.parameters():
        weight.grad = None
    state = torch.get_rng_state()
    run(content, settings, 0.3, surface="text")
    assert all(torch.equal(value, before[name]) for name, value in content.state_dict().items())
    assert all(weight.grad is None for weight in content.parameters())
    assert all(weight.requires_grad for weight in content.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_same_generator_gives_the_same_perturbation(settings: Any, model: Method) -> None:
    first, again = run(model, settings, 0.1), run(model, settings, 0.1)
    assert torch.equal(first.delta, again.delta)
    if settings["name"] == "random":
        assert not torch.equal(first.delta, run(model, settings, 0.1, seed=1).delta)


def test_clean_scores_are_computed_once_for_all_attacks(model: Method) -> None:
    sample, calls, plain = sample_of(model), 0, model.score

    def counted(batch: Batch, rng: Any = None) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(batch, rng)

    try:
        model.score = counted  # type: ignore[method-assign]
        counts = []
        for budget in (0.1, 0.2):
            attack = attacks.build({"name": "fgm", "surface": "items"}, "attack")
            attack.perturb(model, sample, budget, generator(0, "x"))
            counts.append(calls)
    finally:
        del model.score  # type: ignore[method-assign]
    assert counts[1] - counts[0] == len(sample.batches)  # what the second one scores is its own result


# Scores that are drawn


class Noisy(Method):
    """Another method's scores with noise on them, drawn as it was asked."""

    def __init__(self, inner: Method, has_own_noise: bool) -> None:
        super().__init__(inner.config, None)  # type: ignore[arg-type]
        self.inner, self.has_own_noise = inner, has_own_noise
        self.surfaces = {"items": "inner.items.weight"}  # type: ignore[misc]

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        scores = self.inner.score(batch)
        source = None if self.has_own_noise else rng
        return scores + torch.randn(scores.shape, generator=source)


@pytest.mark.parametrize("has_own_noise", [True, False])
def test_random_scores_are_averaged_over_the_same_draws(has_own_noise: bool, model: Method) -> None:
    noisy = Noisy(model, has_own_noise).eval()
    sample = sample_of(noisy)
    assert is_random(noisy, sample.batches[0])
    assert not is_random(model, sample.batches[0])
    target = surface(noisy, "items")
    one, four, again = (Objective(noisy, sample, target, draws=draws) for draws in (1, 4, 4))
    zero = torch.zeros_like(target.values)
    delta = zero + 0.01 * target.is_real[:, None]
    assert torch.equal(four.at(delta).gains, again.at(delta).gains)
    assert not torch.equal(four.at(delta).gains, one.at(delta).gains)
    assert Objective(model, sample_of(model), surface(model, "items"), draws=4).draws == 1
    # One draw's gain spreads around the mean of many by more than the mean of four does.
    many = Objective(noisy, sample, target, draws=64).at(zero).gains
    assert (four.at(zero).gains - many).square().mean() < (one.at(zero).gains - many).square().mean()


# Plugging in


def test_an_attack_of_ones_own_is_one_file(tmp_path: Path, model: Method) -> None:
    (tmp_path / "uphill.py").write_text(
        '''"""Against the sign of the gradient."""
from dataclasses import dataclass

import torch

from ballast.robustness.ascent import Found
from ballast.robustness.attacks import Attack


class Adversary(Attack):
    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        factor: float = 1.0

    def search(self, objective, ball, rng):
        gradient = objective.at(torch.zeros_like(objective.surface.values)).gradient
        return Found(self.config.factor * ball.steepest(gradient), 0.0)
'''
    )
    try:
        assert attacks.load_folder(tmp_path) == ["uphill"]
        assert attacks.load_folder(tmp_path) == ["uphill"]
        assert "uphill" in attacks.known()
        own, half = run(model, {"name": "uphill"}, 0.1), run(model, {"name": "uphill", "factor": 0.5}, 0.1)
        torch.testing.assert_close(own.delta, run(model, {"name": "fgm"}, 0.1).delta)
        assert half.size == pytest.approx(0.05, rel=1e-5)
        with pytest.raises(BallastError, match=r"attack\.factr: unknown key; did you mean 'factor'\?"):
            run(model, {"name": "uphill", "factr": 1.0}, 0.1)
        (tmp_path / "pgd.py").write_text("")
        with pytest.raises(BallastError, match="there is an attack 'pgd' already"):
            attacks.load_folder(tmp_path)
    finally:
        attacks._FOLDERS.clear()


def other_seed(info: DatasetInfo) -> Any:
    """The fixture `content` trained on other users: its content is the same, its weights are not."""
    method = built(info, "sasrec_features", modalities=["text", "image"])
    params = TrainingParams(batch_size=16, learning_rate=5e-3, max_epochs=20, patience=20)
    fit(method, make_store(walk(60, seed=5)), Validation(*held_out()), params, 1)
    method.surfaces = SURFACES
    return method.eval()


@pytest.mark.parametrize("goal", ["untargeted", "promote"])
def test_a_perturbation_is_made_on_another_model(goal: str, content: Method, toy_info: DatasetInfo) -> None:
    """It is the surrogate's own, its gain the method's, and what is kept of the method is not mixed up."""
    surrogate = other_seed(toy_info)
    settings = {"name": "transfer", "surface": "text", "steps": 4, "goal": goal}
    attack: Any = attacks.build(settings, "a")
    sample = sample_of(content)
    sample = sample if goal == "untargeted" else sample.aimed_at(7)
    own = attacks.build({**settings, "name": "pgd"}, "a").perturb(content, sample, 0.3, generator(0, "x"))
    found = attack.made_on(surrogate).perturb(content, sample, 0.3, generator(0, "x"))
    theirs = sample_of(surrogate)
    theirs = theirs if goal == "untargeted" else theirs.aimed_at(7)
    made = attacks.build({**settings, "name": "pgd"}, "a").perturb(surrogate, theirs, 0.3, generator(0, "x"))
    assert torch.equal(found.delta, made.delta)
    assert torch.equal(found.overrides["features_text"], content.features_text + made.delta)
    assert 0 < found.size <= 0.3 + 1e-6
    clean = attack.perturb(content, sample, 0.0, generator(0, "x"))
    assert torch.equal(clean.overrides["features_text"], content.features_text)
    # It carries over, and less than what was made on the method itself.
    assert clean.gains.mean() < found.gains.mean() < own.gains.mean()
    again = attacks.build({**settings, "name": "pgd"}, "a").perturb(content, sample, 0.3, generator(0, "x"))
    assert torch.equal(again.gains, own.gains)


def test_only_the_same_content_carries_over(content: Method, toy_info: DatasetInfo) -> None:
    attack: Any = attacks.build({"name": "transfer", "surface": "items"}, "a")
    with pytest.raises(BallastError, match=r"needs another model: call made_on\(surrogate\) first"):
        attack.perturb(content, sample_of(content), 0.1, generator(0, "x"))
    attack.made_on(other_seed(toy_info))
    assert not attack.is_open(content)
    with pytest.raises(BallastError, match="surface 'items': the surrogate holds other values there"):
        attack.perturb(content, sample_of(content), 0.1, generator(0, "x"))
    on_text: Any = attacks.build({"name": "transfer", "surface": "text"}, "a")
    assert not on_text.made_on(trained(toy_info)).is_open(content)


def test_every_file_is_an_attack() -> None:
    assert attacks.known() == ["fgm", "fgsm", "pgd", "pixels", "random", "transfer"]
    for name in attacks.known():
        attack = attacks.build({"name": name, "surface": "items"}, "attack")
        assert isinstance(attack, Attack)
        assert attack.surface == "items"
        assert attack.norm == ("linf" if name in ("fgsm", "pixels") else "l2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "pdg"}, r"attack: unknown attack 'pdg'; known: fgm, fgsm, pgd, pixels, random, transfer"),
        ({"name": "pgd", "stpes": 3}, r"attack\.stpes: unknown key; did you mean 'steps'\?"),
        ({"name": "pgd", "norm": "linf", "scope": "table"}, "linf bounds every entry by itself"),
        ({"name": "fgsm", "norm": "l2"}, r"attack\.norm: got 'l2', expected 'linf'"),
        ({"name": "fgm", "surface": "picture"}, "NextItem has no surface 'picture'; it declares: items"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str, model: Method) -> None:
    with pytest.raises(BallastError, match=message):
        run(model, settings, 0.1)


def test_what_cannot_be_attacked_is_refused(model: Any, toy_info: DatasetInfo) -> None:
    for budget in (-0.1, float("nan"), float("inf")):
        with pytest.raises(BallastError, match="give a number that is not negative"):
            run(model, {"name": "fgm"}, budget)
    with pytest.raises(BallastError, match="in evaluation mode"):
        run(built(toy_info).train(), {"name": "fgm"}, 0.1)
    model.surfaces = {"items": "nothing"}
    with pytest.raises(BallastError, match="'nothing' is no parameter or buffer"):
        run(model, {"name": "fgm"}, 0.1)
    del model.surfaces


def test_columns_of_a_shared_table_are_a_surface(toy_info: DatasetInfo) -> None:
    """feature_knn holds its modalities side by side, each zero where an item has none."""
    model = registry.build(
        "feature_knn", registry.configure("feature_knn", {"modalities": ["text", "image"]}, "m"), toy_info
    ).eval()
    assert model.surfaces == {"text": "vectors[0:12]", "image": "vectors[12:18]"}
    found = run(model, {"name": "fgm"}, 0.5, surface="image")
    change = found.overrides["vectors"] - dict(model.named_buffers())["vectors"]
    assert not change[:, :12].any()
    assert not change[toy_info.missing["image"]].any()
    assert change[:, 12:].any()
    assert found.gains.mean() > run(model, {"name": "fgm"}, 0.0, surface="image").gains.mean()


# Pixels


@pytest.fixture(scope="module")
def shop(toy_info: DatasetInfo) -> tuple[Any, Pictures]:
    """A method on the features of an encoder's pictures, two of which are missing."""
    torch.manual_seed(0)
    encoder = ImageEncoder(size=16, dim=6, width=4).eval()
    items = torch.arange(1, ITEMS - 1)
    pixels = torch.randint(0, 256, (len(items), 3, 16, 16), dtype=torch.uint8)
    vectors, missing = torch.zeros(ITEMS + 1, 6), torch.ones(ITEMS + 1, dtype=torch.bool)
    vectors[items], missing[items] = encode(encoder, pixels), False
    info = DatasetInfo(60, ITEMS, toy_info.item_counts, {"image": vectors}, {"image": missing})
    model = trained(info, "sasrec_features", modalities=["image"])
    model.surfaces = {"image": "features_image"}
    return model, Pictures(encoder, pixels, items, vectors, missing)


def test_pixels_move_the_ranking_through_the_encoder(shop: tuple[Any, Pictures]) -> None:
    model, pictures = shop
    store, targets = held_out()
    sample = Sample.of(store, targets, model, ITEMS)
    attack: Any = attacks.build({"name": "pixels", "steps": 10}, "attack")
    with pytest.raises(BallastError, match="needs pictures"):
        attack.perturb(model, sample, 8, generator(0, "x"))
    attack.on(pictures)
    gains = []
    for budget in (0, 0.9, 2, 16):
        found = attack.perturb(model, sample, budget, generator(0, "x"))
        assert found.size <= int(budget) + 1e-4
        levels = found.pixels * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert levels.min() > -1e-3
        assert levels.max() < 255.001
        gains.append(found.gains.mean().item())
    assert gains[0] == gains[1] < gains[2] < gains[3]
    assert set(found.items.tolist()) <= set(targets.tolist()) & set(pictures.items.tolist())
    # What the attack says of rows is what the features stage would make of the changed pictures.
    made = encode(pictures.encoder, (found.pixels * 255).round().to(torch.uint8))
    whole = pictures.vectors.clone()
    whole[found.items] = made
    fitted = whitening.fit(pictures.vectors, pictures.missing)
    rows = fitted.apply(whole, pictures.missing)
    clean = fitted.apply(pictures.vectors, pictures.missing)
    scale = clean.norm(dim=1)[~pictures.missing].mean()
    torch.testing.assert_close(found.overrides["features_image"], rows / scale, atol=1e-3, rtol=1e-3)


def test_zero_levels_change_nothing_bit_for_bit(shop: tuple[Any, Pictures]) -> None:
    model, pictures = shop
    sample = Sample.of(*held_out(), model, ITEMS)
    attack: Any = attacks.build({"name": "pixels", "restarts": 2}, "attack")
    found = attack.on(pictures).perturb(model, sample, 0, generator(0, "x"))
    batch = sample.batches[0]
    assert torch.equal(call_with(model, "score", found.overrides, batch), model.score(batch))


def test_a_pushed_items_own_picture_is_changed_alone(shop: tuple[Any, Pictures]) -> None:
    model, pictures = shop
    sample = Sample.of(*held_out(), model, ITEMS).aimed_at(9)
    attack: Any = attacks.build({"name": "pixels", "goal": "promote"}, "attack").on(pictures)  # type: ignore[attr-defined]
    found = attack.perturb(model, sample, 16, generator(0, "x"))
    assert found.items.tolist() == [9]
    assert found.delta.any(dim=1).nonzero().squeeze(1).tolist() == [9]
    assert found.gains.mean() > attack.perturb(model, sample, 0, generator(0, "x")).gains.mean()


def test_features_of_another_encoder_are_refused(shop: tuple[Any, Pictures]) -> None:
    _, pictures = shop
    attack: Any = attacks.build({"name": "pixels"}, "attack")
    torch.manual_seed(1)
    other = replace(pictures, encoder=ImageEncoder(16, 6, 4).eval())
    with pytest.raises(BallastError, match="not this encoder's"):
        attack.on(other)


# Parts


def test_docs_hold() -> None:
    for module in (ascent, summary):
        assert doctest.testmod(module).failed == 0


def test_frontier_by_hand() -> None:
    accuracy, robustness = np.array([0.1, 0.2, 0.2, 0.05]), np.array([0.9, 0.8, 0.8, 0.9])
    assert summary.frontier(accuracy, robustness).tolist() == [True, True, True, False]
