"""What methods share that know items by their content and carry a sequence encoder from domain to domain.

An item's vector is made of its frozen features alone, so that it exists in any catalogue; scores are
cosines over a temperature. Pre-training is the same method on pooled domains with the loss `in_batch`,
which only makes the vectors of items in play; adapting is the same method on the target with another loss,
parts of the state carried over (`transferable`) and some of them frozen.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.experts import Experts, Initialisation
from ballast.models.layers import small_embedding
from ballast.models.losses.in_batch import Objective as InBatch
from ballast.models.method import DatasetInfo
from ballast.models.sequential import SequentialMethod, added


class TransferableMethod(SequentialMethod):
    """Items by their content, cosine scores. A subclass says what content makes of them
    (`modality_vectors`)."""

    # What a pre-trained state may bring of the item side, by prefix.
    item_side: tuple[str, ...] = ()

    @dataclass(frozen=True, kw_only=True)
    class Config(SequentialMethod.Config):
        """`has_ids` adds a learned vector an item (transductive).

        What an adaptation carries over: the encoder but for its positions; with `carries_items` these and
        the item side, too. `is_encoder_frozen` trains all but the encoder's layers.
        """

        modalities: list[str] = field(default_factory=lambda: ["text"])
        temperature: float = 0.07
        has_ids: bool = False
        is_encoder_frozen: bool = False
        carries_items: bool = False

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        if not config.modalities:
            raise BallastError("model.modalities: name at least one")
        if self.backbone.reads_candidates:
            raise BallastError(f"model.backbone: {config.backbone['name']} has no states to carry over")
        self.items = small_embedding(data.num_items + 1, config.dim) if config.has_ids else None
        ids = {} if self.items is None else {"items": "items.weight"}
        self.surfaces = ids  # type: ignore[misc]
        for name in config.modalities:
            self.register_buffer(f"features_{name}", data.features[name].float())
            # (I, 1), 1 where the modality is there: what is missing adds nothing, not what zeros map to.
            self.register_buffer(f"is_known_{name}", (~data.missing[name]).float()[:, None])
        self.missing_marks = {name: (f"is_known_{name}", 0.0) for name in config.modalities}
        self.build_items(data)
        positions = "backbone.positions"
        encoder = [key for key in self.state_dict() if key.startswith("backbone.") and key != positions]
        carried = [*encoder, positions, *self.item_side] if config.carries_items else encoder
        self.transferable = tuple(carried)
        if config.is_encoder_frozen:
            for key in encoder:
                self.get_parameter(key).requires_grad_(False)

    def build_items(self, data: DatasetInfo) -> None:
        """Make the parameters of the item side."""
        raise NotImplementedError

    def modality_vectors(self, items: Tensor | None = None) -> dict[str, Tensor]:
        """(N, D) vectors of `items` (N,), of all if None, by modality; zero where it is missing."""
        raise NotImplementedError

    def known(self, name: str, buffer: str, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows (N, ...) of the buffer `<buffer>_<name>` for `items`, all if None, and (N, 1) where known."""
        rows, is_known = getattr(self, f"{buffer}_{name}"), getattr(self, f"is_known_{name}")
        return (rows, is_known) if items is None else (rows[items], is_known[items])

    def combined(self, parts: dict[str, Tensor]) -> Tensor:
        """(N, D) vectors from those of each modality: their sum."""
        return torch.stack(list(parts.values())).sum(0)

    def item_vectors(self, items: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, D) vectors of items, of all if None, and those of their modalities."""
        parts = self.modality_vectors(items)
        table = self.combined(parts)
        if self.items is not None:
            table = table + (self.items.weight if items is None else self.items(items))
        return table, parts

    def item_table(self) -> Tensor:
        return self.item_vectors()[0]

    def encode(self, history: Tensor, table: Tensor) -> Tensor:
        """(B, L, D) states of unit length over the temperature: products with unit items are scores."""
        return self._directed(super().encode(history, table))

    def _directed(self, states: Tensor) -> Tensor:
        return functional.normalize(states.float(), dim=-1) / self.config.temperature

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        items = None
        if isinstance(self.loss, InBatch):  # the catalogue may be large: only what is in play
            batch, items = in_play(batch)
        table, parts = self.item_vectors(items)
        view = self.backbone.training_view(batch, rng)
        loss = self.next_item_loss(view, table, functional.normalize(table.float(), dim=-1), rng)
        extra = self.backbone.extra_losses(batch, table, rng) | self.content_losses(batch, table, parts, rng)
        return {"loss": added(loss, extra), "next_item": loss, **extra} if extra else {"loss": loss}

    def content_losses(
        self, batch: Batch, table: Tensor, parts: dict[str, Tensor], rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Named further terms, weighted; ids in `batch` are rows of `table` and of `parts` (N, D)."""
        return {}

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        table = self.item_table()
        state = self._directed(self.backbone.query(batch.history, table))  # (B, D)
        with torch.autocast(state.device.type, enabled=False):
            return state @ functional.normalize(table.float(), dim=-1).T


