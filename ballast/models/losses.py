"""Next-item losses, each a mean over real positions; all work with any backbone.

Arguments are alike: hidden (M, D) float states of M real positions, targets (M,) int64 item ids,
table (I, D) item vectors whose row 0 is padding, exclude (M, X) int64 items that must not be drawn as
negatives, rng the generator of the negatives (on the device of `hidden`).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.data.sequences import sample_negatives
from ballast.errors import BallastError
from ballast.strict import Strict, parse


class Loss(nn.Module):
    """Base of the losses; `needs_exclude` tells whether `exclude` is read."""

    needs_exclude: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        """Settings of the loss; `name` chooses it."""

        name: str

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, hidden: Tensor, targets: Tensor, table: Tensor, exclude: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        raise NotImplementedError


class CrossEntropy(Loss):
    """Softmax over the full catalogue, in blocks of positions; `block` is how many logits exist at once.

    Under autocast the products with the item table take its precision; sums are kept in float32.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        block: int = 1 << 23

    def forward(
        self, hidden: Tensor, targets: Tensor, table: Tensor, exclude: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
        loss: Tensor = _BlockedCrossEntropy.apply(hidden, table, targets, dtype, self.config.block)
        return loss


class _BlockedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of hidden @ table.T whose (M, I) logits never exist at once.

    The gradient of a softmax is known as soon as its logits are, so each block of positions adds its
    share to both gradients in the forward pass: three matrix products in all and no recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype, block: int
    ) -> Tensor:
        states, items = hidden.detach().to(dtype), table.detach().to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_table = torch.zeros_like(table)
        total = torch.zeros((), dtype=table.dtype, device=hidden.device)
        size = max(1, block // len(table))
        for start in range(0, len(targets), size):
            part, goal = states[start : start + size], targets[start : start + size, None]
            share = part @ items.T  # (m, I): logits, then probabilities, then their gradient
            share[:, 0] = -torch.inf
            goal_logit = share.gather(1, goal)
            torch.softmax(share, dim=1, out=share)
            likelihood = share.gather(1, goal).to(table.dtype)
            # log p is exact unless p is about to underflow; such rows are rare, and done by the logits.
            tiny = torch.finfo(table.dtype).tiny * 2**23
            log_likelihood = likelihood.clamp(min=tiny).log()
            if bool((likelihood < tiny).any()):
                rows = torch.nonzero(likelihood[:, 0] < tiny)[:, 0]
                logits = (part[rows] @ items.T).to(table.dtype)
                logits[:, 0] = -torch.inf
                log_likelihood[rows, 0] = goal_logit[rows, 0].to(table.dtype) - logits.logsumexp(1)
            total -= log_likelihood.sum()
            share.scatter_add_(1, goal, torch.full_like(goal_logit, -1.0))
            grad_hidden[start : start + size] = share @ items
            grad_table += share.T @ part
        count = max(1, len(targets))
        ctx.save_for_backward(grad_hidden.div_(count), grad_table.div_(count))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_table * grad_outputs[0], None, None, None


class SampledSoftmax(Loss):
    """Softmax over the target and N uniform negatives, log-Q corrected (Bengio & Senecal, 2008).

    `sharing: batch` draws one set of negatives for all positions, which makes the scores one matrix
    product; `position` draws anew for each. A negative that is the position's target is masked out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 256
        sharing: Literal["batch", "position"] = "batch"
        is_corrected: bool = True

    def forward(
        self, hidden: Tensor, targets: Tensor, table: Tensor, exclude: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        num_items, count = len(table) - 1, self.config.negatives
        positive = (hidden * table[targets]).sum(-1, keepdim=True)  # (M, 1)
        rows = 1 if self.config.sharing == "batch" else len(targets)
        drawn = torch.randint(1, num_items + 1, (rows, count), generator=rng, device=hidden.device)
        if rows == 1:
            negative = hidden @ table[drawn[0]].T  # (M, N)
        else:
            negative = torch.einsum("md,mnd->mn", hidden, table[drawn])
        if self.config.is_corrected:  # each negative that is kept stands for items / N items
            negative = negative + math.log(num_items / count)
        negative = negative.masked_fill(drawn == targets[:, None], -torch.inf)
        logits = torch.cat([positive, negative], dim=1)  # (M, 1 + N)
        return functional.cross_entropy(logits, torch.zeros_like(targets))


class BinaryCrossEntropy(Loss):
    """One positive against N uniform negatives outside the user's history (SASRec, ICDM 2018, eq. 6)."""

    needs_exclude = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Loss.Config):
        negatives: int = 1

    def forward(
        self, hidden: Tensor, targets: Tensor, table: Tensor, exclude: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        assert exclude is not None
        shape = (len(targets), self.config.negatives)
        drawn = sample_negatives(shape, len(table) - 1, exclude, rng)  # (M, N)
        positive = (hidden * table[targets]).sum(-1)
        negative = torch.einsum("md,mnd->mn", hidden, table[drawn])
        terms = functional.softplus(-positive) + functional.softplus(negative).sum(-1)
        return terms.mean()


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "sampled_softmax": SampledSoftmax,
    "bce": BinaryCrossEntropy,
}


def build(settings: dict[str, Any], where: str) -> Loss:
    """The loss named by `settings["name"]`; raises BallastError on an unknown name or setting."""
    name = settings.get("name")
    if name not in LOSSES:
        raise BallastError(f"{where}: unknown loss {name!r}; known: {', '.join(LOSSES)}")
    kind = LOSSES[name]
    return kind(parse(kind.Config, settings, where))
