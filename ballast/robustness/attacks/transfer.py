"""A perturbation that PGD made on another model: what is open to who has the content and a model of his own.

Papernot, McDaniel & Goodfellow, "Transferability in machine learning: from phenomena to black-box attacks
using adversarial samples", 2016, arXiv 1605.07277. Give it the other model by `made_on` before it is asked.
The other holds the same content in the same numbers, as another seed of one method does; learned item
vectors of two trainings have nothing in common. Where it gains more than an attack on the model itself, that
one was misled by its gradient (see ballast/robustness/checks.py).
"""

import torch

from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.robustness.attacks import Perturbed, pgd
from ballast.robustness.objective import Sample
from ballast.robustness.surface import located, surface


class Adversary(pgd.Adversary):
    """PGD on a surrogate, its perturbation given to the method."""

    surrogate: Method | None = None

    def made_on(self, surrogate: Method | None) -> "Adversary":
        """This attack, by way of a model in evaluation mode; without one it is open to nothing."""
        self.surrogate = surrogate
        return self

    def is_open(self, method: Method) -> bool:
        """Whether both models hold the same content on the surface."""
        if self.surrogate is None or self.surface not in self.surrogate.surfaces:
            return False
        (_, ours, here), (_, theirs, there) = (
            located(model, model.surfaces[self.surface]) for model in (method, self.surrogate)
        )
        return torch.equal(ours[:, here], theirs[:, there])

    def perturb(self, method: Method, sample: Sample, budget: float, rng: torch.Generator) -> Perturbed:
        """As `Attack.perturb`; raises BallastError without a surrogate of the same content."""
        if self.surrogate is None:
            raise BallastError("attack 'transfer' needs another model: call made_on(surrogate) first")
        if not self.is_open(method):
            raise BallastError(f"surface '{self.surface}': the surrogate holds other values there")
        # What `sample` keeps is of the method, not of the surrogate.
        found = super().perturb(self.surrogate, Sample(sample.batches, sample.owned), budget, rng)
        target = surface(method, self.surface)
        gains = self.objective(method, sample, target).at(found.delta, with_gradient=False).gains
        return Perturbed(target.moved(found.delta), found.delta, found.size, gains)
