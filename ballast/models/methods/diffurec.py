"""DiffuRec: Li, Sun & Li, DiffuRec: A Diffusion Model for Sequential Recommendation, ACM TOIS 42(3) 2023,
doi 10.1145/3631116, arXiv 2304.00686.

An item is a distribution: at position j the approximator, a Transformer, reads z_j = e_j + lambda_j (x_s +
d_s), with lambda_j ~ N(delta, delta) anew for each dimension, x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps
the noised vector of the item to be predicted, and d_s the embedding of a step s drawn at random. Its state
is the estimate of x_0, trained by the cross entropy of its inner products with all items. Inference starts
from x_T ~ N(0, I): estimate x_0, draw x_{s-1} given both (diffusion.py), and so on; the last estimate scores
the items.

Departs from the paper:
- all positions are trained at once, not each history's last alone (a prefix a target, as published, costs L
  times as much). That needs an x_s of its own at each position, the noised item that follows it: a state
  then sees noised items of its own past and, at its own position, of its own target, as published. At
  inference the chain runs at the last position; those before it are given their next items, known by then,
  noised as in training;
- `reverse_steps` may be fewer than the T = 32 of training, which are all run by default; `draws` passes may
  be averaged (one, as published, is the default);
- beta is linear without the paper's truncation; the approximator is any causal backbone of this package (as
  published: sasrec, 4 layers and heads, dim 128); a padded position never is a key;
- item vectors start at the backbone's standard deviation (0.02 for sasrec), in the authors' code at 1, and
  are not normalised before they are mixed, as they are there: next to noise of unit variance the noised item
  is faint from the first step on, so that little of x_0 is ever in x_s. With delta = .001, as published, x_s
  weighs little in what is read in any case.
Written from the paper, without the authors' code.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.backbones import Backbone, item_vectors
from ballast.models.diffusion import Schedule, checked_reverse_steps, noise_of_histories
from ballast.models.method import DatasetInfo
from ballast.models.sequential import IdMethod


class DiffuRec(IdMethod):
    """A causal backbone, under any loss, that reads items mixed with a noised next item."""

    @dataclass(frozen=True, kw_only=True)
    class Config(IdMethod.Config):
        steps: int = 32
        beta_first: float = 0.01
        beta_last: float = 0.6
        delta: float = 0.001
        reverse_steps: int | None = None
        draws: int = 1
        draw_seed: int = 0

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if type(self.backbone).training_view is not Backbone.training_view:
            raise BallastError(f"model.backbone: diffurec needs a causal one, not {config.backbone['name']}")
        if config.item_gradient == "sparse":
            raise BallastError("model.item_gradient: sparse does not go with noised targets")
        checked_reverse_steps(config.reverse_steps, config.steps)
        self.schedule = Schedule(config.steps, config.beta_first, config.beta_last)
        self.is_sampled, self.chain_steps = True, config.steps
        self.step_vectors = nn.Parameter(torch.empty(config.steps, config.dim).normal_(std=0.02))

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        assert batch.targets is not None
        table, history, device = self.item_table(), batch.history, batch.history.device
        size, length = history.shape
        step = torch.randint(self.config.steps, (size,), generator=rng, device=device)
        noise, spread = (
            torch.randn(size, length, table.shape[1], generator=rng, device=device, dtype=table.dtype)
            for _ in range(2)
        )
        noised = self.schedule.noised(item_vectors(batch.targets, table), noise, step)  # (B, L, D)
        states = self.estimates(history, noised, step, spread)
        row, place = torch.nonzero(batch.targets, as_tuple=True)  # (M,) each
        exclude = torch.cat([history, batch.targets], dim=1)[row] if self.loss.needs_exclude else None
        loss: Tensor = self.loss(states[row, place], batch.targets[row, place], table, exclude, rng, None)
        extra = self.backbone.extra_losses(batch, table, rng)
        if not extra:
            return {"loss": loss}
        return {"loss": torch.stack([loss, *extra.values()]).sum(), "next_item": loss, **extra}

    def estimates(self, history: Tensor, noised: Tensor, step: Tensor, spread: Tensor) -> Tensor:
        """(B, L, D) estimates of x_0 at each position of histories (B, L).

        noised: (B, L, D) x_s of each position's next item. step: (B,) counted from 0. spread: (B, L, D)
        standard normal, what lambda is made of.
        """
        size, length = history.shape
        share = self.config.delta + self.config.delta * spread  # lambda
        mixed = item_vectors(history, self.item_table()) + share * (noised + self.step_vectors[step][:, None])
        # A backbone reads rows of a table: here each position has a row of its own.
        places = torch.arange(1, size * length + 1, device=history.device).view(size, length)
        rows = torch.cat([mixed.new_zeros(1, mixed.shape[2]), mixed.flatten(0, 1)])
        return self.encode(places * (history != 0), rows)

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        state = self.states(batch, rng).mean(0)  # (B, D)
        with torch.autocast(state.device.type, enabled=False):
            return state.float() @ self.item_table().float().T

    def states(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """(draws, B, D) states that score the next item, one a sampled pass.

        Noise is drawn from rng, or, without it, from `draw_seed` and each history: the same at every call,
        in any batch. What the ranks vary by is found by scoring with several generators or seeds.
        """
        places = self.schedule.steps_back(self.config.reverse_steps)
        noise = self._inference_noise(batch.history, 1 + 2 * (len(places) - 1), rng)
        return torch.stack([self._reversed(batch.history, places, drawn) for drawn in noise])

    def _reversed(self, history: Tensor, places: list[int], noise: Tensor) -> Tensor:
        """(B, D) estimates of x_0 at the end of one chain; noise: (1 + 2 S, B, L, D)."""
        following = item_vectors(history.roll(-1, 1), self.item_table())  # (B, L, D), the last is not known
        now = noise[0][:, -1]
        for number, (step, before) in enumerate(pairwise(places)):
            index = torch.full((len(history),), step - 1, device=history.device)
            drawn, spread = noise[1 + 2 * number], noise[2 + 2 * number]
            noised = torch.cat([self.schedule.noised(following, drawn, index)[:, :-1], now[:, None]], dim=1)
            estimate = self.estimates(history, noised, index, spread)[:, -1].to(now.dtype)
            now = self.schedule.reverse(estimate, now, step, before, drawn[:, -1])
        return now

    def _inference_noise(self, history: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
        """(draws, count, B, L, D) standard normal noise, zero where padded."""
        like, draws, (size, length) = self.items.weight, self.config.draws, history.shape
        width = like.shape[1]
        if rng is not None:
            whole = (draws, count, size, length, width)
            return torch.randn(whole, generator=rng, device=like.device, dtype=like.dtype)
        noise = torch.zeros(draws, count, size, length, width, dtype=like.dtype)
        rows = noise_of_histories(
            history, lambda real: (draws, count, max(1, real), width), self.config.draw_seed
        )
        for number, row in enumerate(rows):
            noise[:, :, number, -row.shape[2] :] = row.to(noise.dtype)
        return noise.to(like.device)
