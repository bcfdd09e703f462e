"""VQ-Rec: items as discrete codes of their texts.

Hou, He, McAuley, Zhao, WWW 2023, doi 10.1145/3543507.3583434, arXiv 2210.12316. Features are cut into
`groups` parts, each of which is one of `codes` centroids (product quantisation); an item is the mean of the
vectors of its codes, scores are cosines. Pre-training (`loss: {name: in_batch}`) adds to the batch's
targets one semi-synthetic negative for each, a target's codes of which a share `synthetic` is exchanged for
random ones. Adapting (`carries_items: true`) keeps centroids, code vectors and encoder; `is_realigned`
learns for each group which of the carried code vectors a code of the new domain takes: a doubly stochastic
matrix (Sinkhorn, 3 rounds), starting close to the identity.

Departs from the paper: trained on all positions at once; features are rotated at random before they are
cut, not by a learned rotation (OPQ); the matrices are learned together with the rest, not before it, and
without Gumbel noise.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.losses.in_batch import Objective as InBatch
from ballast.models.method import DatasetInfo
from ballast.models.sequential import added
from ballast.models.transferable import TransferableMethod, in_play
from ballast.reproducibility import generator

SINKHORN_ROUNDS = 3
# Logit of a code for itself at the start, .99 of the share among 256; steps are scaled by it, too.
IDENTITY = 10.0


class Vqrec(TransferableMethod):
    """e_i = mean over groups g of V_g[code of x_i's part g]."""

    item_side = ("centroids_", "code_vectors.")

    @dataclass(frozen=True, kw_only=True)
    class Config(TransferableMethod.Config):
        groups: int = 32
        codes: int = 256
        synthetic: float = 0.0
        is_realigned: bool = False

    def build_items(self, data: DatasetInfo) -> None:
        config = self.config
        if config.synthetic and (config.has_ids or not isinstance(self.loss, InBatch)):
            raise BallastError("model.synthetic: goes with model.loss in_batch, and without ids; set it to 0")
        self.code_vectors = nn.ParameterDict()
        self.alignments = nn.ParameterDict()
        for name in config.modalities:
            features = getattr(self, f"features_{name}")
            if features.shape[1] % config.groups:
                raise BallastError(
                    f"model.groups: {config.groups} does not divide the {features.shape[1]} {name} features"
                )
            known = self._parts(features)[:, ~data.missing[name]]
            self.register_buffer(f"centroids_{name}", _centroids(known, config.codes))
            self.register_buffer(
                f"codes_{name}", torch.zeros(len(features), config.groups, dtype=torch.int64)
            )
            vectors = torch.empty(config.groups, config.codes, config.dim).normal_(std=0.02)
            self.code_vectors[name] = nn.Parameter(vectors)
            if config.is_realigned:
                self.alignments[name] = nn.Parameter(torch.eye(config.codes).repeat(config.groups, 1, 1))
        self._assign_codes()

    def enter(self, phase: str) -> None:
        """Centroids may have been carried over since the codes were assigned."""
        self._assign_codes()

    def _parts(self, features: Tensor) -> Tensor:
        """(N, F) features to (G, N, F / G), rotated, lest some groups hold most of the variance."""
        width = features.shape[1]
        drawn = torch.randn(width, width, generator=generator(0, "rotation of codes"))
        rotated = features @ torch.linalg.qr(drawn)[0].to(features.device)
        return rotated.view(len(features), self.config.groups, -1).transpose(0, 1)

    @torch.no_grad()
    def _assign_codes(self) -> None:
        for name in self.config.modalities:
            parts = self._parts(getattr(self, f"features_{name}"))  # (G, I, F / G)
            nearest = torch.cdist(parts, getattr(self, f"centroids_{name}")).argmin(-1)  # (G, I)
            getattr(self, f"codes_{name}").copy_(nearest.T)

    def modality_vectors(self, items: Tensor | None = None) -> dict[str, Tensor]:
        found = {}
        for name in self.config.modalities:
            codes, is_known = self.known(name, "codes", items)
            found[name] = self._decoded(name, codes) * is_known
        return found

    def _decoded(self, name: str, codes: Tensor) -> Tensor:
        """(N, G) codes to the (N, D) means of their vectors."""
        vectors = self.code_vectors[name]  # (G, C, D)
        if name in self.alignments:
            vectors = torch.bmm(_doubly_stochastic(IDENTITY * self.alignments[name]), vectors.float())
        first = torch.arange(len(vectors), device=codes.device) * vectors.shape[1]
        return functional.embedding_bag(codes + first, vectors.flatten(0, 1), mode="mean")

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        if not self.config.synthetic:
            return super().training_step(batch, rng)
        short, items = in_play(batch)
        table = self.item_vectors(items)[0]
        view = self.backbone.training_view(short, rng)
        assert view.targets is not None
        row, place = torch.nonzero(view.targets, as_tuple=True)  # (M,) each
        hidden = self.encode(view.history, table)[row, place]  # (M, D)
        targets, number = view.targets[row, place].unique(return_inverse=True)
        candidates = torch.cat([table[targets], self._synthetic(items[targets], rng)])  # (2 C, D)
        logits = hidden @ functional.normalize(candidates.float(), dim=-1).T
        loss = functional.cross_entropy(logits.float(), number)
        extra = self.backbone.extra_losses(short, table, rng)
        return {"loss": added(loss, extra), "next_item": loss, **extra} if extra else {"loss": loss}

    def _synthetic(self, items: Tensor, rng: torch.Generator) -> Tensor:
        """(N, D) vectors of items whose codes are partly exchanged."""
        made = []
        for name in self.config.modalities:
            codes = getattr(self, f"codes_{name}")[items]  # (N, G)
            is_changed = torch.rand(codes.shape, generator=rng, device=codes.device) < self.config.synthetic
            drawn = torch.randint(self.config.codes, codes.shape, generator=rng, device=codes.device)
            made.append(self._decoded(name, torch.where(is_changed, drawn, codes)))
        return torch.stack(made).sum(0)


def _centroids(parts: Tensor, count: int) -> Tensor:
    """(G, C, P) centroids of G clouds of points (G, N, P); where there are fewer points, copies fill up."""
    found = []
    for cloud in parts.cpu().numpy():
        size = max(1, min(count, len(np.unique(cloud, axis=0))))
        if len(cloud) == 0:
            cloud = np.zeros((1, cloud.shape[1]), np.float32)
        with warnings.catch_warnings():
            # Points that differ in their last bits alone share a centre; codes of no item do no harm.
            warnings.simplefilter("ignore", ConvergenceWarning)
            centres = KMeans(size, n_init=1, max_iter=50, random_state=0).fit(cloud).cluster_centers_
        found.append(np.concatenate([centres, np.repeat(centres[:1], count - size, axis=0)]))
    return torch.from_numpy(np.stack(found).astype(np.float32))


def _doubly_stochastic(logits: Tensor) -> Tensor:
    """(G, C, C) matrices whose rows and columns add up to 1, nearly."""
    for _ in range(SINKHORN_ROUNDS):
        logits = logits.log_softmax(2).log_softmax(1)
    return logits.log_softmax(2).exp()
