"""How far learned vectors have collapsed: spectrum, cosines, alignment and uniformity.

Vectors of items are measured without the padding row. Spectrum and effective rank follow Roy & Vetterli
(EUSIPCO 2007), alignment and uniformity Wang & Isola (ICML 2020, arXiv 2005.10242).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BINS = 5
SAMPLE = 4000


@torch.inference_mode()
def degeneration(
    items: Tensor, counts: Tensor, users: Tensor, targets: Tensor, seed: int = 0
) -> dict[str, Any]:
    """Measures of a model at one checkpoint.

    items: (I, D) item vectors, row 0 padding. counts: (I,) training interactions. users: (U, D) states that
    score the target, targets: (U,) int64 its items. `seed` draws the sample of pairs for uniformity.
    """
    vectors, counts = items[1:].double(), counts[1:]  # (I - 1, D)
    spectrum = torch.linalg.svdvals(vectors)  # (D,) falling
    groups = counts.argsort(stable=True).tensor_split(BINS)  # rarest items first
    centred = vectors - vectors.mean(0)
    rng = torch.Generator().manual_seed(seed)
    return {
        "spectrum": [round(value, 6) for value in (spectrum / spectrum[0]).tolist()],
        "spectrum_area": spectrum_area(spectrum),
        "effective_rank": effective_rank(spectrum),
        "cosine": mean_cosine(vectors),
        "cosine_centred": mean_cosine(centred),
        "cosine_by_popularity": [mean_cosine(vectors[group]) for group in groups],
        "cosine_centred_by_popularity": [mean_cosine(centred[group]) for group in groups],
        "norm_by_popularity": [float(vectors[group].norm(dim=1).mean()) for group in groups],
        "mean_count_by_popularity": [float(counts[group].double().mean()) for group in groups],
        "alignment": alignment(users.double(), items[targets].double()),
        "uniformity_items": uniformity(_sampled(vectors, rng)),
        "uniformity_users": uniformity(_sampled(users.double(), rng)),
    }


def spectrum_area(spectrum: Tensor) -> float:
    """Area under sigma_k / sigma_1 over k / D, trapezoids: 1 for equal singular values, near 0 for rank 1.

    >>> spectrum_area(torch.tensor([2.0, 2.0, 2.0]))
    1.0
    """
    return float(torch.trapezoid(spectrum / spectrum[0]) / max(1, len(spectrum) - 1))


def effective_rank(spectrum: Tensor) -> float:
    """exp of the entropy of sigma / sum sigma: between 1 and the number of singular values.

    >>> round(effective_rank(torch.tensor([3.0, 3.0, 0.0])), 6)
    2.0
    """
    return float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs of different rows of (N, D); 0 where there is no pair.

    >>> mean_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]))
    0.3333333432674408
    """
    count = len(vectors)
    if count < 2:
        return 0.0
    unit = functional.normalize(vectors, dim=1)
    # The sum over all pairs is the square of the sum; each row's cosine with itself goes.
    with_itself = unit.square().sum()
    return float((unit.sum(0).square().sum() - with_itself) / (count * (count - 1)))


def alignment(users: Tensor, items: Tensor) -> float:
    """Mean squared distance of (U, D) states and the (U, D) vectors of their targets, both of unit length."""
    return float(
        (functional.normalize(users, dim=1) - functional.normalize(items, dim=1)).square().sum(1).mean()
    )


def uniformity(vectors: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over pairs of different rows (N, D), d the distance at unit length."""
    distances = torch.pdist(functional.normalize(vectors, dim=1))
    return float(torch.logsumexp(-2 * distances.square(), 0) - math.log(max(1, len(distances))))


def _sampled(vectors: Tensor, rng: torch.Generator) -> Tensor:
    """At most SAMPLE rows, the same ones for every model of as many rows."""
    return vectors[torch.randperm(len(vectors), generator=rng)[:SAMPLE]]
