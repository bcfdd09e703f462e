"""ATJT: Liu et al., An Auxiliary Task of Noise Recognition for Joint Training, JCST 39(5) 2024,
doi 10.1007/s11390-024-4069-5, arXiv 2409.17402.

A noise-recognition model D is trained to tell sequences with a replaced item from the originals; its
opinion of each original, w = D(clean | history, target), weighs that sequence in the recommender's loss:
loss = sum w_i l_i / sum w_i + kappa BCE(D), with w not detached. Users are split in halves and crossed: the
D that weighs one half is trained on the other. The recommender never trains on replaced sequences. D has
its own item vectors (dim 8) and reads a history by attention from its target, as DIN does (Zhou et al., KDD
2018, arXiv 1706.06978).

Departs from the paper: ported from click prediction to next-item models (any backbone, any loss), with one
w a sequence; two models D, one a half, where the paper alternates; no user vector in D, since a half's
users are never in the training of the D that weighs them. Departs from the authors' code: the replaced
place is drawn for each sequence; the replacement is not in the sequence; the target is never replaced.

`weighting` holds the controls: `detached` stops the recommender from training D, `none` is w = 1, `random`
draws w. `truncated` and `reweighted` are the known alternatives that need no D, T-CE and R-CE of Wang et
al. (Denoising Implicit Feedback, WSDM 2021, arXiv 2006.04153), over sequences: the `drop` share with the
largest loss is left out, or a sequence counts exp(-l)^beta.

Under Adam kappa does not make D learn faster: a step is as long whatever a loss counts. D's steps are
`noise_rate` times as long as the recommender's, which else has stopped before D knows a replaced item.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ballast.data.sequences import Batch, sample_negatives
from ballast.models.layers import small_embedding
from ballast.models.method import DatasetInfo
from ballast.models.sequential import IdMethod, added
from ballast.params import TrainingParams
from ballast.reproducibility import generator

LOWEST_LOGIT = -30.0


class Atjt(IdMethod):
    """Any backbone under any loss, its sequences weighted by a model that recognises noise."""

    item_counts: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(IdMethod.Config):
        weighting: Literal["learned", "detached", "none", "random", "truncated", "reweighted"] = "learned"
        kappa: float = 100.0
        replaced: Annotated[int, Field(ge=1)] = 1
        replacement: Literal["uniform", "popularity"] = "uniform"
        is_crossed: bool = True
        noise_dim: int = 8
        noise_rate: Annotated[float, Field(gt=0)] = 5.0
        drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
        beta: float = 0.25

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        count = 2 if config.is_crossed else 1
        self.noise_models = nn.ModuleList(
            NoiseModel(data.num_items, config.noise_dim) for _ in range(count if self.has_noise_model else 0)
        )
        self.register_buffer("item_counts", data.item_counts.to(torch.float32))

    @property
    def has_noise_model(self) -> bool:
        return self.config.weighting in ("learned", "detached")

    def optimizers(self, training: TrainingParams) -> list[torch.optim.Optimizer]:
        if not self.has_noise_model:
            return super().optimizers(training)
        named = list(self.named_parameters())
        groups = [
            {"params": [weight for name, weight in named if not name.startswith("noise_models.")]},
            {
                "params": list(self.noise_models.parameters()),
                "lr": training.learning_rate * self.config.noise_rate,
            },
        ]
        rate, decay = training.learning_rate, training.weight_decay
        return [torch.optim.Adam(groups, lr=rate, weight_decay=decay, fused=True)]

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        table = self.item_table()
        view = self.backbone.training_view(batch, rng)
        extra = self.backbone.extra_losses(batch, table, rng)
        if not self.has_noise_model:
            weights = self._fixed_weights(view, table, rng)
            loss = self.next_item_loss(view, table, table, rng, weights)
            return {"loss": added(loss, extra), "next_item": loss.detach()}
        assert batch.targets is not None
        history, target = batch.history, batch.targets[:, -1]
        # Training positions are weighted by the opinion of the model that never saw the user.
        weights = self.cleanness(batch.user_id, history, target, sees_half=False)
        if self.config.weighting == "detached":
            weights = weights.detach()
        loss = self.next_item_loss(view, table, table, rng, weights)
        noise = self._noise_loss(batch.user_id, history, target, rng)
        return {
            "loss": added(loss, extra) + self.config.kappa * noise,
            "next_item": loss.detach(),
            "noise": noise.detach(),
            "mean_weight": weights.detach().mean(),
        }

    def sequence_weights(self, batch: Batch) -> Tensor | None:
        """(B,) what each training sequence counts in the loss; None where all count alike, or by chance.

        batch: as in training. Dropout is off, and negatives are the same for every batch. Which sequences
        `truncated` leaves out depends on the others of the batch, as in training.
        """
        if self.config.weighting in ("none", "random"):
            return None
        was_training = self.training
        self.eval()
        with torch.set_grad_enabled(not self.has_noise_model):  # losses are told apart by a gradient
            if self.has_noise_model:
                assert batch.targets is not None
                found = self.cleanness(batch.user_id, batch.history, batch.targets[:, -1], sees_half=False)
            else:
                table = self.item_table()
                rng = generator(0, "sequence weights", device=table.device)
                weights = self._fixed_weights(self.backbone.training_view(batch, rng), table, rng)
                assert weights is not None
                found = weights.detach()
        self.train(was_training)
        return found

    def cleanness(self, users: Tensor, history: Tensor, target: Tensor, sees_half: bool) -> Tensor:
        """(B,) probability that a sequence holds no replaced item.

        users: (B,) int64. history: (B, L), target: (B,). `sees_half`: by the model that is trained on the
        user's half, else by the other one.
        """
        opinions = torch.stack([model(history, target) for model in self.noise_models])  # (1 or 2, B)
        half = (users % len(self.noise_models)) if sees_half else (users + 1) % len(self.noise_models)
        logits = opinions.gather(0, half[None])[0].float()
        # Without its own task D may send all to 0, and a mean cannot be weighted by nothing but zeros.
        return logits.clamp(min=LOWEST_LOGIT).sigmoid()

    def _noise_loss(self, users: Tensor, history: Tensor, target: Tensor, rng: torch.Generator) -> Tensor:
        """() cross entropy of telling the half of the batch that is spoilt from the half that is not."""
        is_spoilt = torch.rand(len(history), generator=rng, device=history.device) < 0.5
        spoilt = self.spoilt(history, target, rng)
        seen = torch.where(is_spoilt[:, None], spoilt, history)
        clean = self.cleanness(users, seen, target, sees_half=True)
        is_judged = (history != 0).any(1).float()
        with torch.autocast(clean.device.type, enabled=False):
            each = functional.binary_cross_entropy(clean, (~is_spoilt).float(), reduction="none")
        return (each * is_judged).sum() / is_judged.sum().clamp(min=1)

    def spoilt(self, history: Tensor, target: Tensor, rng: torch.Generator) -> Tensor:
        """(B, L) histories with `replaced` items by items outside the sequence."""
        drawn = torch.rand(history.shape, generator=rng, device=history.device)
        rank = drawn.masked_fill(history == 0, 2.0).argsort(dim=1).argsort(dim=1)
        is_replaced = (rank < self.config.replaced) & (history != 0)
        whole = torch.cat([history, target[:, None]], dim=1)
        shape = (len(history), self.config.replaced)
        counts = None if self.config.replacement == "uniform" else self.item_counts
        others = sample_negatives(shape, len(self.items.weight) - 1, whole, rng, counts=counts)
        return torch.where(is_replaced, others.gather(1, rank.clamp(max=self.config.replaced - 1)), history)

    def _fixed_weights(self, view: Batch, table: Tensor, rng: torch.Generator) -> Tensor | None:
        """(B,) weights that no noise model gives; None where all count the same."""
        size, device = len(view.history), view.history.device
        if self.config.weighting == "none":
            return None
        if self.config.weighting == "random":
            return torch.rand(size, generator=rng, device=device)
        losses = self._sequence_losses(view, table, rng)
        if self.config.weighting == "reweighted":
            return torch.exp(-losses) ** self.config.beta
        kept = max(1, round(size * (1 - self.config.drop)))
        return torch.zeros(size, device=device).index_fill(0, losses.argsort()[:kept], 1.0)

    def _sequence_losses(self, view: Batch, table: Tensor, rng: torch.Generator) -> Tensor:
        """(B,) mean loss of each sequence's positions.

        With weights of 1 a weighted mean L has dL/dw_b = n_b (l_b - L) / M, which every loss knows.
        """
        assert view.targets is not None
        drawn = rng.get_state()
        weights = torch.ones(len(view.history), dtype=table.dtype, device=table.device, requires_grad=True)
        mean = self.next_item_loss(view, table.detach(), table.detach(), rng, weights)
        (gradient,) = torch.autograd.grad(mean, weights)
        rng.set_state(drawn)
        count = (view.targets != 0).sum(1)
        return mean.detach() + gradient * count.sum() / count.clamp(min=1)


class NoiseModel(nn.Module):
    """Logit of "no item was replaced": attention from the target over the history, in vectors of its own."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        # From vectors of unit variance D does not learn its task before the recommender has stopped; much
        # smaller ones, whose products it reads, take long to leave zero.
        self.items = small_embedding(num_items + 1, dim, std=0.1)
        self.attend = nn.Sequential(nn.Linear(4 * dim, 4 * dim), nn.PReLU(), nn.Linear(4 * dim, 1))
        self.judge = nn.Sequential(nn.Linear(4 * dim, 4 * dim), nn.PReLU(), nn.Linear(4 * dim, 1))

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        """(B, L) and (B,) item ids to (B,) logits."""
        items, goal = self.items(history), self.items(target)  # (B, L, E), (B, E)
        asked = goal[:, None].expand_as(items)
        weight = self.attend(torch.cat([items, asked, items - asked, items * asked], dim=2))  # (B, L, 1)
        is_real = (history != 0)[:, :, None]
        pooled = (weight * items * is_real).sum(1)  # (B, E), not normalised, as in DIN
        mean = (items * is_real).sum(1) / is_real.sum(1).clamp(min=1)
        judged: Tensor = self.judge(torch.cat([pooled, mean, goal, pooled * goal], dim=1))
        return judged[:, 0]
