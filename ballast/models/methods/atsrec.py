"""ATSRec: Zhang & Chen, Adversarial Training on Item Embeddings of Sequential Recommenders, ICME 2024.

With E the item table and l the loss of a mini-batch under any backbone:
delta_0 = 0, delta_k = project(delta_{k-1} + step_size g / ||g||), g the gradient of l at E + delta_{k-1} with
respect to the table (same batch, same negatives, dropout on), k = 1..K; the model steps on
grad l(E) + weight grad l(E + delta_K). The ball has radius eps in the norm of the whole table.

Departs from the authors' code: a bidirectional backbone is trained by cloze and cannot see its own target;
`attack: free` carries one perturbation from batch to batch, each moving it by one step, so that a batch
costs two passes. Beyond the paper: `norm: row` bounds every item by itself. In place of the attack, as
controls for noise and for the second dropout mask, `adversary: random` puts random directions whose rows
are as long in proportion as those of g at the clean table, `isotropic` one direction over the whole table,
most of which no batch reads, and `none` nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.layers import TableRows, item_rows
from ballast.models.method import DatasetInfo
from ballast.models.sequential import IdMethod, added
from ballast.perturbation import direction, projected, random_direction, sizes

Evaluate = Callable[[Tensor], Tensor]


class AtsRec(IdMethod):
    """Any backbone under any loss, trained on its items and on perturbed ones."""

    delta: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(IdMethod.Config):
        attack: Literal["pgd", "fgm", "fgsm", "free"] = "pgd"
        adversary: Literal["gradient", "random", "isotropic", "none"] = "gradient"
        norm: Literal["table", "row"] = "table"
        perturb: Literal["both", "input", "output"] = "both"
        steps: int = 5
        radius: float = 1.0
        step_size: float = 0.3
        weight: float = 1.0

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if config.item_gradient == "sparse":
            raise BallastError("model.item_gradient: sparse does not go with a perturbation of all items")
        if config.attack == "free":
            self.register_buffer("delta", torch.zeros_like(self.items.weight))

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        view = self.backbone.training_view(batch, rng)
        drawn = rng.get_state()
        rows = _Rows(self.items.weight) if self._moves_rows_read else None

        def loss_at(delta: Tensor | None) -> Tensor:
            """The loss on a perturbed table: the same draws each time, but for dropout."""
            rng.set_state(drawn)
            return self._loss(batch, view, delta, rng, rows)

        if self.config.weight == 0:
            return {"loss": loss_at(None)}
        # Where all of the table is perturbed, its own gradient is the perturbation's.
        start = (
            None if self.config.perturb == "both" else torch.zeros_like(self.items.weight).requires_grad_()
        )
        clean = loss_at(start)
        gradients = self._gradients(clean, start)
        gradient = gradients.pop("delta", gradients["items.weight"])
        if rows is not None:
            gradient = gradient.index_select(0, rows.narrow())
        delta = self._perturbation(gradient, loss_at, rng)
        adversarial = loss_at(delta)
        if self.config.attack == "free" and self.config.adversary == "gradient":
            moved = self._gradients(adversarial, delta)
            self._carry(moved.pop("delta"))
            adversarial = self._held(adversarial, moved)
        table = self.items.weight.detach()
        size = sizes(delta.detach(), self.config.norm).amax()
        return {
            "loss": self._held(clean, gradients) + self.config.weight * adversarial,
            "clean": clean.detach(),
            "adversarial": adversarial.detach(),
            "radius_share": self.config.radius / sizes(table, self.config.norm).mean(),
            "is_at_boundary": (size >= 0.999 * self.config.radius).float(),
        }

    @property
    def _moves_rows_read(self) -> bool:
        """Whether only rows that the batch reads are moved, so that passes can do without the others."""
        config = self.config
        return self.loss.is_sampled and config.adversary == "gradient" and config.attack != "free"

    def _loss(
        self,
        batch: Batch,
        view: Batch,
        delta: Tensor | None,
        rng: torch.Generator,
        rows: "_Rows | None" = None,
    ) -> Tensor:
        """() loss where `delta` is added to the table that the history, the scores or both read.

        delta: (I, D), or (U, D) for the rows that the batch reads once `rows` knows them.
        """
        table = self.item_table() if rows is None else rows.of(self.item_table())
        moved = table if delta is None else table + delta
        inputs = table if self.config.perturb == "output" else moved
        outputs = table if self.config.perturb == "input" else moved
        if rows is not None:
            inputs, outputs = rows.lookup(inputs), rows.lookup(outputs)
        loss = self.next_item_loss(view, inputs, outputs, rng)
        return added(loss, self.backbone.extra_losses(batch, inputs, rng))

    def _perturbation(self, gradient: Tensor, loss_at: Evaluate, rng: torch.Generator) -> Tensor:
        """(I, D) what the adversary adds, given the gradient on the clean table."""
        config = self.config
        if config.adversary == "none":
            return torch.zeros_like(gradient)
        if config.adversary != "gradient":
            after = rng.get_state()
            delta = config.radius * self._random(gradient, rng)
            rng.set_state(after)  # negatives are drawn as without an adversary
            return delta
        if config.attack == "free":
            return self.delta.clone().requires_grad_()
        if config.attack == "fgm":
            return config.radius * direction(gradient, config.norm)
        if config.attack == "fgsm":
            return config.radius * direction(gradient.sign(), config.norm)
        delta = torch.zeros_like(gradient)
        for step in range(config.steps):
            if step:
                delta.requires_grad_()
                # Of the perturbation alone: the weights' own gradients are not computed.
                (gradient,) = torch.autograd.grad(loss_at(delta), delta)
            delta = self._stepped(delta.detach(), gradient)
        return delta

    def _random(self, gradient: Tensor, rng: torch.Generator) -> Tensor:
        """(I, D) random perturbation of size 1."""
        if self.config.adversary == "isotropic":
            return random_direction(gradient, self.config.norm, rng)
        rows = random_direction(gradient, "row", rng)  # (I, D), each of length 1
        return direction(rows * sizes(gradient, "row"), self.config.norm)

    def _stepped(self, delta: Tensor, gradient: Tensor) -> Tensor:
        config = self.config
        return projected(
            delta + config.step_size * direction(gradient, config.norm), config.radius, config.norm
        )

    @torch.no_grad()
    def _carry(self, gradient: Tensor) -> None:
        self.delta.copy_(self._stepped(self.delta, gradient))

    def _gradients(self, loss: Tensor, delta: Tensor | None = None) -> dict[str, Tensor]:
        """Gradients of all parameters that the loss depends on, and of `delta`."""
        named = dict(self.named_parameters()) | ({} if delta is None else {"delta": delta})
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {name: part for name, part in zip(named, found, strict=True) if part is not None}

    def _held(self, loss: Tensor, gradients: dict[str, Tensor]) -> Tensor:
        """A stand-in for `loss` with its value and its gradients, which are known: no second backward."""
        named = dict(self.named_parameters())
        held: Tensor = _Held.apply(
            loss.detach(), list(gradients.values()), *(named[name] for name in gradients)
        )
        return held


class _Held(torch.autograd.Function):
    """A value () with given gradients of the tensors that follow."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(outer[0] * part for part in ctx.gradients))


class _Rows:
    """The rows of the item table that a batch reads: all, until a pass has shown which."""

    def __init__(self, table: Tensor) -> None:
        self.ids: Tensor | None = None
        self.place = torch.arange(len(table), device=table.device)
        self.read: list[Tensor] = []

    def of(self, table: Tensor) -> Tensor:
        """(I, D) table to its (U, D) rows."""
        return table if self.ids is None else item_rows(self.ids, table)

    def lookup(self, vectors: Tensor) -> Tensor:
        """What stands in for a table where the (U, D) rows are looked up by item id."""
        # Whoever trains under a sampled loss asks for no more of a table than its length and `item_rows`.
        return cast(Tensor, TableRows(vectors, self.place, self.read))

    def narrow(self) -> Tensor:
        """(U,) the rows read so far, padding among them; from now on a pass that reads another one fails."""
        is_read = torch.zeros(len(self.place), dtype=torch.bool, device=self.place.device)
        is_read[0] = True
        for ids in self.read:
            is_read[ids.flatten()] = True
        self.ids = is_read.nonzero().squeeze(1)
        self.place = torch.where(is_read, is_read.cumsum(0) - 1, -1)
        self.read = []
        return self.ids
