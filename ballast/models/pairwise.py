"""What methods trained on pairs of items share: users' vectors, triples, the BPR loss, blocks of features.

A triple (u, i, j) says that user u took item i and not j. With the score s_ui = p_u . v_i + b_i and
x_uij = s_ui - s_uj the loss is the mean of -log sigmoid(x_uij) over the triples of a batch (Rendle et al.,
BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009), and the penalties are means over the
same triples of weight |.|^2 of what takes part in each, so that an item counts as often as it is met.

A batch holds whole users: every item of each is once the i of a triple, and j is drawn anew for it,
uniformly outside the user's items. Nothing is dropped. An epoch therefore meets each pair once, as a pass
over shuffled pairs does, but the pairs of a user come together.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ballast.content import whitening
from ballast.data.sequences import Batch, sample_negatives
from ballast.models.layers import small_embedding
from ballast.models.method import DatasetInfo, Method

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Pairs:
    """n triples of B users about R different items, int64.

    user_id: (B,). owner: (n,) places in user_id. items: (R,) ids, each once. positive, negative: (n,)
    places in items.
    """

    user_id: Tensor
    owner: Tensor
    items: Tensor
    positive: Tensor
    negative: Tensor


def draw_pairs(batch: Batch, num_items: int, rng: torch.Generator) -> Pairs:
    """One triple for each item of each user in a training batch: its history and its last target.

    The other items are drawn with `rng`, uniformly outside the user's own (see `sample_negatives`).
    """
    assert batch.targets is not None
    own = torch.cat([batch.history, batch.targets[:, -1:]], dim=1)  # (B, L + 1)
    drawn = sample_negatives((own.shape[0], own.shape[1]), num_items, own, rng)
    owner, place = torch.nonzero(own, as_tuple=True)  # (n,) each
    both = torch.cat([own[owner, place], drawn[owner, place]])  # (2 n,)
    # Few items are all computed: to look up which are in play costs more than it saves.
    if num_items < len(both):
        items = torch.arange(num_items + 1, device=both.device)
    else:
        items, both = torch.unique(both, return_inverse=True)
    return Pairs(batch.user_id, owner, items, *both.chunk(2))


def bpr_loss(difference: Tensor) -> Tensor:
    """() mean of -log sigmoid of the (n,) differences of scores."""
    return functional.softplus(-difference).mean()


class PairwiseMethod(Method):
    """Users and items as vectors under the BPR loss; a subclass says what an item's vector is."""

    # A user's first item is a pair like any other: a lone one is all that there is to learn from.
    learns_first_items: ClassVar[bool] = True
    learns_users: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        dim: Count = 64
        max_len: Count = 1000
        """Only the most recent items of a user are trained on: enough to cut nobody short."""
        init_scale: Weight = 0.01
        has_bias: bool = True
        user_penalty: Weight = 0.0
        item_penalty: Weight = 0.0
        bias_penalty: Weight = 0.0

    def __init__(self, config: Any, data: DatasetInfo) -> None:
        super().__init__(config, data)
        self.num_items = data.num_items
        self.users = small_embedding(data.num_users + 1, config.dim, config.init_scale)
        self.bias = nn.Parameter(torch.zeros(data.num_items + 1)) if config.has_bias else None

    def user_vectors(self, user_id: Tensor) -> Tensor:
        """(B,) user ids to (B, D) vectors."""
        vectors: Tensor = self.users(user_id)
        return vectors

    def item_table(self, items: Tensor | None = None) -> Tensor:
        """(R, D) vectors of these items, or (I, D) of all; row 0 of all is zero."""
        raise NotImplementedError

    def item_bias(self, items: Tensor | None = None) -> Tensor | None:
        """(R,) what is added to every user's score of these items, or (I,) for all; None for nothing."""
        return self.bias if self.bias is None or items is None else self.bias.index_select(0, items)

    def penalty(self, user: Tensor, items: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        """() penalties of (n, D) users, (R, D) items and (R,) biases, means over the triples."""
        config, zero = self.config, user.new_zeros(())
        parts = [zero]
        if config.user_penalty > 0:
            parts.append(config.user_penalty * user.square().sum())
        if config.item_penalty > 0:
            parts.append(config.item_penalty * _per_pair(items.square().sum(1), pairs).sum())
        if config.bias_penalty > 0 and bias is not None:
            parts.append(config.bias_penalty * _per_pair(bias.square(), pairs).sum())
        return torch.stack(parts).sum() / len(pairs.owner)

    def pair_loss(self, pairs: Pairs, rng: torch.Generator) -> dict[str, Tensor]:
        """Losses of given triples; "clean" is the BPR loss without penalties."""
        user, items, bias = self._vectors(pairs)
        clean = bpr_loss(self._difference(user, items, bias, pairs))
        return {"loss": clean + self.penalty(user, items, bias, pairs), "clean": clean.detach()}

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        # Gradients of single items are small against what bfloat16 keeps of a sum.
        with torch.autocast(batch.history.device.type, enabled=False):
            return self.pair_loss(draw_pairs(batch, self.num_items, rng), rng)

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        with torch.autocast(batch.history.device.type, enabled=False):
            scores = self.user_vectors(batch.user_id) @ self.item_table().T  # (B, I)
            bias = self.item_bias()
            return scores if bias is None else scores + bias

    def _vectors(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor | None]:
        """(n, D) users of the triples, (R, D) items and (R,) biases in play."""
        user = self.user_vectors(pairs.user_id).index_select(0, pairs.owner)  # (n, D)
        return user, self.item_table(pairs.items), self.item_bias(pairs.items)

    def _difference(self, user: Tensor, items: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        """(n,) score of the positive less that of the negative."""
        # index_select: its backward adds rows up directly, where that of items[...] sorts them first.
        apart = items.index_select(0, pairs.positive) - items.index_select(0, pairs.negative)  # (n, D)
        difference = (user * apart).sum(1)
        if bias is None:
            return difference
        return difference + bias.index_select(0, pairs.positive) - bias.index_select(0, pairs.negative)


def _per_pair(values: Tensor, pairs: Pairs) -> Tensor:
    """(R,) values of items to (2 n,) values of both sides of each triple."""
    return values.index_select(0, torch.cat([pairs.positive, pairs.negative]))


class ContentPairwiseMethod(PairwiseMethod):
    """A pairwise method whose items have features: a projection for each modality, added up.

    With x_im the features of item i in modality m, zero where missing, c_im = x_im / max |x_m| over all
    items and dimensions: a budget in units of c means the same for every method here. The scale and the
    norms |c_im| of the items that have m (least, median, largest) are buffers, for the record.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(PairwiseMethod.Config):
        modalities: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["image"])
        is_whitened: bool = False
        """Decorrelate the features of each modality first, before they are scaled."""
        projection_penalty: Weight = 0.0

    def __init__(self, config: Any, data: DatasetInfo, width: int) -> None:
        super().__init__(config, data)
        self.projections = nn.ParameterDict()  # E_m (D, F) of each modality
        for modality in config.modalities:
            raw, missing = data.features[modality], data.missing[modality].clone()
            missing[0] = True
            if config.is_whitened:
                raw = whitening.fit(raw, missing).apply(raw)
            features = raw.masked_fill(missing[:, None], 0.0)
            largest = features.abs().amax()
            scale = torch.where(largest > 0, largest, 1.0)
            self.register_buffer(f"features_{modality}", features / scale)  # (I, F)
            self.register_buffer(f"present_{modality}", ~missing)
            self.register_buffer(f"scale_{modality}", scale)
            self.register_buffer(f"norms_{modality}", _spread((features / scale).norm(dim=1)[~missing]))
            projection = torch.empty(width, features.shape[1])
            self.projections[modality] = nn.Parameter(nn.init.normal_(projection, std=config.init_scale))
        # Which surfaces there are is the config's choice.
        self.surfaces = self._surfaces()  # type: ignore[misc]
        self.raw_surfaces = frozenset(() if config.is_whitened else config.modalities)

    def _surfaces(self) -> dict[str, str]:
        """What an attack may change: each modality's features, and what the class has anyway."""
        features = {modality: f"features_{modality}" for modality in self.config.modalities}
        return {**type(self).surfaces, **features}

    def content(self, items: Tensor | None = None) -> Tensor:
        """(R, D) sum over modalities of E_m c_im of these items, or (I, D) of all; zero where missing."""
        parts = []
        for modality, projection in self.projections.items():
            features = getattr(self, f"features_{modality}")
            chosen = features if items is None else features.index_select(0, items)  # (R, F)
            # In this order, both this product and that of its backward are several times faster.
            parts.append((projection @ chosen.T).T)  # (R, D)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def penalty(self, user: Tensor, items: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        whole = super().penalty(user, items, bias, pairs)
        if self.config.projection_penalty > 0:
            for projection in self.projections.values():
                whole = whole + self.config.projection_penalty * projection.square().sum()
        return whole


def _spread(norms: Tensor) -> Tensor:
    """(3,) least, median and largest of (P,) norms; zero of none."""
    if len(norms) == 0:
        return norms.new_zeros(3)
    return torch.stack([norms.amin(), norms.median(), norms.amax()])
