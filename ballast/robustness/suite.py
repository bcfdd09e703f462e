"""One trained method under every condition: who ranks what where, beside the same users' clean ranks.

Clean scores are computed once and shared by all conditions. What is random depends on the suite's seed and
the surface, never on the method, the condition's place in the list, or a training generator; the random
attack and PGD's random start share their draws, so that PGD cannot gain less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ballast.data.sequences import SequenceStore
from ballast.evaluation.ranking import Ranking, rank_targets
from ballast.models.method import Method
from ballast.reproducibility import generator
from ballast.robustness.attacks import Attack, Perturbed
from ballast.robustness.ball import Ball
from ballast.robustness.checks import Flag, Outcome, check_gradient, check_zero
from ballast.robustness.corruption import Corrupted, hashed
from ballast.robustness.missing import drop
from ballast.robustness.objective import Sample
from ballast.robustness.stability import rank_with_histories, rbo
from ballast.robustness.surface import Overridden, surface

TOPK = 10
MODALITIES = ("text", "image", "price")


@dataclass(frozen=True)
class Answer:
    """What one condition did to U users.

    user_id, clean_rank, rank: (U,) int64, of the item that is looked at; size: (U,) float, what was really
    changed; truncated: (U,) bool, some of it may be out of the method's sight; rbo: (U,) overlap of the two
    lists. outcome: what the checks compare; None for conditions that are no attack.
    """

    user_id: NDArray[np.int64]
    clean_rank: NDArray[np.int64]
    rank: NDArray[np.int64]
    size: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    rbo: NDArray[np.float64]
    outcome: Outcome | None = None


@dataclass
class Subject:
    """A method in evaluation mode, the clean histories of U users, and their (U,) held-out items."""

    method: Method
    clean: SequenceStore
    targets: Tensor
    num_items: int

    @cached_property
    def sample(self) -> Sample:
        """The users as attacks take them; it keeps what the clean method gives."""
        return Sample.of(self.clean, self.targets, self.method, self.num_items)

    @cached_property
    def _samples(self) -> dict[int, Sample]:
        return {}

    @cached_property
    def _rankings(self) -> dict[int | None, Ranking]:
        return {}

    def reference(self, item: int | None = None) -> Ranking:
        """Clean ranks of the held-out items, or of one item for everybody."""
        if item not in self._rankings:
            self._rankings[item] = rank_targets(self.method, self.clean, self._aims(item), topk=TOPK)
        return self._rankings[item]

    def corrupted(self, noise: Corrupted) -> Answer:
        """Under other histories; the mask is of both, see `rank_with_histories`."""
        ranking = rank_with_histories(self.method, self.clean, noise.store, self.targets, topk=TOPK)
        longest = torch.maximum(self.clean.lengths, noise.store.lengths).cpu().numpy()
        return self._answer(ranking, noise.size.numpy().astype(float), longest > self.method.max_len)

    def without(self, modality: str, share: float, seed: int) -> Answer:
        """Where a share of the items has lost a modality."""
        dropped = drop(self.method, modality, share, seed)
        return self._answer(self._ranked(dropped.overrides, None), dropped.size)

    def attacked(self, attack: Attack, budget: float, seed: int, item: int | None = None) -> Answer:
        """Under an attack at one budget; with `item`, of that item among the users who have not met it."""
        sample = self._sample(item)
        found = self.perturbed(attack, budget, seed, item)
        outcome = Outcome.of(attack.config.name, _group(attack, item), budget, found)
        ranking = self._ranked(found.overrides, item)
        rows = (
            None
            if item is None
            else np.isin(self.clean.user_ids.cpu().numpy(), sample.user_ids.cpu().numpy())
        )
        return self._answer(ranking, found.size, item=item, rows=rows, outcome=outcome)

    def perturbed(self, attack: Attack, budget: float, seed: int, item: int | None = None) -> Perturbed:
        """What the attack finds, without a ranking."""
        return attack.perturb(self.method, self._sample(item), budget, _rng(attack, seed))

    def untouched(self, attack: Attack, item: int | None = None) -> Outcome:
        """The attack's gain where it does nothing, which its other outcomes are compared with."""
        found = attack.perturb(self.method, self._sample(item), 0.0, _rng(attack, 0))
        return Outcome.of("clean", _group(attack, item), 0.0, found)

    def surface_flags(self, attack: Attack, budget: float, seed: int) -> list[Flag]:
        """What `check_zero` and `check_gradient` say of the attack's surface and ball."""
        target, config = surface(self.method, attack.surface), attack.config
        about = f"{attack.surface}, {attack.norm}, {config.scope}"
        nothing = check_zero(self.method, self.sample, self.perturbed(attack, 0.0, seed), about)
        rows = attack.movable(self.sample, target)
        ball = Ball.around(target, budget, config.norm, config.scope, rows)
        objective = attack.objective(self.method, self.sample, target)
        return nothing + check_gradient(objective, ball, generator(seed, "check"))

    def _sample(self, item: int | None) -> Sample:
        if item is None:
            return self.sample
        if item not in self._samples:
            self._samples[item] = self.sample.aimed_at(item)
        return self._samples[item]

    def _aims(self, item: int | None) -> Tensor:
        return self.targets if item is None else torch.full_like(self.targets, item)

    def _ranked(self, overrides: dict[str, Tensor], item: int | None) -> Ranking:
        return rank_targets(Overridden(self.method, overrides), self.clean, self._aims(item), topk=TOPK)

    def _answer(
        self,
        ranking: Ranking,
        size: float | NDArray[np.float64],
        truncated: NDArray[np.bool_] | None = None,
        item: int | None = None,
        rows: NDArray[np.bool_] | None = None,
        outcome: Outcome | None = None,
    ) -> Answer:
        """Columns of the robustness table, of the users in `rows` (all if None)."""
        reference, users = self.reference(item), len(self.clean)
        assert reference.topk is not None
        assert ranking.topk is not None
        keep = np.ones(users, bool) if rows is None else rows
        overlap = rbo(reference.topk.numpy()[keep], ranking.topk.numpy()[keep]).round(3)
        return Answer(
            self.clean.user_ids.cpu().numpy()[keep],
            reference.rank.numpy()[keep].astype(np.int64),
            ranking.rank.numpy()[keep].astype(np.int64),
            np.broadcast_to(np.asarray(size, dtype=float), (users,))[keep],
            (np.zeros(users, bool) if truncated is None else truncated)[keep],
            overlap,
            outcome,
        )


