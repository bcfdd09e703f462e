"""From pixels to a method's own rows: the picture encoder, and what a method makes of its vectors.

A method may whiten, scale or shift the features that it is given before it keeps them. What it did is
found from its clean rows: the features times a constant, the same whitened, or any affine map of them where
there are enough items to know it. A method that does something else says so in a differentiable
`feature_rows(modality, vectors (N, F)) -> (N, F')`. Each way is checked against the clean rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ballast.content import whitening
from ballast.content.encoder import ImageEncoder, encode
from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.robustness.surface import Surface

Lift = Callable[[Tensor], Tensor]

# Largest error of a row that counts as the same, as a share of the mean norm of rows.
TOLERANCE = 1e-3

BATCH = 128


@dataclass(frozen=True)
class Pictures:
    """A catalogue's pictures and the encoder that made its features.

    pixels: (P, 3, S, S) uint8; items: (P,) int64 their item ids, both as `content.image.read_pictures` gives
    them (ids are rows of the items table, from 1); vectors: (I, F) features and missing: (I,) marks as the
    method was given them.
    """

    encoder: ImageEncoder
    pixels: Tensor
    items: Tensor
    vectors: Tensor
    missing: Tensor

    def check(self) -> None:
        """Raise BallastError unless the encoder gives the features of the pictures, as it once did."""
        if len(self.items) == 0:
            raise BallastError("pixels: the catalogue has no pictures")
        few = slice(0, BATCH)
        given = self.vectors[self.items[few]]
        error = (encode(self.encoder, self.pixels[few]) - given.cpu()).norm(dim=1).max()
        if float(error) > TOLERANCE * float(given.norm(dim=1).mean()):
            raise BallastError("pixels: the features are not this encoder's; run the features stage anew")


def lift_of(method: Method, modality: str, pictures: Pictures, rows: Surface) -> Lift:
    """The differentiable map from (N, F) features to the method's (N, F') rows of that modality.

    Raises BallastError where none of the known ones gives the method's clean rows.
    """
    vectors, missing = pictures.vectors, pictures.missing.clone()
    missing[0] = True
    known, values = vectors[~missing], rows.values[~missing]
    own: Any = getattr(method, "feature_rows", None)
    if own is not None:
        candidates: list[Lift] = [lambda given: own(modality, given)]
    else:
        white = whitening.fit(vectors, missing)
        candidates = [_scaled(lambda given: given, known, values), _scaled(white.apply, known, values)]
        if len(known) > known.shape[1] + 1:
            candidates.append(_affine(known, values))
    unit = float(values.norm(dim=1).mean())
    for lift in candidates:
        with torch.no_grad():
            made = lift(known)
        if made.shape == values.shape and float((made - values).norm(dim=1).max()) <= TOLERANCE * unit:
            return lift
    raise BallastError(
        f"{type(method).__name__}: what it makes of its {modality} features is no affine map that the clean "
        "rows tell; define feature_rows(modality, vectors) in the method"
    )


def _scaled(inner: Lift, known: Tensor, values: Tensor) -> Lift:
    """`inner` times the constant that brings it closest to the method's rows."""
    made = inner(known)
    if made.shape != values.shape:
        return inner
    factor = float((made.double() * values).sum() / made.double().square().sum().clamp(min=1e-300))
    return lambda given: inner(given) * factor


def _affine(known: Tensor, values: Tensor) -> Lift:
    """The affine map that fits best, by least squares in float64."""
    ones = torch.ones(len(known), 1, dtype=torch.float64, device=known.device)
    solved = torch.linalg.lstsq(torch.cat([known.double(), ones], dim=1), values.double()).solution
    matrix, shift = solved[:-1].to(known.dtype), solved[-1].to(known.dtype)
    return lambda given: given @ matrix + shift
