"""Checks: random, masked and wrongly signed toys are flagged; a sound method, soundly attacked, is not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.models import registry
from ballast.models.method import DatasetInfo, Method
from ballast.models.training import Validation, fit
from ballast.params import TrainingParams
from ballast.reproducibility import generator, seed_dropout
from ballast.robustness import attacks
from ballast.robustness.attacks import Perturbed
from ballast.robustness.ball import Ball
from ballast.robustness.checks import (
    Flag,
    Outcome,
    check_gradient,
    check_outcomes,
    check_scores,
    check_zero,
)
from ballast.robustness.objective import Objective, Sample
from ballast.robustness.surface import surface

BUDGETS = (0.1, 0.3)


@pytest.fixture(scope="module")
def model(toy_info: DatasetInfo) -> Method:
    seed_dropout(0, "initial weights")
    settings = {"dim": 16, "max_len": 10, "dropout": 0.1}
    method = registry.build("next_item", registry.configure("next_item", settings, "m"), toy_info)
    params = TrainingParams(batch_size=16, learning_rate=5e-3, max_epochs=20, patience=20)
    fit(method, make_store(walk(60)), Validation(*held_out()), params, 0)
    return method.eval()


def held_out() -> tuple[Any, Tensor]:
    histories = walk(80, seed=1)
    return make_store([history[:-1] for history in histories]), torch.tensor([h[-1] for h in histories])


class Toy(Method):
    """A trained method whose scores are spoilt before they are told."""

    def __init__(self, inner: Method, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner.config, None)  # type: ignore[arg-type]
        self.inner, self.spoil = inner, spoil
        self.surfaces = {"items": "inner.items.weight"}  # type: ignore[misc]

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        return self.spoil(self.inner.score(batch, rng))


def sample_of(method: Method) -> Sample:
    return Sample.of(*held_out(), method, ITEMS)


def attacked(method: Method, kinds: list[dict[str, Any]], turned: float = 1.0) -> list[Outcome]:
    """Outcomes of attacks on the rows of item vectors; with `turned` -1 their sign is wrong."""
    sample, outcomes = sample_of(method), []
    target = surface(method, "items")
    objective = Objective(method, sample, target)
    zero = torch.zeros_like(target.values)
    for settings in kinds:
        attack: Any = attacks.build({"surface": "items", **settings}, "attack")
        group = f"items, {attack.norm}, {attack.config.scope}"
        for budget in (0.0, *BUDGETS):
            found = attack.perturb(method, sample, budget, generator(0, "x"))
            if settings["name"] != "random":
                gains = objective.at(zero + turned * found.delta, with_gradient=False).gains
                found = Perturbed(found.overrides, turned * found.delta, found.size, gains, found.trace)
            outcomes.append(Outcome.of(settings["name"] if budget else "clean", group, budget, found))
    return outcomes


KINDS: list[dict[str, Any]] = [
    {"name": "random"},
    {"name": "fgm"},
    {"name": "pgd"},
    {"name": "random", "norm": "linf"},
    {"name": "fgsm"},
    {"name": "pgd", "norm": "linf"},
    {"name": "random", "scope": "table"},
    {"name": "fgm", "scope": "table"},
    {"name": "pgd", "scope": "table"},
]


def gradient_flags(method: Method, budget: float = 0.1) -> list[Flag]:
    target = surface(method, "items")
    ball = Ball.around(target, budget, "l2", "row")
    return check_gradient(Objective(method, sample_of(method), target), ball, generator(0, "x"))


def names(flags: list[Flag]) -> set[str]:
    assert all(flag.detail for flag in flags)
    return {flag.name for flag in flags}


def test_a_sound_method_under_sound_attacks_is_not_flagged(model: Method) -> None:
    assert check_scores(model, sample_of(model)) == []
    assert gradient_flags(model) == []
    outcomes = attacked(model, KINDS)
    # Whether ten steps are enough is a question of its own.
    assert [flag for flag in check_outcomes(outcomes) if flag.name != "more steps still gain"] == []
    found = attacks.build({"name": "pgd", "surface": "items"}, "a").perturb(
        model, sample_of(model), 0.0, generator(0, "x")
    )
    assert check_zero(model, sample_of(model), found) == []


def test_random_scores_are_flagged(model: Method) -> None:
    toy = Toy(model, lambda scores: scores + torch.randn_like(scores)).eval()
    assert names(check_scores(toy, sample_of(toy))) == {"random scores"}


def test_quantised_scores_are_flagged(model: Method) -> None:
    toy = Toy(model, lambda scores: (4 * scores).round() / 4).eval()
    assert check_scores(toy, sample_of(toy)) == []
    assert names(gradient_flags(toy)) == {"zero gradient"}
    flags = check_outcomes(attacked(toy, [{"name": "random", "tries": 8}, {"name": "fgm"}]))
    assert "black box beats white box" in names(flags)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: (4 * scores).detach().round() / 4 + 1e-4 * scores,
        lambda scores: scores.detach() + 1e-3 * scores,
    ],
    ids=["stairs", "detached"],
)
def test_masked_gradients_are_flagged(spoil: Callable[[Tensor], Tensor], model: Method) -> None:
    toy = Toy(model, spoil).eval()
    assert names(gradient_flags(toy)) == {"masked gradient"}


def test_scores_without_a_gradient_are_flagged(model: Method) -> None:
    toy = Toy(model, lambda scores: scores.detach()).eval()
    assert names(gradient_flags(toy)) == {"zero gradient"}


def test_scores_that_are_not_numbers_are_flagged(model: Method) -> None:
    toy = Toy(model, lambda scores: scores.log()).eval()
    assert names(check_scores(toy, sample_of(toy))) == {"not finite"}
    assert names(gradient_flags(toy)) == {"not finite"}
    assert "not finite" in names(check_outcomes(attacked(toy, [{"name": "fgm"}])))


def test_one_score_for_all_is_flagged(model: Method) -> None:
    toy = Toy(model, lambda scores: torch.ones_like(scores)).eval()
    assert names(check_scores(toy, sample_of(toy))) == {"constant scores"}


@pytest.mark.parametrize("single", ["fgm", "pgd"])
def test_an_attack_of_the_wrong_sign_is_flagged(single: str, model: Method) -> None:
    """As in two published libraries, whose adversaries train the method instead."""
    flags = check_outcomes(attacked(model, [{"name": "random"}, {"name": single}], turned=-1.0))
    assert {"attack helps", "black box beats white box"} <= names(flags)
    assert all(single in flag.about for flag in flags)


def test_a_masked_gradient_is_told_by_what_was_made_on_another_model(model: Method) -> None:
    """The model behind the mask as surrogate: its perturbations hurt where the mask's gradient does not."""
    toy = Toy(model, lambda scores: scores.detach() + 1e-3 * scores.flip(1)).eval()
    bare = Toy(model, lambda scores: scores).eval()
    transfer: Any = attacks.build({"name": "transfer", "surface": "items"}, "attack")
    found = transfer.made_on(bare).perturb(toy, sample_of(toy), 0.3, generator(0, "x"))
    ours = attacks.build({"name": "pgd", "surface": "items"}, "attack").perturb(
        toy, sample_of(toy), 0.3, generator(0, "x")
    )
    outcomes = [Outcome.of(name, "items", 0.3, f) for name, f in [("transfer", found), ("pgd", ours)]]
    flags = check_outcomes(outcomes)
    assert names(flags) >= {"black box beats white box"}
    assert any(flag.about == "pgd on items at 0.3" and "transfer gains more" in flag.detail for flag in flags)