class ExpertMethod(TransferableMethod):
    """Modalities by a mixture of experts each; those of prices are affine."""

    item_side = ("experts.", "scale_")

    @dataclass(frozen=True, kw_only=True)
    class Config(TransferableMethod.Config):
        """`initialisation` is of the whole model, before anything is carried over.

        With `is_scaled` each modality's rows reach the experts with entries of unit mean square: experts
        start alike, and of encoders whose rows differ in size by dozens the largest would drown the
        others. Without, rows are read as they are, as published.
        """

        experts: int = 8
        is_scaled: bool = False
        initialisation: Initialisation = "normal"

    def build_items(self, data: DatasetInfo) -> None:
        config = self.config
        content = {name: f"features_{name}" for name in config.modalities}
        self.surfaces = {**self.surfaces, **content}  # type: ignore[misc]
        # As they came, not whitened: an attack has to know (`ballast.robustness.surface`).
        self.raw_surfaces = frozenset(content)
        for name in config.modalities if config.is_scaled else ():
            self.register_buffer(f"scale_{name}", _inverse_size(data.features[name], ~data.missing[name]))
        self.experts = nn.ModuleDict(
            {
                name: Experts(
                    data.features[name].shape[1],
                    config.dim,
                    config.experts,
                    config.dropout,
                    is_affine=name == "price",
                    initialisation=config.initialisation,
                )
                for name in config.modalities
            }
        )
        if config.initialisation == "default":
            _initialise_as_torch_does(self.backbone)

    def modality_vectors(self, items: Tensor | None = None) -> dict[str, Tensor]:
        found = {}
        for name, experts in self.experts.items():
            vectors, is_known = self.known(name, "features", items)
            if self.config.is_scaled:
                vectors = vectors * getattr(self, f"scale_{name}")
            found[name] = experts(vectors) * is_known
        return found


def _inverse_size(rows: Tensor, is_known: Tensor) -> Tensor:
    """() what brings the known rows of (I, F) to a mean square of 1; 1 where all are zero."""
    mean_square = rows[is_known].double().square().mean()
    return torch.where(mean_square > 0, mean_square.rsqrt(), 1.0).float()


def in_play(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with its items numbered anew, 0 still padding, and (N,) the items by their new number."""
    assert batch.targets is not None
    both = torch.stack([batch.history, batch.targets])
    # Padding has to be number 0, whether or not a row is padded.
    items, number = torch.cat([both.new_zeros(1), both.flatten()]).unique(return_inverse=True)
    history, targets = number[1:].view_as(both)
    return batch.replaced(history=history, targets=targets), items


def pairs_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """() InfoNCE of N pairs of rows (N, D): each of `first` has to find its own among all of `second`."""
    if len(first) < 2:
        return first.sum() * 0  # nothing to tell apart, and still part of the graph
    first, second = (functional.normalize(rows.float(), dim=-1) for rows in (first, second))
    place = torch.arange(len(first), device=first.device)
    with torch.autocast(first.device.type, enabled=False):  # bfloat16 would make neighbours equal
        return functional.cross_entropy(first @ second.T / temperature, place)


def _initialise_as_torch_does(backbone: nn.Module) -> None:
    """Weights of linear layers uniform, positions from N(0, 1), as torch's layers start by themselves."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    positions = getattr(backbone, "positions", None)
    if positions is not None:
        nn.init.normal_(positions)
