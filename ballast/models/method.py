"""The interface every method fulfils.

Shape legend, used throughout: B users, L history length, I items + 1 (0 is padding), D embedding,
F feature, N negatives, K cutoff, H heads, T diffusion steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ballast.data.sequences import Batch
from ballast.params import TrainingParams
from ballast.strict import Strict


@dataclass(frozen=True)
class DatasetInfo:
    """What a method may know of its dataset before training: sizes, training counts, features.

    item_counts: (I,) int64 training interactions an item, entry 0 is 0. features: modality name to
    (I, F) float32 with row 0 zero; `missing` holds (I,) bool masks of the same names.
    """

    num_users: int
    num_items: int  # without padding: ids are 1..num_items
    item_counts: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """One recommender with its way of training.

    A method is a file in `ballast/models/methods` whose class is found by the file's name, and a block
    in params.yaml. Gradient methods implement `training_step`; counting methods (`is_trained_by_steps`
    False) implement `fit_sequences` instead and need no seeds.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        """Hyperparameters; an unknown or mistyped key in params.yaml is an error at load."""

    modalities: ClassVar[tuple[str, ...]] = ()
    surfaces: ClassVar[dict[str, str]] = {}
    is_trained_by_steps: ClassVar[bool] = True

    # Whether a user's first item is a target too, with no history: for methods that learn from items and
    # not from their succession, and so from users with a single one.
    learns_first_items: ClassVar[bool] = False

    # Whether users have learned vectors: nothing can be said for one who was not trained on.
    learns_users: ClassVar[bool] = False

    # Of diffusion models, which have a `schedule`: whether scores are the mean over `config.draws` random
    # passes, repeatable by `config.draw_seed`; and the length of the whole reverse chain, 0 without one,
    # which `config.reverse_steps` shortens.
    is_sampled: bool = False
    chain_steps: int = 0

    # Trained one after the other, each with new optimisers and early stopping, from the best of the last.
    phases: tuple[str, ...] = ("",)

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__()
        self.config = config

    @property
    def max_len(self) -> int:
        """The longest history that the method reads; the evaluator cuts to it."""
        return int(getattr(self.config, "max_len", 50))

    def enter(self, phase: str) -> None:
        """Begin one of `phases`; what it changes in training is kept in a buffer, for a run that resumes."""

    def optimizers(self, training: TrainingParams) -> list[torch.optim.Optimizer]:
        """What steps after each batch; Adam on everything, unless the method is published with another."""
        return [
            torch.optim.Adam(
                self.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
            )
        ]

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Losses of one batch: "loss" is minimised, further entries are recorded."""
        raise NotImplementedError

    def fit_sequences(self, items: Tensor, offsets: Tensor) -> None:
        """Fit by counting on ragged training sequences: user u owns items[offsets[u]:offsets[u + 1]]."""
        raise NotImplementedError

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        """(B, I) scores of every item as the next one, unmasked: the evaluator masks."""
        raise NotImplementedError
