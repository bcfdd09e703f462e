"""UniSRec: universal sequence representations from item texts.

Hou, Mu, Zhao, Li, Ding, Wen, KDD 2022, doi 10.1145/3534678.3539381, arXiv 2206.05941. Texts through experts
(equations 1 to 3), cosine scores. Pre-training (`loss: {name: in_batch}`, `contrast: 0.001`): next items
among the batch's targets (equation 4) plus `contrast` times a loss that has to find a sequence's own
augmented view among those of the batch (equation 5). Adapting (`is_encoder_frozen: true, carries_items:
true`): the encoder is frozen, experts and positions are tuned from the pre-trained ones; transductive with
`has_ids`.

Departs from the paper: trained on all positions at once; an augmented view leaves out items only, since
leaving out words would need the text encoder in every step; negatives of both losses are the items and
sequences of the batch.
Departs from the authors' code: positions are tuned while adapting, theirs are frozen, and the frozen encoder
includes the layer norm of its input, which theirs tunes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.models.transferable import ExpertMethod, pairs_loss


class Unisrec(ExpertMethod):
    """Text through experts, with a contrast of sequences in pre-training."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertMethod.Config):
        contrast: float = 0.0
        drop: float = 0.2
        """Share of items that an augmented view leaves out."""

    def content_losses(
        self, batch: Batch, table: Tensor, parts: dict[str, Tensor], rng: torch.Generator
    ) -> dict[str, Tensor]:
        if not self.config.contrast:
            return {}
        states = self.backbone.query(batch.history, table)
        others = self.backbone.query(without_some(batch.history, self.config.drop, rng), table)
        return {"contrast": self.config.contrast * pairs_loss(states, others, self.config.temperature)}


def without_some(history: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """(B, L) histories that lost each item with probability `share`, but never their last; left-padded."""
    drawn = torch.rand(history.shape, generator=rng, device=history.device)
    is_kept = drawn >= share
    is_kept[:, -1] = True
    kept = history * is_kept
    # Stable: what is kept stays in order, behind the padding.
    return kept.gather(1, (kept != 0).int().argsort(dim=1, stable=True))
