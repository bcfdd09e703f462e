"""AMR: Tang, Du, He, Yuan, Tian, Chua, Adversarial Training Towards Robust Multimedia Recommender System.

IEEE TKDE 32(5), 2020 (online 2019), doi 10.1109/TKDE.2019.2893638, arXiv 1809.07062. With v_i = q_i + E c_i,

  s_ui = p_u . v_i,   L(c) = mean over triples of -log sigmoid(s_ui - s_uj),
  Delta_i = radius Gamma_i / |Gamma_i|, Gamma_i = dL/dc_i, held fixed; zero where Gamma_i is zero,
  objective = L(c) + weight L(c + Delta) + mean over triples of
              user_penalty |p_u|^2 + item_penalty (|v_i|^2 + |v_j|^2).

Gamma_i adds up all occurrences of item i in the batch, on either side of a pair. It is dL/dv_i E, so that
|Gamma_i| and E Delta_i need only D x D products: F never multiplies the pairs.

Several modalities: each has its own E_m, is divided by its own largest absolute value, and is perturbed in
a ball of its own: |Delta_im| <= radius for each m at once. An item without a modality is not perturbed there.

Training begins with the model without adversary (weight = 0), as in the paper, in one of two ways.
`has_base_phase` announces two phases, "base" and "adversarial", to a loop that fits one after the other, each
from the best state of the one before. `warm_steps` counts steps and needs no such loop; but the best state on
validation may then be one from before the adversary, so keep it well below the steps that the base needs for
its best. The buffer `warm_left` of a kept state tells whether an adversary has trained it (0) or not.

Departs from the paper: batches hold whole users (see `ballast.models.pairwise`), and the second phase begins
with the batches and negatives that the first began with, the same for every adversary and for none.
Departs from the authors' code: the perturbation is held fixed (the release computes `stop_gradient` and
drops its result, so that its weights learn through the perturbation); the last partial batch is kept (the
release drops it); losses are averaged over a batch where the release adds them up, so that Adagrad's
accumulator of `accumulator` starts at that over 512^2, 512 being its batch; initial vectors are normal, not
truncated. Beyond both: `adversary: random` puts a random direction of the same size in place of the attack
(the release has it as well), and `none` nothing: controls for noise and for counting the loss twice.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ballast.models.layers import small_embedding
from ballast.models.method import DatasetInfo
from ballast.models.pairwise import ContentPairwiseMethod, Pairs, Weight, bpr_loss
from ballast.params import TrainingParams
from ballast.perturbation import TINY, direction

# Triples in a batch of the release, whose losses it adds up.
PAPER_BATCH = 512

# More steps than any run has.
ENDLESS = 2**62


class Amr(ContentPairwiseMethod):
    """Users over ids and features together, trained on features as they are and as they are attacked."""

    surfaces: ClassVar[dict[str, str]] = {"items": "items.weight"}
    warm_left: Tensor  # () steps that are still to be made without adversary

    @dataclass(frozen=True, kw_only=True)
    class Config(ContentPairwiseMethod.Config):
        has_bias: bool = False
        user_penalty: Weight = 0.1
        item_penalty: Weight = 0.001
        adversary: Literal["gradient", "random", "none"] = "gradient"
        radius: Weight = 0.1
        weight: Weight = 1.0
        warm_steps: Annotated[int, Field(ge=0)] = 0
        has_base_phase: bool = False
        optimizer: Literal["adagrad", "adam"] = "adagrad"
        item_rate: Weight = 0.01
        """Rate of q_i, as a share of the users' rate (training.learning_rate)."""
        projection_rate: Weight = 0.1
        """Rate of E, likewise."""
        accumulator: Weight = 0.1

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data, config.dim)
        self.items = small_embedding(data.num_items + 1, config.dim, config.init_scale)
        self.phases = ("base", "adversarial") if config.has_base_phase else ("adversarial",)
        self.register_buffer("warm_left", torch.tensor(config.warm_steps))

    def enter(self, phase: str) -> None:
        """Begin one of `phases`: "base" is without adversary, "adversarial" with it from the first step."""
        self.warm_left.fill_(ENDLESS if phase == "base" else self.config.warm_steps)

    def optimizers(self, training: TrainingParams) -> list[torch.optim.Optimizer]:
        config, rate = self.config, training.learning_rate
        own = [self.items.weight] if self.bias is None else [self.items.weight, self.bias]
        groups = [
            {"params": [self.users.weight], "lr": rate},
            {"params": own, "lr": rate * config.item_rate},
            {"params": list(self.projections.parameters()), "lr": rate * config.projection_rate},
        ]
        if config.optimizer == "adam":
            return [torch.optim.Adam(groups, weight_decay=training.weight_decay, fused=True)]
        is_fused = self.users.weight.device.type == "cpu"  # PyTorch has no fused Adagrad for GPUs
        start = config.accumulator / PAPER_BATCH**2
        return [
            torch.optim.Adagrad(
                groups,
                weight_decay=training.weight_decay,
                initial_accumulator_value=start,
                fused=is_fused,
            )
        ]

    def item_table(self, items: Tensor | None = None) -> Tensor:
        own = self.items.weight if items is None else self.items.weight.index_select(0, items)
        return own + self.content(items)

    def pair_loss(self, pairs: Pairs, rng: torch.Generator) -> dict[str, Tensor]:
        if self.config.weight == 0 or self._is_warming_up():
            return super().pair_loss(pairs, rng)
        user, items, bias = self._vectors(pairs)
        difference = self._difference(user, items, bias, pairs)
        clean = bpr_loss(difference)
        adversarial = bpr_loss(self.attacked(difference, user, pairs, rng))
        whole = clean + self.config.weight * adversarial + self.penalty(user, items, bias, pairs)
        return {"loss": whole, "clean": clean.detach(), "adversarial": adversarial.detach()}

    def attacked(self, difference: Tensor, user: Tensor, pairs: Pairs, rng: torch.Generator) -> Tensor:
        """(n,) differences of scores where features are perturbed, given those on clean ones.

        Scores are linear in the features: the perturbation adds p_u . (E Delta_i - E Delta_j).
        """
        if self.config.adversary == "none":
            return difference
        if self.config.adversary == "random":
            shift = self._random_shift(pairs.items, rng)
        else:
            shift = self._shift(loss_gradient(difference.detach(), user.detach(), pairs), pairs.items)
        apart = shift.index_select(0, pairs.positive) - shift.index_select(0, pairs.negative)  # (n, D)
        return difference + (user * apart).sum(1)

    def perturbation(self, gradient: Tensor, items: Tensor, modality: str) -> Tensor:
        """(R, F) Delta of one modality from the (R, D) gradient of the loss with respect to v_i."""
        projection: Tensor = self.projections[modality].detach()
        return self._along(gradient, projection @ projection.T, items, modality) @ projection

    def _along(self, gradient: Tensor, kernel: Tensor, items: Tensor, modality: str) -> Tensor:
        """(R, D) the gradient, scaled to a with Delta = a E; kernel: (D, D) E E^T."""
        length = ((gradient @ kernel) * gradient).sum(1).clamp(min=0).sqrt()  # |Gamma_i|
        is_moved = getattr(self, f"present_{modality}").index_select(0, items) & (length > TINY)
        return gradient * torch.where(is_moved, self.config.radius / length.clamp(min=TINY), 0.0)[:, None]

    def _shift(self, gradient: Tensor, items: Tensor) -> Tensor:
        """(R, D) E Delta summed over modalities: Delta is held fixed, E is learned."""
        parts = []
        for modality, projection in self.projections.items():
            kernel = projection.detach() @ projection.T  # (D, D)
            parts.append(self._along(gradient, kernel.detach(), items, modality) @ kernel)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _random_shift(self, items: Tensor, rng: torch.Generator) -> Tensor:
        """(R, D) E Delta of random directions of length `radius`."""
        after = rng.get_state()
        parts = []
        for modality, projection in self.projections.items():
            shape = (len(items), projection.shape[1])
            drawn = torch.randn(shape, generator=rng, device=items.device, dtype=projection.dtype)
            is_present = getattr(self, f"present_{modality}").index_select(0, items)
            delta = self.config.radius * direction(drawn * is_present[:, None], "row")
            parts.append(delta @ projection.T)
        rng.set_state(after)  # negatives are drawn as without an adversary
        return torch.stack(parts).sum(0)

    def _is_warming_up(self) -> bool:
        """Whether this step is one without adversary; counts it."""
        if not (self.config.warm_steps or self.config.has_base_phase):
            return False
        is_warming_up = bool(self.warm_left > 0)
        self.warm_left.sub_(1).clamp_(min=0)
        return is_warming_up


def loss_gradient(difference: Tensor, user: Tensor, pairs: Pairs) -> Tensor:
    """(R, D) gradient of the summed BPR loss with respect to the items' vectors.

    difference: (n,) x_uij, user: (n, D). Each triple pulls its positive by -sigmoid(-x) p_u, and its negative
    by as much the other way; an item's pulls are added up over the batch, on whichever side it stands.
    """
    pull = torch.sigmoid(-difference)[:, None] * user  # (n, D)
    gradient = user.new_zeros(len(pairs.items), user.shape[1])
    return gradient.index_add_(0, pairs.positive, pull, alpha=-1).index_add_(0, pairs.negative, pull)
