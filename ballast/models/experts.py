"""Frozen features to item vectors by a mixture of whitening experts with a noisy gate.

UniSRec's adaptor (Hou et al., KDD 2022, arXiv 2206.05941, equations 1 to 3), which ANT uses once a modality
(Peng et al., arXiv 2309.10195). With x one item's features,

  out = sum_k g_k W_k (dropout(x) - b_k),   g = softmax(x V + z * (softplus(x N) + 0.01)),   z ~ N(0, 1)

z is drawn in training only; V and N start at zero, so that all experts start alike in weight. An `affine`
expert is W_k x + c_k, without dropout.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.models.layers import Dropout

Initialisation = Literal["normal", "default"]

LEAST_NOISE = 1e-2


class Experts(nn.Module):
    """K experts from F features to D dimensions.

    initialisation: `normal` draws W from N(0, 0.02), `default` as torch's Linear does, uniformly within
    1 / sqrt(F).
    """

    def __init__(
        self,
        features: int,
        dim: int,
        experts: int,
        dropout: float,
        is_affine: bool,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        self.is_affine = is_affine
        self.dropout = Dropout(0.0 if is_affine else dropout)
        self.weight = nn.Parameter(torch.empty(experts, features, dim))
        if initialisation == "normal":
            nn.init.normal_(self.weight, std=0.02)
        else:
            nn.init.uniform_(self.weight, -1 / math.sqrt(features), 1 / math.sqrt(features))
        self.shift = nn.Parameter(torch.zeros(experts, dim if is_affine else features))
        self.gate = nn.Parameter(torch.zeros(features, experts))
        self.noise = nn.Parameter(torch.zeros(features, experts))

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, F) features to (N, D)."""
        # Each expert with a mask of its own.
        inputs = self.dropout(vectors.expand(len(self.weight), *vectors.shape))  # (K, N, F)
        if self.is_affine:
            made = torch.bmm(inputs, self.weight) + self.shift[:, None]
        else:
            made = torch.bmm(inputs - self.shift[:, None], self.weight)  # (K, N, D)
        return torch.einsum("nk,knd->nd", self._gates(vectors).to(made.dtype), made)

    def _gates(self, vectors: Tensor) -> Tensor:
        """(N, K) what each expert counts, adding up to 1."""
        logits = vectors @ self.gate
        if self.training:
            scale = functional.softplus(vectors @ self.noise) + LEAST_NOISE
            logits = logits + torch.randn_like(logits) * scale
        return logits.float().softmax(-1)
