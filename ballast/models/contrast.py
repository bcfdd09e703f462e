"""NT-Xent between two views of a batch, many batches (diffusion steps) at once, without its whole matrix.

With z the 2M vectors of both views, of unit length, and c_ij = z_i . z_j / temperature, the loss is the mean
of log sum_{j != i} exp(c_ij) - c_i,pair(i) (Chen et al., A Simple Framework for Contrastive Learning, ICML
2020, arXiv 2002.05709). Three facts make it cheap: the matrix exp(c) is symmetric, so that each pair of rows
is multiplied once; |c| is bounded, so that no row needs its highest entry; and the gradient is known as soon
as the sums are, so that it is made on the way forward and nothing of the matrix outlives it.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ballast.errors import BallastError

# Rows of a tile: enough for products at full speed, few enough to skip nearly half of them.
TILE = 512

# exp(1 / temperature) summed over a million vectors must fit in float32.
LOWEST_TEMPERATURE = 0.02


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    denominator: Literal["exact", "random_features"] = "exact",
    features: int = 256,
    rng: torch.Generator | None = None,
    block: int = 1 << 22,
) -> Tensor:
    """(T,) losses of M pairs each: first[t, m] and second[t, m], (T, M, D) each, are one pair.

    denominator: `exact`, or estimated with so many random `features` drawn from rng, whose cost is linear in
    M. block: how many entries of exp(c) exist at once. Raises BallastError on a temperature under 0.02.
    """
    if temperature < LOWEST_TEMPERATURE:
        raise BallastError(f"temperature: at least {LOWEST_TEMPERATURE}, got {temperature}")
    if first.shape[1] == 0:
        return first.sum((1, 2))  # no pairs: zero, and still part of the graph
    first, second = (functional.normalize(view, dim=-1) for view in (first, second))
    views = torch.cat([first, second], dim=1)  # (T, 2 M, D)
    if denominator == "exact":
        normaliser = log_normaliser(views * temperature**-0.5, block)
    else:
        normaliser = estimated_log_normaliser(views, temperature, features, rng)
    return normaliser - (first * second).sum(-1).mean(1) / temperature


def log_normaliser(vectors: Tensor, block: int = 1 << 22) -> Tensor:
    """(T,) means over i of log sum_{j != i} exp(v_i . v_j), for vectors (T, N, D)."""
    device = vectors.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vectors.dtype
    normaliser: Tensor = _LogNormaliser.apply(vectors, dtype, block)
    return normaliser


class _LogNormaliser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, dtype: torch.dtype, block: int) -> Tensor:
        count = vectors.shape[1]
        steps = max(1, block // count**2)
        parts = [
            _solved(part.detach().to(dtype), vectors.dtype, is_held=count**2 <= max(block, TILE**2))
            for part in vectors.split(steps)
        ]
        ctx.save_for_backward(torch.cat([gradient for _, gradient in parts]))
        return torch.cat([means for means, _ in parts])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None, None], None, None


def _solved(vectors: Tensor, dtype: torch.dtype, is_held: bool) -> tuple[Tensor, Tensor]:
    """(t,) means and their (t, N, D) gradient in `dtype`, from vectors (t, N, D) in that of the products.

    With w_i = 1 / sum_{j != i} exp(c_ij), the gradient of the sum is sum_j exp(c_ij) (w_i + w_j) v_j.
    Tiles are kept between the two passes if they fit, else computed again.
    """
    slices = [slice(start, start + TILE) for start in range(0, vectors.shape[1], TILE)]
    held = {}
    sums = vectors.new_zeros(vectors.shape[:2], dtype=dtype)
    for i, rows in enumerate(slices):
        for columns in slices[i:]:
            tile = _tile(vectors, rows, columns)
            sums[:, rows] += tile.sum(2, dtype=dtype)
            if columns != rows:
                sums[:, columns] += tile.sum(1, dtype=dtype)
            if is_held:
                held[rows.start, columns.start] = tile
    weights = sums.reciprocal().to(vectors.dtype)
    gradient = torch.zeros(vectors.shape, dtype=dtype, device=vectors.device)
    for i, rows in enumerate(slices):
        for columns in slices[i:]:
            tile = held.pop((rows.start, columns.start)) if is_held else _tile(vectors, rows, columns)
            tile *= weights[:, rows, None] + weights[:, None, columns]
            gradient[:, rows] += tile @ vectors[:, columns]
            if columns != rows:
                gradient[:, columns] += tile.transpose(1, 2) @ vectors[:, rows]
    return sums.log().mean(1), gradient.div_(vectors.shape[1])


def _tile(vectors: Tensor, rows: slice, columns: slice) -> Tensor:
    """(t, r, c) exp(v_i . v_j) of these rows and columns, zero where i = j."""
    tile = torch.bmm(vectors[:, rows], vectors[:, columns].transpose(1, 2)).exp_()
    if rows == columns:
        tile.diagonal(dim1=1, dim2=2).zero_()
    return tile


def estimated_log_normaliser(
    vectors: Tensor, temperature: float, features: int, rng: torch.Generator | None
) -> Tensor:
    """(T,) the same of unit vectors (T, N, D) by random Fourier features (Rahimi & Recht, NIPS 2007).

    For unit vectors exp(x . y / s) = exp(1 / s) E cos(w . (x - y)) with w from N(0, I / s). The N terms of
    a sum share their features' sum, and the vector's own term, exactly 1, is left out. Few features may make
    an estimate negative: it is held above the least that a true sum can be.
    """
    count, dim = vectors.shape[1:]
    drawn = torch.randn(dim, features, generator=rng, device=vectors.device, dtype=vectors.dtype)
    with torch.autocast(vectors.device.type, enabled=False):
        angles = vectors @ (drawn * temperature**-0.5)  # (T, N, R)
        waves = torch.cat([angles.cos(), angles.sin()], dim=2)
        sums = (waves * waves.sum(1, keepdim=True)).sum(2) / features - 1  # (T, N)
    least = (count - 1) * math.exp(-2 / temperature)
    return (sums.clamp(min=least).log() + 1 / temperature).mean(1)
