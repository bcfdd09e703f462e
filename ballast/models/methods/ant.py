"""ANT: multimodal transfer by re-learning the item side.

Peng, Parthasarathy, Ning, arXiv 2309.10195; Knowledge-Based Systems 2025, doi 10.1016/j.knosys.2025.114479.
An item is made of its text, image and price, each through experts of its own (t, v, p):

  e = t + v + p + beta (t * v)

Pre-training (`loss: {name: in_batch}`, `alignment: 0.001`): L_SI, next items among the batch's targets, plus
`alignment` times L_IT, the target items' images have to find their texts. Re-learning (`is_encoder_frozen:
true`): the Transformer is frozen; positions, experts, biases and gates start anew and are trained on the
target with the softmax over its catalogue. `carries_items` instead keeps them, without `is_encoder_frozen`
all is fine-tuned; with ids (`has_ids`) it is the transductive variant.

Departs from the paper: trained on all positions at once; an item without a modality has no term of it (its
features are not read), and only items with both text and image are in L_IT; the prices' features are
sinusoids of the standardised log price, as no price encoder was released.
Departs from the authors' code: an image's features are those of one picture an item, not a mean over several;
experts drop out at the encoder's rate, not at 0.2. In re-learning the encoder that is frozen includes the
layer norm of its input, which theirs trains; experts start from N(0, 0.02) as they do from scratch, theirs
from Xavier's normal distribution, which is four times as wide at 128 dimensions; and the learning rate is
that of all rows of a study, theirs falls by 1 % an epoch.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.method import DatasetInfo
from ballast.models.transferable import ExpertMethod, pairs_loss


class Ant(ExpertMethod):
    """e = t + v + p + product (t * v), with the image-to-text loss in pre-training."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ExpertMethod.Config):
        modalities: list[str] = field(default_factory=lambda: ["text", "image", "price"])
        product: float = 0.1
        alignment: float = 0.0

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if config.alignment and not {"text", "image"} <= set(config.modalities):
            raise BallastError("model.alignment: needs text and image among model.modalities; set it to 0")

    def combined(self, parts: dict[str, Tensor]) -> Tensor:
        whole = super().combined(parts)
        if self.config.product and "text" in parts and "image" in parts:
            whole = whole + self.config.product * parts["text"] * parts["image"]
        return whole

    def content_losses(
        self, batch: Batch, table: Tensor, parts: dict[str, Tensor], rng: torch.Generator
    ) -> dict[str, Tensor]:
        if not self.config.alignment:
            return {}
        assert batch.targets is not None
        items = batch.targets.unique()
        # A missing modality is a row of zeros, as padding is.
        is_whole = (parts["text"][items] != 0).any(1) & (parts["image"][items] != 0).any(1)
        items = items[is_whole]
        found = pairs_loss(parts["image"][items], parts["text"][items], self.config.temperature)
        return {"alignment": self.config.alignment * found}
