"""What an attack raises: how far the items that it aims at fall (or rise) in the lists of a sample of users.

For a user with target t, z the scores times `sharpness` over their standard deviation, and J the items
that compete with t (all but padding and the history):

  rank           -1 / log2(1 + r), r = 1 + sum_{j in J} sigmoid(z_j - z_t), t's smooth rank
  cross_entropy  log(1 + exp m), m = log sum_{j in J} exp z_j - z_t
  likelihood     -1 / (1 + exp m), minus the softmax probability of t
  margin         m

`untargeted` raises the mean over users, t being each user's held-out item; `promote` lowers it, t being the
one item that is pushed. Standardised scores make the attack the same for a method whose scores are
multiplied by a constant, which ranks nothing otherwise.

`rank` is the default (ApproxNDCG: Qin, Liu & Li, Information Retrieval 2010), for it is what the ranks are
judged by. Cross entropy spends itself on users who are lost already, likelihood on single items that it
puts on top of everyone's list: on Amazon Office, NDCG@10 of a SASRec (.074 clean) fell under PGD on the
whole table with budget 0.02 and 0.1 to .041 and .013 by likelihood, to .019 and .000 by rank.

A perturbation is of the catalogue: one for all users, as an item has one vector and one picture. Scores
that a method draws at random enter as the mean over `draws`, the same draws at every step (Athalye et al.,
ICML 2018: expectation over transformation), so that steps can be compared.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ballast.data.sequences import Batch, SequenceStore
from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.reproducibility import generator
from ballast.robustness.surface import Surface, call_with

Goal = Literal["untargeted", "promote"]
LossName = Literal["rank", "cross_entropy", "likelihood", "margin"]

# Scores of one batch: large enough for fast products, small enough to stay out of swap.
SCORES = 1 << 23


@dataclass(frozen=True)
class Sample:
    """Users under attack in batches; the last column of `Batch.targets` is the item aimed at.

    owned: (B, all) a batch, the items that do not compete: the whole history, of which the method may see
    the end only. What the clean model gives is computed once and kept in `known` for all attacks on it: take
    a new sample after weights have changed.
    """

    batches: Sequence[Batch]
    owned: Sequence[Tensor]
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, store: SequenceStore, targets: Tensor, method: Method, num_items: int) -> "Sample":
        """The users of `store`, each with its held-out item of `targets` (U,), like lengths together."""
        size = max(16, min(512, SCORES // (num_items + 1)))
        batches, owned = [], []
        for rows in torch.argsort(store.lengths, stable=True).split(size):
            whole = store.histories(rows)  # (B, all)
            seen = Batch(store.user_ids[rows], whole[:, -method.max_len :])
            batches.append(_aimed(seen, targets.to(whole.device)[rows]))
            owned.append(whole)
        return cls(batches, owned)

    def aimed_at(self, item: int) -> "Sample":
        """The users who have not met the item yet, and that item as everyone's target."""
        batches, owned = [], []
        for batch, whole in zip(self.batches, self.owned, strict=True):
            is_new = (whole != item).all(1) & (_items(batch) != item)
            if bool(is_new.any()):
                rows = Batch(batch.user_id[is_new], batch.history[is_new])
                batches.append(_aimed(rows, torch.full_like(rows.user_id, item)))
                owned.append(whole[is_new])
        return Sample(batches, owned)

    @property
    def user_ids(self) -> Tensor:
        """(U,) users in the order in which gains are told."""
        return torch.cat([batch.user_id for batch in self.batches])

    @property
    def items(self) -> Tensor:
        """(U,) items aimed at, in that order."""
        return torch.cat([_items(batch) for batch in self.batches])


def _aimed(batch: Batch, items: Tensor) -> Batch:
    targets = torch.zeros_like(batch.history)
    targets[:, -1] = items
    return replace(batch, targets=targets)


def _items(batch: Batch) -> Tensor:
    if batch.targets is None:
        raise BallastError("an attack needs batches whose `targets` end with the item aimed at")
    return batch.targets[:, -1]


@dataclass(frozen=True)
class Point:
    """Where an attack stands. gains: (U,) float64, higher is worse for the method; gradient: of their mean
    with respect to the perturbation, or None if it was not asked for."""

    gains: Tensor
    gradient: Tensor | None

    @property
    def gain(self) -> float:
        """Mean over users."""
        return float(self.gains.mean())


