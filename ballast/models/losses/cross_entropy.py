"""Cross entropy of the softmax over the full catalogue, without ever holding its logits.

The gradient of a softmax is known as soon as its logits are, so each block of positions adds its share
to both gradients in the forward pass: three matrix products in all and no recomputation. With so many
items that a block would hold a few positions only, blocks are of items instead: a first pass adds up the
normaliser, a second computes the logits anew, four products in all. Memory is one block of logits, whatever
the catalogue and the batch. Under autocast the products with the item table take its precision; sums over
blocks are kept in the table's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ballast.models.losses import Loss

# A block of fewer positions multiplies slowly: both gradients are read again for each.
FEWEST_POSITIONS = 128


class Objective(Loss):
    """Mean of log sum_i exp(h . e_i) - h . e_target; `block` is how many logits exist at once."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        block: int = 1 << 22

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        table: Tensor,
        exclude: Tensor | None,
        rng: torch.Generator,
        weights: Tensor | None = None,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
        is_wide = self.config.block // len(table) < min(FEWEST_POSITIONS, len(targets))
        blocked = _ByItems if is_wide else _ByPositions
        shares = None if weights is None else (weights / weights.sum()).to(table.dtype)
        loss: Tensor = blocked.apply(hidden, table, targets, shares, dtype, self.config.block)
        return loss


class _Blocked(torch.autograd.Function):
    """What both ways share: gradients are made on the way forward, and scaled on the way back.

    `shares` are (M,) what each position's loss counts, adding up to 1; None if all count the same.
    """

    @staticmethod
    def finished(
        ctx: Any, losses: Tensor, shares: Tensor | None, grad_hidden: Tensor, grad_items: Tensor
    ) -> Tensor:
        """() the loss, after the gradients (whose items' part holds the shares already) were kept."""
        if shares is None:
            count = max(1, len(losses))
            ctx.save_for_backward(grad_hidden.div_(count), grad_items.div_(count), None)
            return losses.sum() / count
        ctx.save_for_backward(grad_hidden.mul_(shares[:, None]), grad_items, losses)
        return losses @ shares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_items, losses = ctx.saved_tensors
        scale = grad_outputs[0]
        grad_shares = None if losses is None else losses * scale
        return grad_hidden * scale, grad_items * scale, None, grad_shares, None, None


def _weighted(states: Tensor, shares: Tensor | None) -> Tensor:
    """(m, D) states, each times its share."""
    return states if shares is None else (states * shares[:, None]).to(states.dtype)


class _ByPositions(_Blocked):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        shares: Tensor | None,
        dtype: torch.dtype,
        block: int,
    ) -> Tensor:
        states, items = hidden.detach().to(dtype), table.detach().to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_items = torch.zeros_like(table)
        losses = torch.empty(len(targets), dtype=table.dtype, device=hidden.device)
        size = max(1, min(block // len(table), len(targets)))
        buffer = states.new_empty((size, len(table)))
        place = torch.arange(size, device=hidden.device) * len(table)  # (m,) start of each row
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            part, goal = states[rows], targets[rows, None]
            share = buffer[: len(part)]  # (m, I): logits, then probabilities, then their gradient
            torch.mm(part, items.T, out=share)
            share[:, 0] = -torch.inf
            goal_logit = share.gather(1, goal)
            torch.softmax(share, dim=1, out=share)
            likelihood = share.gather(1, goal)
            losses[rows] = -_log(likelihood, goal_logit, part, items, table.dtype)[:, 0]
            # Not scatter_: its deterministic kernel copies the whole block, twice.
            share.view(-1).index_copy_(0, place[: len(part)] + goal[:, 0], (likelihood - 1)[:, 0])
            grad_hidden[rows] = share @ items
            grad_items += share.T @ _weighted(part, None if shares is None else shares[rows])
        return _Blocked.finished(ctx, losses, shares, grad_hidden, grad_items)


class _ByItems(_Blocked):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        shares: Tensor | None,
        dtype: torch.dtype,
        block: int,
    ) -> Tensor:
        states, items = hidden.detach().to(dtype), table.detach().to(dtype)
        weighted = _weighted(states, shares)
        size = max(1, block // max(1, len(targets)))
        # The highest logit apart from the sum over exp(logit - highest): one number would round both.
        top = hidden.new_full((len(targets), 1), torch.finfo(table.dtype).min, dtype=table.dtype)
        weight = torch.zeros_like(top)
        for start in range(0, len(table), size):
            logits = _logits(states, items, start, size, table.dtype)
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            weight = weight * (top - higher).exp_() + logits.sub_(higher).exp_().sum(1, keepdim=True)
            top = higher
        grad_hidden, grad_items = torch.zeros_like(hidden), torch.empty_like(table)
        place = torch.arange(len(targets), device=hidden.device)
        for start in range(0, len(table), size):
            logits = _logits(states, items, start, size, table.dtype)
            share = logits.sub_(top).exp_().div_(weight)  # (M, b)
            is_here = (targets >= start) & (targets < start + share.shape[1])
            goal = place * share.shape[1] + (targets - start) * is_here
            share.view(-1).index_add_(0, goal, is_here.to(share.dtype), alpha=-1)
            share = share.to(dtype)
            grad_hidden += share @ items[start : start + size]
            grad_items[start : start + size] = share.T @ weighted
        goal_logit = (states.to(table.dtype) * items[targets].to(table.dtype)).sum(1)
        losses = top[:, 0] - goal_logit + weight[:, 0].log()
        return _Blocked.finished(ctx, losses, shares, grad_hidden, grad_items)


def _logits(states: Tensor, items: Tensor, start: int, size: int, dtype: torch.dtype) -> Tensor:
    """(M, b) logits of a block of items in `dtype`, padding at -inf."""
    logits = (states @ items[start : start + size].T).to(dtype)
    if start == 0:
        logits[:, 0] = -torch.inf
    return logits


def _log(likelihood: Tensor, goal_logit: Tensor, part: Tensor, items: Tensor, dtype: torch.dtype) -> Tensor:
    """(m, 1) log-likelihoods in `dtype`.

    log p is exact unless p is about to underflow; such rows are rare, and done over by their logits.
    """
    tiny = torch.finfo(likelihood.dtype).tiny * 2**23
    likelihood = likelihood.to(dtype)
    log_likelihood = likelihood.clamp(min=tiny).log()
    if part.device.type == "cuda":  # looking would make the GPU wait; a softmax there keeps float32 inside
        return log_likelihood
    if bool((likelihood < tiny).any()):
        rows = torch.nonzero(likelihood[:, 0] < tiny)[:, 0]
        logits = (part[rows] @ items.T).to(dtype)
        logits[:, 0] = -torch.inf
        log_likelihood[rows, 0] = goal_logit[rows, 0].to(dtype) - logits.logsumexp(1)
    return log_likelihood
