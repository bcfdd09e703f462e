"""Fast gradient sign method: Goodfellow, Shlens & Szegedy, ICLR 2015, arXiv 1412.6572.

Delta = epsilon sign(g), g the gradient of the gain with respect to the surface: one step to the corner of
the linf ball that a linear model would fear most.
"""

from dataclasses import dataclass
from typing import Literal

from ballast.robustness.attacks import SingleStep


class Adversary(SingleStep):
    """One step along the sign of the gradient."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SingleStep.Config):
        norm: Literal["linf"] = "linf"