def pushed_items(counts: Tensor, number: int, seed: int) -> list[int]:
    """Items to promote, the same for every method: drawn from thirds of the catalogue by popularity, rarest
    first, then around again. counts: (I,) training interactions, entry 0 is padding."""
    items = np.arange(1, len(counts), dtype=np.int64)
    order = items[np.argsort(counts.cpu().numpy()[1:], kind="stable")]
    chosen: list[int] = []
    for place in range(number):
        third = np.array_split(order, 3)[place % 3]
        free = third[~np.isin(third, chosen)]
        draws = hashed(seed, f"promoted {place}", free, np.zeros_like(free))
        if len(free):
            chosen.append(int(free[int(np.argmin(draws))]))
    return chosen


def surfaces_for(method: Method, wanted: Sequence[str]) -> list[str]:
    """The method's surfaces that a block of params.yaml asks for; all of them where it names none."""
    return [name for name in method.surfaces if not wanted or name in wanted]


def _group(attack: Attack, item: int | None) -> str:
    config = attack.config
    aim = "" if item is None else f", promoting {item}"
    return f"{attack.surface}, {attack.norm}, {config.scope}, {config.loss}{aim}"


def _rng(attack: Attack, seed: int) -> torch.Generator:
    return generator(seed, "attack", attack.surface, attack.norm, attack.config.scope)
