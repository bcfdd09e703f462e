"""Signs that an attack failed and the method did not withstand it; each flag says what was seen.

After Carlini et al., "On evaluating adversarial robustness", 2019, arXiv 1902.06705, and Athalye, Carlini &
Wagner, "Obfuscated gradients give a false sense of security", ICML 2018: a random score, a gradient that
vanishes, and an attack that a weaker one beats, all look like robustness. Differences of losses are taken
in pairs, user by user, and count where they exceed `SIGMAS` standard errors and `LEAST` of the largest gain.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ballast.models.method import Method
from ballast.robustness.attacks import Perturbed
from ballast.robustness.ball import Ball
from ballast.robustness.objective import Objective, Sample, is_random
from ballast.robustness.surface import call_with

SIGMAS, LEAST = 3.0, 0.02

# A loss that moves this many times more than its gradient allows is not what the gradient is of.
MASKED = 3.0

# Share of an attack's gain that its last quarter of steps may bring before it counts as unfinished.
UNFINISHED = 0.1

BLACK_BOX = ("random", "transfer")


@dataclass(frozen=True)
class Flag:
    """One warning. name: what kind, the same for all methods; about: the condition or surface; detail:
    what was seen, as a sentence for the report."""

    name: str
    about: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """One attack at one budget. gains: (U,) its gain for each user, higher is worse for the method, all in
    one order of users; a group (surface, norm, scope, goal) shares one gain function and one ball."""

    attack: str
    group: str
    budget: float
    gains: NDArray[np.float64]
    trace: tuple[float, ...] = ()

    @classmethod
    def of(cls, attack: str, group: str, budget: float, found: Perturbed) -> "Outcome":
        """What `Attack.perturb` returned."""
        return cls(attack, group, budget, found.gains.cpu().numpy(), found.trace)

    @property
    def name(self) -> str:
        return f"{self.attack} on {self.group} at {self.budget:g}"


def check_scores(method: Method, sample: Sample) -> list[Flag]:
    """Flags on the clean scores: drawn at random, not finite, or all the same for a user."""
    name, flags = type(method).__name__, []
    batch = sample.batches[0]
    with torch.no_grad():
        scores = method.score(batch)
    if is_random(method, batch):
        detail = "two scorings of the same users differ: a gradient of one draw need not fit the next"
        flags.append(Flag("random scores", name, detail))
    share = float((~torch.isfinite(scores)).float().mean())
    if share:
        flags.append(Flag("not finite", name, f"{share:.2%} of the clean scores are not finite"))
    elif bool((scores[:, 1:].std(dim=1) == 0).any()):
        flags.append(Flag("constant scores", name, "all items have one score for some users"))
    return flags


def check_gradient(objective: Objective, ball: Ball, rng: torch.Generator, tries: int = 3) -> list[Flag]:
    """Flags on the gradient at zero: absent, not finite, or smaller than the loss is steep.

    The loss along a gradient can rise by <g, d> at most for small d in the ball. Random directions gain far
    less; where they move it by several times more, the scores are quantised, saturated or cut off.
    """
    about = f"{objective.surface.name}, {ball.norm}, {ball.scope}"
    zero = torch.zeros_like(objective.surface.values)
    clean = objective.at(zero)
    assert clean.gradient is not None
    if not bool(clean.gradient.isfinite().all()) or not bool(clean.gains.isfinite().all()):
        return [Flag("not finite", about, "the gradient or the loss is not finite on the clean model")]
    allowed = float((clean.gradient.double() * ball.steepest(clean.gradient).double()).sum())
    moves = [_move(objective, ball, clean.gain, rng) for _ in range(tries)]
    if allowed == 0:
        seen = f"while random directions of size {ball.budget:g} move the loss by up to {max(moves):.3g}"
        return [Flag("zero gradient", about, f"the gradient is zero everywhere, {seen}")]
    if max(moves) > MASKED * allowed:
        detail = f"a random direction moves the loss by {max(moves):.3g}, the gradient allows {allowed:.3g}"
        return [Flag("masked gradient", about, f"{detail} at budget {ball.budget:g}")]
    return []


def _move(objective: Objective, ball: Ball, clean: float, rng: torch.Generator) -> float:
    delta = ball.random(objective.surface.values, rng)
    return abs(objective.at(delta, with_gradient=False).gain - clean)


def check_zero(method: Method, sample: Sample, found: Perturbed, about: str = "") -> list[Flag]:
    """A flag where what an attack returned for budget 0 changes a score of a method that draws none.

    about: the surface, norm and scope, as `check_gradient` names them.
    """
    batch = sample.batches[0]
    if is_random(method, batch):
        return []
    with torch.no_grad():
        changed = call_with(method, "score", found.overrides, batch)
        same = torch.equal(changed.nan_to_num(), method.score(batch).nan_to_num())
    return [] if same and found.size == 0 else [Flag("zero budget", about, "budget 0 changes scores")]


def check_outcomes(outcomes: Sequence[Outcome]) -> list[Flag]:
    """Flags on attacks against each other; `clean` outcomes (budget 0) of a group are its reference."""
    flags = [
        Flag("not finite", outcome.name, "the loss under attack is not finite")
        for outcome in outcomes
        if not np.isfinite(outcome.gains).all()
    ]
    finite = [outcome for outcome in outcomes if np.isfinite(outcome.gains).all()]
    for group in dict.fromkeys(outcome.group for outcome in finite):
        own = [outcome for outcome in finite if outcome.group == group]
        flags += [*_against_clean(own), *_by_strength(own), *_by_budget(own), *_by_steps(own)]
    return flags


def _against_clean(own: list[Outcome]) -> Iterable[Flag]:
    clean = next((outcome for outcome in own if outcome.budget == 0), None)
    for outcome in own if clean else []:
        assert clean is not None
        if outcome.attack not in BLACK_BOX and _exceeds(clean, outcome, own):
            detail = f"it helps the method: {_means(outcome, clean)} without it; is its sign wrong?"
            yield Flag("attack helps", outcome.name, detail)


def _by_strength(own: list[Outcome]) -> Iterable[Flag]:
    """A weaker attack that gains more than a stronger one at the same budget."""
    for strong in own:
        for weak in own:
            if weak.budget != strong.budget or strong.budget == 0:
                continue
            # What was made on another model took many steps: to beat one of them says nothing.
            if weak.attack == "transfer" and _strength(strong.attack) < 2:
                continue
            if _strength(weak.attack) < _strength(strong.attack) and _exceeds(weak, strong, own):
                kind = "black box beats white box" if weak.attack in BLACK_BOX else "weaker attack beats"
                detail = f"{weak.attack} gains more at the same budget: {_means(weak, strong)}"
                yield Flag(kind, strong.name, detail)


def _by_budget(own: list[Outcome]) -> Iterable[Flag]:
    """Less gain at more budget, for attacks that could have kept the smaller perturbation."""
    for attack in dict.fromkeys(outcome.attack for outcome in own):
        if attack in BLACK_BOX:
            continue
        curve = sorted((o for o in own if o.attack == attack), key=lambda outcome: outcome.budget)
        for small, large in itertools.pairwise(curve):
            if small.budget > 0 and _exceeds(small, large, own):
                detail = f"budget {small.budget:g} gains more: {_means(small, large)}"
                yield Flag("more budget gains less", large.name, detail)


def _by_steps(own: list[Outcome]) -> Iterable[Flag]:
    for outcome in own:
        steps = len(outcome.trace) - 1
        if steps < 4:
            continue
        first, late, last = outcome.trace[0], outcome.trace[steps - steps // 4], outcome.trace[-1]
        if last > first and (last - late) > UNFINISHED * (last - first):
            share = (last - late) / (last - first)
            detail = f"its last quarter of {steps} steps brought {share:.0%} of the gain: give it more steps"
            yield Flag("more steps still gain", outcome.name, detail)


def _strength(attack: str) -> int:
    """Order of what attacks know: nothing, one gradient, many gradients; those unknown count as many."""
    return {"random": 0, "transfer": 0, "fgsm": 1, "fgm": 1}.get(attack, 2)


def _exceeds(higher: Outcome, lower: Outcome, own: list[Outcome]) -> bool:
    """Whether `higher` gains more than `lower` beyond what chance over users, or rounding, explains."""
    difference = higher.gains - lower.gains  # (U,)
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    means = [float(outcome.gains.mean()) for outcome in own]
    return mean > SIGMAS * error and mean > LEAST * (max(means) - min(means))


def _means(first: Outcome, second: Outcome) -> str:
    return f"{first.gains.mean():.4g} against {second.gains.mean():.4g}"
