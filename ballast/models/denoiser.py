"""The decoder of a conditional diffusion model over sequences: a condition and a step to an estimate."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.models.layers import Dropout


class Decoder(nn.Module):
    """Steps 0..T-1 to estimates (K, P, D): residual layers with norms behind them, as in the encoder.

    Conditioned on the step alone, `context` attends within c and each step shifts it. Conditioned on
    noised items, `query` attends from those to c.
    """

    def __init__(
        self, dim: int, heads: int, steps: int, dropout: float, reads_noised: bool, is_across_users: bool
    ) -> None:
        super().__init__()
        self.heads, self.is_across_users = heads, is_across_users
        self.step_vectors = nn.Parameter(torch.empty(steps, dim).normal_(std=0.02))
        self.from_step = nn.Linear(dim, dim)
        self.read_noised = nn.Linear(dim, dim) if reads_noised else None
        self.project_query, self.project_key, self.project_value, self.output, self.widen, self.narrow = (
            nn.Linear(dim, dim) for _ in range(6)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def context(self, condition: Tensor, visible: Tensor) -> Tensor:
        """(B, L, D) c after attention within it; across the users of each position in legacy mode."""
        if self.is_across_users:
            swapped = condition.transpose(0, 1)  # (L, B, D)
            visible = visible.new_ones(1, 1, 1, 1)
            return self.norms[0](swapped + self._attend(swapped[None], swapped, visible)[0]).transpose(0, 1)
        found: Tensor = self.norms[0](condition + self._attend(condition[None], condition, visible)[0])
        return found

    def query(self, condition: Tensor, visible: Tensor, noised: Tensor, steps: Tensor) -> Tensor:
        """(K, B, Q, D) the last Q positions' noised items, after attention to c (B, L, D).

        visible: (B, 1, Q, L). Each is read on top of its position's own c, which is all there is to read in
        the noisiest steps: without it, training took many times as long.
        """
        assert self.read_noised is not None
        own = condition[:, -noised.shape[2] :] + self.from_step(self.step_vectors[steps])[:, None, None]
        asked = self.norms[0](own + self.read_noised(noised))
        return asked + self._attend(asked, condition, visible)

    def forward(self, states: Tensor, steps: Tensor) -> Tensor:
        """(K, P, D) estimates at `steps` (K,) from attended states (1 or K, P, D)."""
        if self.read_noised is None:
            states = states + self.dropout(self.from_step(self.step_vectors[steps]))[:, None]
        states = self.norms[1](states)
        fed = self.narrow(self.dropout(functional.gelu(self.widen(states))))
        estimates: Tensor = self.norms[2](states + self.dropout(fed))
        return estimates

    def _attend(self, queries: Tensor, condition: Tensor, visible: Tensor) -> Tensor:
        """(K, B, Q, D) attention of queries to (B, L, D); visible broadcasts to (B, 1, Q, L)."""
        sets, size, places, dim = queries.shape
        query = self.project_query(queries).view(sets, size, places, self.heads, dim // self.heads)
        query = query.permute(1, 3, 0, 2, 4)  # (B, H, K, Q, D / H)
        key, value = (
            project(condition)
            .view(size, -1, self.heads, dim // self.heads)
            .transpose(1, 2)  # (B, H, L, D / H)
            for project in (self.project_key, self.project_value)
        )
        scores = (query * (dim // self.heads) ** -0.5).flatten(2, 3) @ key.transpose(2, 3)  # (B, H, K Q, L)
        scores = scores.unflatten(2, (sets, places)).masked_fill(~visible[:, :, None], -torch.inf)
        weights = self.dropout(scores.softmax(-1)).to(value.dtype)
        mixed = (weights.flatten(2, 3) @ value).unflatten(2, (sets, places))  # (B, H, K, Q, D / H)
        mixed = mixed.permute(2, 0, 3, 1, 4).reshape(sets, size, places, dim)
        return self.dropout(self.output(mixed))
