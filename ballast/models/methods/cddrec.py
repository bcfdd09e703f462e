"""CDDRec: Wang, Liu, Yang & Yu, Conditional Denoising Diffusion for Sequential Recommendation, PAKDD 2024,
doi 10.1007/978-981-97-2262-4_13, arXiv 2304.11433.

A causal encoder gives c, a decoder mu_t = Dec(c, t) for each of T steps, and x_t_hat = mu_t + sqrt(beta~_t)
eps is drawn to the noised next item z_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (diffusion.py). With t
from 0, loss = sum_t 1 / (t + 1) [L_cd + L_cd(augmented) + .3 L_in + .3 L_cross]: L_cd = -log sigmoid(x_t_hat
. z_t) - log sigmoid(-x_t_hat . z_t^-) with one negative, L_in NT-Xent of x_t_hat and z_t, L_cross NT-Xent of
two augmented views (contrast.py). Items are scored by mu_0 . e_i. Beside the histories, L_cd also is of
views of them: cropped, masked or reordered. All T steps are one batched pass.

Departs from the paper: attention from c to one step embedding has one key, whose weight is always 1, so it
is computed as the linear map that remains; its output before that has no step in it and is computed once for
all T.

Departs from the authors' code, each with the field that restores it:
- attention runs within a user's history, not across the batch: `legacy_batch_attention`, which no decoder
  mask applies to;
- the decoder sees no later item and no padding: `decoder_mask: none` (the leak that is left where the
  attention alone is mended);
- every loss of a view counts its positions alike, not by their item ids: `aug_mask: item_id`;
- all three augmentations are drawn, where only one ever was: `augmentations: [reorder]`;
- a cropped view's position keeps the target of the item it holds; a reordered one's is that of its place,
  and the position is left out where reordering has shown it: `aug_targets: as_placed` (the targets stay
  where they were, so that a cropped view's belong to other items);
- the cross-view contrast is of two augmented views: `cross_views: original` (one of them the history
  itself);
- padding is no part of it: `contrast_positions: all`, for views whose targets stay in place;
- negatives are items, never the mask: `mask_as_negative`;
- inference is the mean: `inference_noise` (one draw at the first step);
- inner products: `similarity: cosine`; seen items keep their scores: `zero_seen`, of the last `max_len` (the
  code: of the whole history; in the unmasked ranks alone they beat what scores below 0).
- Views are of the last `max_len` items, not made of the whole history and cut to them.

Beyond the code: it never shows the decoder a noised item, so T steps are T biases. `conditioning: full`
does: a noised target of unit variance, on top of its position's c, queries c, the decoder
estimates x_0 itself, and inference runs the reverse chain from noise in `reverse_steps` steps, averaging
`draws` passes. The chain starts from pure noise: choose beta_last so that abar_T is near 0. `steps: 1` with
`noise: false` has no diffusion left.
`negatives: noised` noises the negative as the target is. `divergence: kl` puts minus the KL divergence of
unit-variance Gaussians around mu_t and sqrt(abar_t) x_0 in place of the inner product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ballast.data.sequences import Batch, sample_negatives
from ballast.errors import BallastError
from ballast.models import backbones
from ballast.models.contrast import nt_xent
from ballast.models.denoiser import Decoder
from ballast.models.diffusion import Schedule, checked_reverse_steps, noise_of_histories
from ballast.models.layers import attention_mask, item_rows, small_embedding
from ballast.models.method import DatasetInfo, Method
from ballast.models.views import View, augmented, everywhere, index_in


class Noise(NamedTuple):
    """Standard normal noise of a step: of each view's estimates (T, P, D), of targets, negatives (T, M, D).

    What a setting leaves without noise has none drawn: (T, 0, D).
    """

    estimates: list[Tensor]
    target: Tensor
    negative: Tensor


class Cddrec(Method):
    """A conditional encoder and a step-wise decoder, drawn to the noised next item at every step."""

    surfaces = {"items": "items.weight"}

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        backbone: dict[str, Any] = field(default_factory=lambda: {"name": "sasrec", "layers": 1, "heads": 4})
        dim: int = 128
        max_len: int = 20
        heads: int = 4
        dropout: float = 0.2
        steps: int = 20
        beta_first: float = 1e-4
        beta_last: float = 0.04
        noise: bool = True
        step_weights: Literal["inverse", "equal"] = "inverse"
        divergence: Literal["dot", "kl"] = "dot"
        negatives: Literal["clean", "noised"] = "clean"
        contrast: Literal["exact", "random_features"] = "exact"
        features: int = 256
        temperature: float = 0.5
        in_view_weight: float = 0.3
        cross_view_weight: float = 0.3
        cross_views: Literal["augmented", "original"] = "augmented"
        contrast_positions: Literal["real", "all"] = "real"
        augmentations: list[Literal["crop", "mask", "reorder"]] = field(
            default_factory=lambda: ["crop", "mask", "reorder"]
        )
        crop: float = 0.6
        mask: float = 0.3
        reorder: float = 0.6
        aug_targets: Literal["aligned", "as_placed"] = "aligned"
        aug_mask: Literal["real", "item_id"] = "real"
        legacy_batch_attention: bool = False
        decoder_mask: Literal["causal", "none"] = "causal"
        mask_as_negative: bool = False
        inference_noise: bool = False
        similarity: Literal["dot", "cosine"] = "dot"
        zero_seen: bool = False
        conditioning: Literal["step", "full"] = "step"
        reverse_steps: int | None = None
        draws: int = 1
        draw_seed: int = 0

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        _check(config)
        self.is_full = config.conditioning == "full"
        self.is_sampled = self.is_full or config.inference_noise
        self.chain_steps = config.steps if self.is_full else 0
        self.schedule = Schedule(config.steps, config.beta_first, config.beta_last, config.noise)
        self.items = small_embedding(data.num_items + 1, config.dim)
        has_mask = "mask" in config.augmentations or config.mask_as_negative
        self.mask = nn.Parameter(torch.empty(1 if has_mask else 0, config.dim).normal_(std=0.02))
        self.encoder = backbones.build(
            config.backbone, config.dim, config.max_len, config.dropout, "model.backbone"
        )
        self.decoder = Decoder(
            config.dim,
            config.heads,
            config.steps,
            config.dropout,
            self.is_full,
            config.legacy_batch_attention,
        )

    def item_table(self) -> Tensor:
        """(I, D) vectors of all items, row 0 zero."""
        return self.items.weight

    # Training

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        views = self.views(batch, rng)
        rows = views[0].place // batch.history.shape[1]  # (M,) the user of each target
        negatives = self._negatives(batch, rows, rng)
        noise = self._noise([len(view.place) for view in views], len(rows), rng)
        return self.loss(batch, views, negatives, noise, rng)

    def loss(
        self, batch: Batch, views: list[View], negatives: Tensor, noise: Noise, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The loss and its parts, given all that is drawn: the views, (M,) negatives, and the noise.

        The M targets are those of the first view, the histories. Every part is (T,) until the end.
        """
        assert batch.targets is not None
        table = torch.cat([self.items.weight, self.mask])  # (I + 1, D), the mask behind the items
        goal = item_rows(batch.targets.flatten()[views[0].place], table, padding=0)  # (M, D)
        target, negative = self._compared(goal, item_rows(negatives, table), noise)
        estimates, losses = [], []
        for view, drawn in zip(views, noise.estimates, strict=True):
            index = index_in(views[0].origin, view.origin, batch.history.numel())  # (P,)
            estimates.append(self._estimates(view, table, goal[index], drawn))
            is_whole = view is views[0]
            losses.append(self._divergence(estimates[-1], target, negative, None if is_whole else index))
        parts = {"next_item": _weighted(losses[0], views[0].weights)}
        if len(views) > 1:
            weights = torch.cat([view.weights for view in views[1:]])
            parts["augmented"] = _weighted(torch.cat(losses[1:], dim=1), weights)
            parts["cross_view"] = self.config.cross_view_weight * self._cross_view(views, estimates, rng)
        parts["in_view"] = self.config.in_view_weight * self._in_view(views[0], estimates[0], target, rng)
        scale = torch.ones_like(parts["in_view"])
        if self.config.step_weights == "inverse":
            scale = scale / torch.arange(1, len(scale) + 1, device=scale.device)
        summed = {name: (part * scale).sum() for name, part in parts.items()}
        return {"loss": torch.stack(list(summed.values())).sum(), **summed}

    def views(self, batch: Batch, rng: torch.Generator) -> list[View]:
        """The histories and, if there are augmentations, one or two augmented views of them."""
        assert batch.targets is not None
        is_target = batch.targets != 0
        place = torch.nonzero(is_target.flatten())[:, 0]
        found = [View(batch.history, place, place, torch.ones(len(place), device=place.device))]
        if self.config.contrast_positions == "all":
            found = [everywhere(found[0], batch.history)]
        count = 1 if self.config.cross_views == "original" else 2
        for _ in range(count if self.config.augmentations else 0):
            found.append(self._augmented(batch.history, is_target, rng))
        return found

    def _augmented(self, history: Tensor, is_target: Tensor, rng: torch.Generator) -> View:
        config, mask_id = self.config, len(self.items.weight)
        rates = {name: getattr(config, name) for name in config.augmentations}
        view = augmented(history, is_target, rates, mask_id, config.aug_targets == "aligned", rng)
        if config.contrast_positions == "all":
            view = everywhere(view, history)
        if config.aug_mask == "item_id":
            view = view._replace(weights=view.weights * view.history.flatten()[view.place])
        return view

    def _negatives(self, batch: Batch, rows: Tensor, rng: torch.Generator) -> Tensor:
        """(M,) one item for each target, outside its user's sequence."""
        assert batch.targets is not None
        count = len(self.items.weight) - 1 + int(self.config.mask_as_negative)
        exclude = torch.cat([batch.history, batch.targets], dim=1)[rows]  # (M, 2 L)
        return sample_negatives((len(rows), 1), count, exclude, rng)[:, 0]

    def _noise(self, positions: list[int], targets: int, rng: torch.Generator) -> Noise:
        like, steps = self.items.weight, self.config.steps

        def drawn(count: int) -> Tensor:
            shape = (steps, count, like.shape[1])
            return torch.randn(shape, generator=rng, device=like.device, dtype=like.dtype)

        is_target_noised = not self.is_full
        is_negative_noised = is_target_noised and self.config.negatives == "noised"
        return Noise(
            [drawn(count) for count in positions],
            drawn(targets if is_target_noised else 0),
            drawn(targets if is_negative_noised else 0),
        )

    def _estimates(self, view: View, table: Tensor, goal: Tensor, noise: Tensor) -> Tensor:
        """(T, P, D) x_t_hat at the view's positions, whose targets are goal (P, D): all steps at once.

        noise: (T, P, D), of the estimates, or with full conditioning of what the decoder is shown.
        """
        steps = torch.arange(self.config.steps, device=table.device)
        condition = self.encoder(view.history, table)  # (B, L, D)
        visible = self._visible(view.history)
        if not self.is_full:
            context = self.decoder.context(condition, visible).flatten(0, 1)[view.place]  # (P, D)
            mean = self._decoded(context[None], steps).to(table.dtype)
            if self.config.divergence == "kl":
                return mean
            return torch.addcmul(mean, self.schedule.posterior_std.view(-1, 1, 1), noise)
        # Not for the gradient: items would learn to survive the noise.
        noised = self.schedule.noised(_unit_variance(goal.detach()), noise)
        grid = noised.new_zeros(len(steps), view.history.numel(), noised.shape[2])
        grid = grid.index_copy(1, view.place, noised).view(len(steps), *condition.shape)
        queried = self.decoder.query(condition, visible, grid, steps)  # (T, B, L, D)
        return self._decoded(queried.flatten(1, 2)[:, view.place], steps).to(table.dtype)

    def _decoded(self, states: Tensor, steps: Tensor) -> Tensor:
        """(T, P, D) the decoder's estimates, computed again on the way back rather than kept.

        What it leaves between its layers is a third of a training step's memory, and 4 % of its arithmetic.
        """
        estimates: Tensor = checkpoint(self.decoder, states, steps, use_reentrant=False)
        return estimates

    def _visible(self, history: Tensor) -> Tensor:
        """(B, 1, L, L) which positions of the condition each position of the decoder sees."""
        if self.config.decoder_mask == "none":
            size, length = history.shape
            return torch.ones(size, 1, length, length, dtype=torch.bool, device=history.device)
        return attention_mask(history != 0)

    def _compared(self, goal: Tensor, other: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(T or 1, M, D) targets and negatives that the estimates are compared with."""
        is_noised = self.config.negatives == "noised"
        if self.is_full:  # the estimates are of x_0 itself
            return goal[None], other[None]
        if self.config.divergence == "kl":  # of the distributions' means
            signal = self.schedule.signal.view(-1, 1, 1)
            return signal * goal, signal * other if is_noised else other[None]
        target = self.schedule.noised(goal, noise.target)
        return target, self.schedule.noised(other, noise.negative) if is_noised else other[None]

    def _divergence(self, estimate: Tensor, target: Tensor, negative: Tensor, index: Tensor | None) -> Tensor:
        """(T, P) L_cd of estimates (T, P, D); index: (P,) which of the M targets is each one's."""
        if index is not None:
            target, negative = target.index_select(1, index), negative.index_select(1, index)
        if self.config.divergence == "kl":
            near, far = ((estimate - goal).square().sum(-1) / -2 for goal in (target, negative))
        else:
            near, far = ((estimate * goal).sum(-1) for goal in (target, negative))
        return functional.softplus(-near) + functional.softplus(far)

    def _in_view(self, view: View, estimate: Tensor, target: Tensor, rng: torch.Generator) -> Tensor:
        """(T,) NT-Xent of the estimates and their targets; padding never is a target."""
        if self.config.contrast_positions == "all":
            real = torch.nonzero(view.weights)[:, 0]
            estimate, target = estimate.index_select(1, real), target.index_select(1, real)
        return self._nt_xent(estimate, target.expand_as(estimate), rng)

    def _cross_view(self, views: list[View], estimates: Sequence[Tensor], rng: torch.Generator) -> Tensor:
        """(T,) NT-Xent of the last two views, at the targets that both have."""
        place = index_in(views[-2].origin, views[-1].origin, views[0].history.numel())
        shared = torch.nonzero(place >= 0)[:, 0]
        first = estimates[-2].index_select(1, place[shared])
        return self._nt_xent(first, estimates[-1].index_select(1, shared), rng)

    def _nt_xent(self, first: Tensor, second: Tensor, rng: torch.Generator) -> Tensor:
        config = self.config
        return nt_xent(first, second, config.temperature, config.contrast, config.features, rng)

    # Inference

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        table = self.item_table()
        state = self.states(batch, rng).mean(0)  # (B, D)
        with torch.autocast(state.device.type, enabled=False):
            state, items = state.float(), table.float()
            if self.config.similarity == "cosine":
                state, items = functional.normalize(state, dim=-1), functional.normalize(items, dim=-1)
            scores = state @ items.T
        return scores.scatter(1, batch.history, 0.0) if self.config.zero_seen else scores

    def states(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """(draws, B, D) states that score the next item, one a sampled pass; one in all without sampling.

        Noise is drawn from rng, or, without it, from `draw_seed` and each history: the same at every call,
        in any batch. What a method's ranks vary by is found by scoring with several generators or seeds.
        """
        history, table = batch.history, self.item_table()
        condition = self.encoder(history, table)
        if self.is_full:
            return self._reversed(history, condition, rng)
        context = self.decoder.context(condition, self._visible(history))[:, -1]
        first = torch.zeros(1, dtype=torch.int64, device=history.device)
        mean: Tensor = self.decoder(context[None], first).to(table.dtype)  # (1, B, D)
        if not self.config.inference_noise:
            return mean
        return mean + self.schedule.posterior_std[0] * self._inference_noise(history, 1, rng)[:, 0]

    def _reversed(self, history: Tensor, condition: Tensor, rng: torch.Generator | None) -> Tensor:
        """(draws, B, D) estimates of x_0 at the end of the reverse chain, of the last position alone."""
        visible = self._visible(history)[:, :, -1:]
        places = self.schedule.steps_back(self.config.reverse_steps)
        noise = self._inference_noise(history, len(places) - 1, rng)
        now = noise[:, 0]
        estimate = now
        for number, (step, before) in enumerate(pairwise(places), start=1):
            index = torch.tensor([step - 1], device=history.device).expand(len(now))
            queried = self.decoder.query(condition, visible, now[:, :, None], index)[:, :, 0]
            estimate = self.decoder(queried, index).to(now.dtype)
            if before:
                now = self.schedule.reverse(_unit_variance(estimate), now, step, before, noise[:, number])
        return estimate

    def _inference_noise(self, history: Tensor, steps: int, rng: torch.Generator | None) -> Tensor:
        """(draws, steps, B, D) standard normal noise."""
        shape, like = (self.config.draws, steps, self.config.dim), self.items.weight
        if rng is not None:
            whole = (*shape[:2], len(history), shape[2])
            return torch.randn(whole, generator=rng, device=like.device, dtype=like.dtype)
        rows = noise_of_histories(history, lambda _: shape, self.config.draw_seed)
        return torch.stack(rows, dim=2).to(like)


def _check(config: Any) -> None:
    if config.dim % config.heads:
        raise BallastError(f"model.heads: dim {config.dim} is not a multiple of {config.heads}")
    if config.conditioning == "full" and not config.noise:
        raise BallastError("model.noise: conditioning: full without noise would be shown the target")
    if config.conditioning == "full" and config.legacy_batch_attention:
        raise BallastError("model.legacy_batch_attention: belongs to conditioning: step")
    if config.conditioning == "full" and (config.negatives == "noised" or config.inference_noise):
        raise BallastError("model.negatives, model.inference_noise: belong to conditioning: step")
    if config.contrast_positions == "all" and config.augmentations and config.aug_targets == "aligned":
        raise BallastError(
            "model.contrast_positions: all needs aug_targets: as_placed, where positions pair up"
        )
    if config.draws > 1 and config.conditioning == "step" and not config.inference_noise:
        raise BallastError("model.draws: more than 1 needs conditioning: full or inference_noise")
    if config.draws < 1:
        raise BallastError(f"model.draws: at least 1, got {config.draws}")
    checked_reverse_steps(config.reverse_steps, config.steps)


def _weighted(each: Tensor, weights: Tensor) -> Tensor:
    """(T,) means of (T, P) losses, weighted by (P,)."""
    return (each * weights).sum(1) / weights.sum().clamp(min=1e-6)


def _unit_variance(vectors: Tensor) -> Tensor:
    """Vectors of length sqrt(D): as large as the noise that they are mixed with."""
    scaled: Tensor = functional.normalize(vectors, dim=-1) * vectors.shape[-1] ** 0.5
    return scaled
