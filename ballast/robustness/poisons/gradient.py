"""Gradient matching: a fake user's past is chosen so that training on it pulls as the attacker would.

Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein, Witches' Brew: Industrial Scale Data Poisoning via
Gradient Matching, ICLR 2021, arXiv 2009.02276: the gradient of the poison's own training loss is turned
towards that of the attacker's loss, both at a surrogate trained on clean data.

Departs from the paper: items are discrete, so that the step is that of HotFlip (Ebrahimi, Rao, Lowd, Dou, ACL
2018, arXiv 1712.06751), the exchange of one item that promises most to first order, kept where the cosine of
the two gradients truly rises; each fake user is matched by itself, not the sum over all; no restarts.

The attacker's loss is the cross entropy of the pushed item after the histories of real users. The surrogate
is a small SASRec, trained by the attacker on the training interactions for a fixed number of epochs.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ballast.data.sequences import SequenceStore, training_batches
from ballast.models import registry
from ballast.models.backbones.sasrec import Encoder
from ballast.models.losses.cross_entropy import Objective as CrossEntropy
from ballast.models.method import DatasetInfo
from ballast.models.methods.next_item import NextItem
from ballast.params import TrainingParams
from ballast.reproducibility import generator, seed_dropout
from ballast.robustness import poisons
from ballast.robustness.poisons import Integers, Known
from ballast.robustness.poisons.injection import copied

TRIES = 8
"""The most promising exchanges that are tried before a fake user is left as it is."""
AUDIENCE = 512
"""Real users, drawn by chance, for whom the attacker's loss is computed."""


class Poisoner(poisons.Poisoner):
    """Starts from what real users did, and exchanges items one by one."""

    @dataclass(frozen=True, kw_only=True)
    class Config(poisons.Poisoner.Config):
        """`exchanges` is how many items of a fake user are exchanged at most."""

        exchanges: Annotated[int, Field(ge=1)] = 5
        max_len: Annotated[int, Field(ge=2)] = 20
        dim: Annotated[int, Field(ge=2, multiple_of=2)] = 32
        epochs: Annotated[int, Field(ge=1)] = 20
        learning_rate: Annotated[float, Field(gt=0)] = 2e-3

    def histories(self, known: Known, pushed: Integers, rng: np.random.Generator) -> list[Integers]:
        seed = int(rng.integers(2**31))
        store = _store(known)
        surrogate = self._surrogate(known, store, seed)
        wanted = {int(item): self._wanted(surrogate, store, int(item), seed) for item in np.unique(pushed)}
        found = []
        for item in tqdm(pushed.tolist(), desc="fake users", unit="user", disable=None):
            start = copied(known, item, rng)[-(self.config.max_len - 1) :]
            found.append(_matched(surrogate, start, item, wanted[item], self.config.exchanges))
        return found

    def _surrogate(self, known: Known, store: SequenceStore, seed: int) -> NextItem:
        config = self.config
        parts = {"backbone": {"name": "sasrec"}, "loss": {"name": "cross_entropy"}}
        model = {"dim": config.dim, "max_len": config.max_len, "dropout": 0.2, **parts}
        info = DatasetInfo(len(known.sequences), len(known.counts) - 1, torch.from_numpy(known.counts))
        seed_dropout(seed, "surrogate")
        method = registry.build("next_item", registry.configure("next_item", model, "surrogate"), info)
        # Named here, so that the fingerprint of poisoned data sees all that made it.
        assert isinstance(method, NextItem)
        assert isinstance(method.backbone, Encoder)
        assert isinstance(method.loss, CrossEntropy)
        (optimizer,) = method.optimizers(TrainingParams(learning_rate=config.learning_rate))
        for epoch in tqdm(range(config.epochs), desc="surrogate", unit="epoch", disable=None):
            rng = generator(seed, "surrogate", epoch)
            for batch in training_batches(store, 256, config.max_len, rng):
                optimizer.zero_grad(set_to_none=True)
                method.training_step(batch, rng)["loss"].backward()
                optimizer.step()
        return method.eval()

    def _wanted(self, surrogate: NextItem, store: SequenceStore, item: int, seed: int) -> Tensor:
        """(P,) unit gradient of the attacker's loss."""
        rows = torch.randperm(len(store), generator=generator(seed, "audience"))[:AUDIENCE]
        table = surrogate.item_table()
        state = surrogate.query(store.histories(rows, self.config.max_len), table)  # (B, D)
        # Padding is no item: it does not compete, here as in training.
        loss = functional.cross_entropy(state @ table[1:].T, torch.full((len(rows),), item - 1))
        return functional.normalize(_gradient(loss, surrogate), dim=0)


def _store(known: Known) -> SequenceStore:
    lengths = torch.tensor([0, *(len(items) for items in known.sequences)])
    items = torch.from_numpy(np.concatenate(known.sequences).astype(np.int64))
    return SequenceStore(items, lengths.cumsum(0), torch.arange(1, len(known.sequences) + 1))


def _matched(surrogate: NextItem, history: Integers, pushed: int, wanted: Tensor, exchanges: int) -> Integers:
    """`history` with up to `exchanges` items exchanged, each for a better match with `wanted` (P,)."""
    items = torch.from_numpy(history.copy())
    match, promise = _match(surrogate, items, pushed, wanted)
    for _ in range(exchanges):
        promise[:, 0] = promise[:, pushed] = -torch.inf
        promise[:, items] = -torch.inf  # no item twice
        best = promise.flatten().topk(min(TRIES, promise.numel())).indices.tolist()
        for place, item in (divmod(index, promise.shape[1]) for index in best):
            tried = items.clone()
            tried[place] = item
            better, promise_there = _match(surrogate, tried, pushed, wanted)
            if better > match:
                items, match, promise = tried, better, promise_there
                break
        else:
            break
    return items.numpy()


def _match(surrogate: NextItem, items: Tensor, pushed: int, wanted: Tensor) -> tuple[float, Tensor]:
    """Cosine of the gradient of the training loss on `items` (L,), then `pushed`, with `wanted` (P,), and to
    first order its change (L, I) where the item at a place becomes another one."""
    table = surrogate.item_table()
    moved = torch.zeros(len(items), table.shape[1], dtype=table.dtype, requires_grad=True)
    # The vectors that are read stand in rows of their own, behind those of the items.
    inputs = torch.cat([table, table[items] + moved])
    places = len(table) + torch.arange(len(items))
    # An item is read, and it is the target of the place before it: both are open to change.
    following = torch.cat([items[1:], torch.tensor([pushed])]) - 1
    targets = functional.one_hot(following, len(table) - 1).to(table.dtype).requires_grad_()  # (L, I - 1)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        states = surrogate.encode(places[None], inputs)[0]  # (L, D)
        loss = functional.cross_entropy(states @ table[1:].T, targets)
        match = functional.cosine_similarity(_gradient(loss, surrogate, create_graph=True), wanted, dim=0)
        by_input, by_target = torch.autograd.grad(match, [moved, targets])
    values = table.detach()
    change = by_input @ values.T - (by_input * values[items]).sum(1, keepdim=True)  # (L, I)
    as_target = functional.pad(by_target[:-1], (1, 0))  # (L - 1, I): place t's item is the target at t - 1
    change[1:] += as_target - as_target.gather(1, items[1:, None])
    return float(match.detach()), change


def _gradient(loss: Tensor, surrogate: NextItem, create_graph: bool = False) -> Tensor:
    """(P,) gradient of a loss by all weights; those without one count as zero."""
    weights = list(surrogate.parameters())
    found = torch.autograd.grad(loss, weights, create_graph=create_graph, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])
