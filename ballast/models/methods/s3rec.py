"""S3-Rec: self-supervised pre-training by four tasks, then next items.

Zhou, Wang, Zhao, Zhu, Wang, Zhang, Wang, Wen, CIKM 2020, doi 10.1145/3340531.3411954, arXiv 2008.07873. Phase
"pretraining" reads histories in both directions, with e the items', a the attributes' vectors, f the states:

  attributes of an item (AAP, equation 5)         sigmoid(e_i W a), all attributes against the true ones
  a hidden item (MIP, 7)                          f_i W e_i against one other item
  attributes of a hidden item (MAP, 9)            f_i W a
  a hidden segment (SP, 11)                       f W s against another, s the segment's state, read alone

with weights .2, 1, 1 and .5. Phase "finetuning" trains the same Transformer, causal, on next items.

Departs from the paper: pre-training ends by validation NDCG@10, of what it guesses hidden behind the
history, not after a fixed number of epochs; attributes are clusters (k-means) of each modality's frozen
features, `attributes` a modality, where the paper has categories and brands; the segment is hidden in a
second reading, as in the release.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

from ballast.data.sequences import Batch, sample_negatives
from ballast.errors import BallastError
from ballast.models.backbones import MASK, item_vectors, whole_sequences
from ballast.models.backbones.sasrec import Encoder
from ballast.models.layers import attention_mask, item_rows, small_embedding, small_linear
from ballast.models.method import DatasetInfo
from ballast.models.sequential import IdMethod

WEIGHTS = {"associated": 0.2, "masked_item": 1.0, "masked_attribute": 1.0, "segment": 0.5}


class S3rec(IdMethod):
    """SASRec whose weights start from tasks on attributes, hidden items and hidden segments."""

    backbone: Encoder
    attributes: Tensor
    is_pretraining: Tensor
    phases = ("pretraining", "finetuning")

    @dataclass(frozen=True, kw_only=True)
    class Config(IdMethod.Config):
        modalities: list[str] = field(default_factory=lambda: ["text"])
        attributes: int = 32
        mask_rate: float = 0.2

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if not isinstance(self.backbone, Encoder):
            raise BallastError("model.backbone: S3-Rec pre-trains a Transformer: name sasrec")
        marks = [
            _clusters(data.features[name], data.missing[name], config.attributes)
            for name in config.modalities
        ]
        marked = torch.cat(marks, dim=1)  # (I, A) float, 1 where an item has it
        self.register_buffer("attributes", marked)
        self.attribute_vectors = small_embedding(marked.shape[1] + 1, config.dim)
        self.mask = nn.Parameter(torch.empty(config.dim).normal_(std=0.02))
        self.bilinear = nn.ModuleDict({name: small_linear(config.dim, config.dim) for name in WEIGHTS})
        self.register_buffer("is_pretraining", torch.tensor(False))
        self.enter("finetuning")

    def enter(self, phase: str) -> None:
        is_pretraining = phase == "pretraining"
        self.is_pretraining.fill_(is_pretraining)
        for part in (self.attribute_vectors, self.bilinear):
            part.requires_grad_(is_pretraining)
        self.mask.requires_grad_(is_pretraining)

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        if not self.is_pretraining:
            return super().training_step(batch, rng)
        sequence = whole_sequences(batch, self.max_len)  # (B, L)
        table = self.item_table()
        parts = {
            **self._item_tasks(sequence, table, rng),
            "segment": self._segment_task(sequence, table, rng),
        }
        weighted = {name: WEIGHTS[name] * part for name, part in parts.items()}
        return {"loss": torch.stack(list(weighted.values())).sum(), **weighted}

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        if not self.is_pretraining:
            return super().score(batch, rng)
        # What pre-training has learned to do: to guess an item that is hidden, here behind the history.
        hidden = torch.full_like(batch.history[:, :1], MASK)
        asked = torch.cat([batch.history, hidden], dim=1)[:, -self.max_len :]
        table = self.item_table()
        guess = self.bilinear["masked_item"](self._read(asked, table)[:, -1])
        with torch.autocast(guess.device.type, enabled=False):
            return guess.float() @ table.float().T

    def _item_tasks(self, sequence: Tensor, table: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The three tasks on single items of sequences (B, L)."""
        drawn = torch.rand(sequence.shape, generator=rng, device=sequence.device)
        is_hidden = (drawn < self.config.mask_rate) & (sequence != 0)
        is_hidden[:, -1] |= ~is_hidden.any(1)  # one at least
        states = self._read(sequence.masked_fill(is_hidden, MASK), table)[is_hidden]  # (M, D)
        items = sequence[is_hidden]
        other = sample_negatives((len(items), 1), len(table) - 1, _rows(sequence, is_hidden), rng)[:, 0]
        guess = self.bilinear["masked_item"](states)
        margin = (guess * (item_rows(items, table) - item_rows(other, table))).sum(1)
        every = sequence[sequence != 0]
        return {
            "masked_item": -functional.logsigmoid(margin).mean(),
            "masked_attribute": self._attribute_loss(self.bilinear["masked_attribute"](states), items),
            "associated": self._attribute_loss(self.bilinear["associated"](item_rows(every, table)), every),
        }

    def _attribute_loss(self, guesses: Tensor, items: Tensor) -> Tensor:
        """() binary cross entropy of (M, D) guesses on all attributes of items (M,)."""
        logits = guesses @ self.attribute_vectors.weight[1:].T  # (M, A)
        return functional.binary_cross_entropy_with_logits(logits.float(), self.attributes[items])

    def _segment_task(self, sequence: Tensor, table: Tensor, rng: torch.Generator) -> Tensor:
        """() the rest of a sequence has to know its hidden segment from another sequence's."""
        lengths = (sequence != 0).sum(1)  # (B,)
        width = sequence.shape[1]
        drawn = torch.rand(2, len(sequence), generator=rng, device=sequence.device)
        size = 1 + (drawn[0] * (lengths // 2)).long()
        start = width - lengths + (drawn[1] * (lengths - size + 1)).long()
        place = torch.arange(width, device=sequence.device)
        is_inside = (place >= start[:, None]) & (place < (start + size)[:, None])  # (B, L)
        context = self._read(sequence.masked_fill(is_inside, MASK), table)[:, -1]
        # Moved to the end, where a reading has its last state.
        alone = (sequence * is_inside).gather(1, (place + (start + size)[:, None]) % width)
        segment = self._read(alone, table)[:, -1]
        guess = self.bilinear["segment"](context)
        margin = (guess * (segment - segment.roll(1, 0))).sum(1)
        return -functional.logsigmoid(margin).mean()

    def _read(self, history: Tensor, table: Tensor) -> Tensor:
        """(B, L) items, MASK where hidden, to (B, L, D) states, each seeing the whole history."""
        encoder = self.backbone
        vectors = item_vectors(history, table, self.mask)
        states = encoder.dropout(encoder.input_norm(vectors + encoder.positions[-history.shape[1] :]))
        visible = attention_mask(history != 0, is_causal=False)
        for layer in encoder.layers:
            states = layer(states, visible)
        read: Tensor = encoder.output_norm(states)
        return read


def _rows(sequence: Tensor, is_hidden: Tensor) -> Tensor:
    """(M, L) for each hidden place, the sequence that it is in."""
    return sequence[is_hidden.nonzero()[:, 0]]


def _clusters(vectors: Tensor, missing: Tensor, count: int) -> Tensor:
    """(I, C) float, 1 for the cluster of each item's features (I, F), all 0 for an item without them."""
    marks = torch.zeros(len(vectors), count, device=vectors.device)
    known = torch.nonzero(~missing)[:, 0]
    if len(known):
        points = vectors[known].cpu().numpy()
        found = KMeans(min(count, len(points)), n_init=1, random_state=0).fit_predict(points)
        marks[known, torch.from_numpy(found).to(known.device).long()] = 1
    return marks
