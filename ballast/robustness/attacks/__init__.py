"""Attacks on what a trained method knows of items; one file each, whose class is named `Adversary`.

Most only say how they search. `perturb` does the rest: it finds the surface, bounds the budget, and tells
what was reached. An attack of your own is a file with such a class in a folder of your own:

    attacks.load_folder(Path("my_attacks"))            # my_attacks/mine.py: class Adversary(Attack)
    attack = attacks.build({"name": "mine", "surface": "items"}, "params.yaml: robustness.attacks")
    found = attack.perturb(method, sample, 0.1, generator(0, "mine"))
    rank_targets(Overridden(method, found.overrides), store, targets)
"""

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.robustness.ascent import Found
from ballast.robustness.ball import Ball, Norm, Scope
from ballast.robustness.objective import Goal, LossName, Objective, Sample
from ballast.robustness.surface import Surface, surface
from ballast.strict import Strict, parse_named


@dataclass(frozen=True)
class Perturbed:
    """What an attack did. overrides: for `call_with` and `Overridden`; delta: (I, F) what was added.

    size: the budget really taken, at most the one given. gains: (U,) float64 of the sample's users, higher
    is worse for the method. trace: best mean gain after each step, if the attack has steps.
    """

    overrides: dict[str, Tensor]
    delta: Tensor
    size: float
    gains: Tensor
    trace: tuple[float, ...] = ()


class Attack:
    """Base of the attacks: a file's subclass is named `Adversary` and defines `search`.

    Settings: `surface` is a name in `Method.surfaces`; `norm` and `scope` say what a budget bounds (see
    ballast/robustness/ball.py), `goal`, `loss`, `sharpness` and `draws` what is gained (objective.py). `rows`
    says which items' rows may move: `all`, or `aimed` for those aimed at alone. By default all fall on an
    untargeted attack, and an item that is promoted moves by itself: its seller writes its page, not others'.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        name: str
        surface: str
        norm: Norm = "l2"
        scope: Scope = "row"
        goal: Goal = "untargeted"
        rows: Literal["all", "aimed"] | None = None
        loss: LossName = "rank"
        sharpness: Annotated[float, Field(ge=0)] = 4.0
        """Standard deviation that scores are brought to; 0 takes them as they are."""
        draws: Annotated[int, Field(ge=1)] = 8
        """Scores averaged where a method draws them at random; others are computed once."""

        def __post_init__(self) -> None:
            if self.norm == "linf" and self.scope == "table":
                raise ValueError("linf bounds every entry by itself: scope is row")

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def surface(self) -> str:
        return str(self.config.surface)

    @property
    def norm(self) -> str:
        return str(self.config.norm)

    def search(self, objective: Objective, ball: Ball, rng: torch.Generator) -> Found:
        """The perturbation of the ball that gains most, as far as the attack can tell."""
        raise NotImplementedError

    def perturb(self, method: Method, sample: Sample, budget: float, rng: torch.Generator) -> Perturbed:
        """Attack `method` for all users of the sample at once; it and its gradients stay untouched.

        budget: in units of the mean norm of the surface's rows; 0 changes nothing, bit for bit. rng: on the
        CPU. Raises BallastError where the method has no such surface or the budget is no number >= 0.
        """
        if not 0 <= budget < float("inf"):
            raise BallastError(f"an attack's budget is {budget}; give a number that is not negative")
        target = surface(method, self.config.surface)
        objective = self.objective(method, sample, target)
        found = Found(torch.zeros_like(target.values), 0.0)
        ball = Ball.around(target, budget, self.config.norm, self.config.scope, self.movable(sample, target))
        if ball.radius > 0 and bool(ball.is_movable.any()):
            found = self.search(objective, ball, rng)
        gains = objective.at(found.delta, with_gradient=False).gains
        return Perturbed(target.moved(found.delta), found.delta, ball.size(found.delta), gains, found.trace)

    def objective(self, method: Method, sample: Sample, target: Surface) -> Objective:
        """What the attack raises on this method."""
        config = self.config
        return Objective(method, sample, target, config.goal, config.loss, config.sharpness, config.draws)

    def movable(self, sample: Sample, target: Surface) -> Tensor | None:
        """(I,) bool rows that may move by the settings, None for all."""
        rows = self.config.rows or ("aimed" if self.config.goal == "promote" else "all")
        if rows == "all":
            return None
        is_aimed = torch.zeros_like(target.is_real)
        is_aimed[sample.items] = True
        return is_aimed


class SingleStep(Attack):
    """One step to the border of the ball, as far along the gradient as it goes."""

    def search(self, objective: Objective, ball: Ball, rng: torch.Generator) -> Found:
        gradient = objective.at(torch.zeros_like(objective.surface.values)).gradient
        assert gradient is not None
        return Found(ball.projected(ball.steepest(gradient)), float("nan"))


_FOLDERS: dict[str, Path] = {}


def load_folder(folder: Path) -> list[str]:
    """Make the attacks in the files of a folder known; their names. Raises BallastError on a taken one."""
    names = sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))
    for name in names:
        if name in known() and _FOLDERS.get(name) != folder:
            raise BallastError(f"{folder / name}.py: there is an attack '{name}' already; rename the file")
        _FOLDERS[name] = folder
    return names


def known() -> list[str]:
    """Names of the attacks: the files of this folder, and of those loaded."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} | set(_FOLDERS))


def configure(settings: dict[str, Any], where: str) -> tuple[type[Attack], Any]:
    """The attack named by `settings["name"]` and its settings; raises BallastError on an unknown one."""
    return parse_named(settings, known(), _find, "attack", where)


def build(settings: dict[str, Any], where: str) -> Attack:
    """The same, ready to `perturb`."""
    kind, config = configure(settings, where)
    return kind(config)


def _find(name: str) -> type[Attack]:
    if name not in _FOLDERS:
        kind: type[Attack] = importlib.import_module(f"{__name__}.{name}").Adversary
        return kind
    path = _FOLDERS[name] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"ballast_attack_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "Adversary"):
        raise BallastError(f"{path}: no class Adversary")
    own: type[Attack] = module.Adversary
    return own
