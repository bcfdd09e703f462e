"""Whitening: decorrelated features of unit variance, so that cosine means something.

Raw content vectors crowd in a narrow cone, where every cosine is near one. Source of the shrinkage:
Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004 (the
target, a multiple of the identity; the weight is given here, not estimated).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ matrix. mean: (F,), matrix: (F, F'), both float32."""

    mean: Tensor
    matrix: Tensor

    def apply(self, vectors: Tensor, missing: Tensor | None = None) -> Tensor:
        """(N, F) -> (N, F'); rows that are `missing` (N,) stay zero. Differentiable."""
        whitened = (vectors - self.mean) @ self.matrix  # (N, F')
        return whitened if missing is None else whitened.masked_fill(missing[:, None], 0.0)


def fit(
    vectors: Tensor,
    missing: Tensor,
    shrinkage: float = 1e-3,
    kind: Literal["zca", "pca"] = "zca",
    dim: int | None = None,
) -> Whitening:
    """The whitening of the items that are not missing.

    vectors: (N, F), missing: (N,) bool. The covariance S becomes (1 - shrinkage) S + shrinkage tr(S)/F I,
    with shrinkage in [0, 1]; directions without variance map to zero. `zca` stays closest to the input;
    `pca` rotates to the principal axes, strongest first, and keeps the first `dim` of them.
    Without any item, it is the identity. Raises ValueError for `dim` with `zca`.
    """
    if dim is not None and kind == "zca":
        raise ValueError("zca keeps every dimension; give dim only with pca")
    width = vectors.shape[1]
    present = vectors[~missing].double()  # (P, F); the spectrum spans many orders of magnitude
    if len(present) == 0:
        return Whitening(
            vectors.new_zeros(width), torch.eye(width, dtype=vectors.dtype, device=vectors.device)
        )
    mean = present.mean(dim=0)
    centred = present - mean
    covariance = centred.T @ centred / len(present)  # (F, F)
    isotropic = covariance.trace() / width
    eye = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    values, axes = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * isotropic * eye)
    values, axes = values.flip(0), axes.flip(1)  # strongest first
    floor = values[0].clamp(min=0) * width * torch.finfo(torch.float32).eps
    scale = torch.where(values > floor, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    matrix = axes * scale  # (F, F)
    matrix = matrix @ axes.T if kind == "zca" else matrix[:, :dim]
    return Whitening(mean.to(vectors.dtype), matrix.to(vectors.dtype))


def unit(vectors: Tensor, missing: Tensor) -> Tensor:
    """(I, F) vectors whitened, then scaled to a mean norm of 1; rows that are `missing` (I,) are zero.

    So that a projection of them starts as small as learned vectors do.
    """
    whitened = fit(vectors, missing).apply(vectors, missing)  # (I, F)
    scale = whitened.norm(dim=1)[~missing].mean() if bool(whitened.any()) else 1.0
    return whitened / scale