class Objective:
    """The gain of perturbations of one surface of `method`, which is in evaluation mode."""

    def __init__(
        self,
        method: Method,
        sample: Sample,
        surface: Surface,
        goal: Goal = "untargeted",
        loss: LossName = "rank",
        sharpness: float = 4.0,
        draws: int = 8,
    ) -> None:
        if method.training:
            raise BallastError("an attack needs the method in evaluation mode: call method.eval()")
        self.method, self.sample, self.surface = method, sample, surface
        self.goal, self.loss, self.sharpness = goal, loss, sharpness
        # Repeated draws of scores that do not vary would be a waste.
        random = self._once("random", lambda: is_random(method, sample.batches[0]))
        self.draws = draws if random else 1

    def at(self, delta: Tensor, with_gradient: bool = True) -> Point:
        """Gains, and their gradient, where `delta` (I, F) is added to the surface."""
        if not bool(delta.any()):
            key = ("clean", self.surface.name, self.goal, self.loss, self.sharpness, self.draws)
            return self._once(key, lambda: self._computed(delta, True))
        return self._computed(delta, with_gradient)

    def _computed(self, delta: Tensor, with_gradient: bool) -> Point:
        delta = delta.detach().requires_grad_(with_gradient)
        scales = self._once("scales", self._clean_scales)
        users = sum(len(batch.user_id) for batch in self.sample.batches)
        gradient = torch.zeros_like(delta) if with_gradient else None
        parts = []
        with torch.set_grad_enabled(with_gradient):
            for place, batch in enumerate(self.sample.batches):
                total = torch.zeros(len(batch.user_id), dtype=torch.float64, device=delta.device)
                for draw in range(self.draws):
                    scores = self._scores(batch, self.surface.moved(delta), place, draw)
                    gains = self._gains(scores, place, scales[place]) / self.draws
                    total += gains.detach().double()
                    if gradient is not None and gains.requires_grad:
                        # Of the perturbation alone: the weights' own gradients are not computed.
                        (part,) = torch.autograd.grad(
                            gains.sum(), delta, allow_unused=True, retain_graph=True
                        )
                        gradient += 0 if part is None else part
                parts.append(total)
        return Point(torch.cat(parts), None if gradient is None else gradient / users)

    def _scores(self, batch: Batch, overrides: dict[str, Tensor], place: int, draw: int) -> Tensor:
        with _drawing(draw, place):
            rng = generator(draw, "attack", place, device=batch.history.device)
            scores: Tensor = call_with(self.method, "score", overrides, batch, rng)
        return scores

    def _gains(self, scores: Tensor, place: int, scale: Tensor) -> Tensor:
        """(B,) what the attack gains, from (B, I) scores and the (B, 1) factor that standardises them."""
        items = _items(self.sample.batches[place])
        own, others = competing(scores * scale, self.sample.owned[place], items)
        if self.loss == "rank":
            gains = -1 / torch.log2(2 + torch.sigmoid(others - own[:, None]).sum(dim=1))
            return gains if self.goal == "untargeted" else -gains
        margin = others.logsumexp(dim=1) - own
        if self.loss == "likelihood":
            gains = -torch.sigmoid(-margin)  # exact where the probability is tiny, as 1 - p would not be
        else:
            gains = functional.softplus(margin) if self.loss == "cross_entropy" else margin
        return gains if self.goal == "untargeted" else -gains

    @torch.no_grad()
    def _clean_scales(self) -> list[Tensor]:
        """(B, 1) a batch: sharpness over the standard deviation of each user's clean scores."""
        scales = []
        for place, batch in enumerate(self.sample.batches):
            spread = self._scores(batch, {}, place, 0)[:, 1:].std(dim=1, keepdim=True)
            is_taken = (spread > 0) & (self.sharpness > 0)
            scales.append(torch.where(is_taken, self.sharpness / spread, 1.0))
        return scales

    def _once(self, key: Any, compute: Any) -> Any:
        # The method is kept beside its results, so that its id is not given to another one.
        key = (id(self.method), key, self.sharpness if key == "scales" else None)
        if key not in self.sample.known:
            self.sample.known[key] = (self.method, compute())
        return self.sample.known[key][1]


def competing(scores: Tensor, owned: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) scores of `items` (B,), and (B, I) scores of all others, -inf where they do not compete.

    Padding and the history (B, all) are out of the race, as in the ranking.
    """
    absent = torch.cat([torch.zeros_like(items[:, None]), owned, items[:, None]], dim=1)
    return scores.gather(1, items[:, None])[:, 0], scores.scatter(1, absent, -torch.inf)


@torch.no_grad()
def is_random(method: Method, batch: Batch) -> bool:
    """Whether scores of one batch differ between two draws, from the given generator or torch's own."""
    found = []
    for draw in (0, 1):
        with _drawing(draw, 0):
            rng = generator(draw, "attack", 0, device=batch.history.device)
            found.append(method.score(batch, rng).nan_to_num())  # else no NaN would equal itself
    return not torch.equal(*found)


@contextlib.contextmanager
def _drawing(draw: int, place: int) -> Iterator[None]:
    """Seed torch's global generators for methods that draw from them, and leave them as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator(draw, "attack scores", place).initial_seed())
        yield
