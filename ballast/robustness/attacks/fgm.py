"""Fast gradient method: Miyato, Dai & Goodfellow, ICLR 2017, arXiv 1605.07725, eq. 5.

Delta = epsilon g / ||g||_2, g the gradient of the gain with respect to the surface; of each row by itself
(`scope: row`) or of the whole table (`scope: table`, the paper's, where a sequence of embeddings is one).
"""

from dataclasses import dataclass
from typing import Literal

from ballast.robustness.attacks import SingleStep


class Adversary(SingleStep):
    """One step along the gradient, scaled to the budget."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SingleStep.Config):
        norm: Literal["l2"] = "l2"