def outcome(attack: str, budget: float, mean: float, trace: tuple[float, ...] = ()) -> Outcome:
    gains = mean + 0.01 * np.random.default_rng(0).standard_normal(500)
    return Outcome(attack, "items", budget, gains, trace)


def test_what_grows_weaker_is_flagged() -> None:
    clean, random = outcome("clean", 0.0, -1.0), outcome("random", 0.1, -0.95)
    small, large = outcome("pgd", 0.1, -0.5), outcome("pgd", 0.2, -0.7)
    assert names(check_outcomes([clean, random, small])) == set()
    assert names(check_outcomes([clean, small, large])) == {"more budget gains less"}
    assert names(check_outcomes([clean, outcome("fgm", 0.1, -0.4), small])) == {"weaker attack beats"}
    assert names(check_outcomes([clean, outcome("transfer", 0.1, -0.4), small])) == {
        "black box beats white box"
    }
    # Ten steps on another model may gain more than one on this, and less than ten on this.
    sound = [clean, outcome("fgm", 0.1, -0.6), outcome("transfer", 0.1, -0.55), small]
    assert names(check_outcomes(sound)) == set()
    # A difference below two hundredths of the largest gain is none.
    assert names(check_outcomes([clean, outcome("random", 0.1, -0.499), small])) == set()


def test_a_search_that_still_gains_is_flagged() -> None:
    clean = outcome("clean", 0.0, -1.0)
    rising, done = tuple(np.linspace(-1, -0.5, 11)), (-1.0, -0.6, *[-0.5] * 9)
    assert names(check_outcomes([clean, outcome("pgd", 0.1, -0.5, rising)])) == {"more steps still gain"}
    assert names(check_outcomes([clean, outcome("pgd", 0.1, -0.5, done)])) == set()


def test_a_zero_budget_that_changes_something_is_flagged(model: Method) -> None:
    sample = sample_of(model)
    found = attacks.build({"name": "fgm", "surface": "items"}, "a").perturb(
        model, sample, 0.1, generator(0, "x")
    )
    flags = check_zero(model, sample, found, "items, l2, row")
    assert [(flag.name, flag.about) for flag in flags] == [("zero budget", "items, l2, row")]
