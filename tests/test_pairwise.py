"""Pairs, the BPR loss and the methods on it that have no adversary, against computations by hand."""

import math
from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor, nn

from ballast.content import whitening
from ballast.data.sequences import Batch, training_batches
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.models.pairwise import Pairs, bpr_loss, draw_pairs
from ballast.models.training import Validation, fit
from ballast.params import TrainingParams
from ballast.reproducibility import seed_dropout

METHODS = ("bpr_mf", "vbpr", "duif", "amr")
CONTENT = ("vbpr", "duif", "amr")


def built(method: str, info: DatasetInfo, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    model = {"dim": 4, "init_scale": 0.5, **settings}
    return registry.build(method, registry.configure(method, model, "model"), info).double()


class Scores(nn.Module):
    """A method's scores as a module's output, so that functional_call can exchange what it holds."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> Tensor:
        scores: Tensor = self.method.score(batch)  # type: ignore[operator]
        return scores


def batches(histories: list[list[int]], size: int = 5) -> list[Batch]:
    return list(training_batches(make_store(histories), size, 1000, torch.Generator().manual_seed(0)))


# Pairs


@pytest.mark.parametrize("num_items", [ITEMS, 500])
def test_every_training_item_is_used_once_and_only_against_others(num_items: int) -> None:
    histories = walk(13)  # in batches of 5: the last one is partial
    rng = torch.Generator().manual_seed(0)
    met = []
    for batch in batches(histories):
        pairs = draw_pairs(batch, num_items, rng)
        users = pairs.user_id[pairs.owner].tolist()
        assert len(pairs.items.unique()) == len(pairs.items)
        positive, negative = (pairs.items[side].tolist() for side in (pairs.positive, pairs.negative))
        met += list(zip(users, positive, strict=True))
        assert all(item not in histories[user - 1] for user, item in zip(users, negative, strict=True))
        assert 1 <= min(negative) <= max(negative) <= num_items
    expected = [(user, item) for user, history in enumerate(histories, 1) for item in history]
    assert sorted(met) == sorted(expected)


def test_negatives_are_uniform_outside_the_users_items() -> None:
    history = [1, 2, 3]
    drawn = torch.zeros(8)
    rng = torch.Generator().manual_seed(0)
    (batch,) = batches([history])
    for _ in range(2000):
        pairs = draw_pairs(batch, 7, rng)
        drawn += torch.bincount(pairs.items[pairs.negative], minlength=8)
    assert drawn[:4].sum() < 0.03 * drawn.sum()  # (3 / 7)^5 are left after the redraws
    torch.testing.assert_close(drawn[4:] / drawn[4:].sum(), torch.full((4,), 0.25), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_that_of_a_loop_over_triples(name: str, toy_info: DatasetInfo) -> None:
    settings: dict[str, Any] = {
        "user_penalty": 0.3,
        "item_penalty": 0.2,
        "bias_penalty": 0.1,
        "has_bias": True,
    }
    if name in CONTENT:
        settings |= {"modalities": ["image", "text"], "projection_penalty": 0.05}
    if name == "amr":
        settings["weight"] = 0.0
    model = built(name, toy_info, **settings)
    with torch.no_grad():
        model.bias[1:] = torch.randn(ITEMS)
    (batch,) = batches(walk(6), 6)
    pairs = draw_pairs(batch, ITEMS, torch.Generator().manual_seed(1))
    scores = model.score(Batch(pairs.user_id, batch.history))
    expected = 0.0
    for owner, i, j in zip(pairs.owner, pairs.positive, pairs.negative, strict=True):
        items = pairs.items[torch.stack([i, j])]
        difference = scores[owner, items[0]] - scores[owner, items[1]]
        expected += math.log1p(math.exp(-difference.item())) / len(pairs.owner)
        user = model.user_vectors(pairs.user_id[owner][None])
        vectors = model.items(items) if name == "vbpr" else model.item_table(items)
        squares = [part.square().sum().item() for part in (user, vectors, model.bias[items])]
        penalty = 0.3 * squares[0] + 0.2 * squares[1] + 0.1 * squares[2]
        expected += penalty / len(pairs.owner)
    if name in CONTENT:
        whole = [*model.projections.values(), *(model.content_bias.values() if name == "vbpr" else [])]
        expected += 0.05 * sum(part.square().sum().item() for part in whole)
    found = model.training_step(batch, torch.Generator().manual_seed(1))
    assert found["loss"].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_all_items_and_those_in_play_give_the_same_gradients(name: str, toy_info: DatasetInfo) -> None:
    """Two ways to compute the items: what is drawn is the same."""
    model = built(name, toy_info)
    pairs = draw_pairs(batches(walk(4), 4)[0], ITEMS, torch.Generator().manual_seed(1))
    items, both = torch.unique(pairs.items[torch.cat([pairs.positive, pairs.negative])], return_inverse=True)
    few = Pairs(pairs.user_id, pairs.owner, items, *both.chunk(2))
    every = Pairs(pairs.user_id, pairs.owner, torch.arange(ITEMS + 1), *items[both].chunk(2))
    gradients = []
    for one in (few, every):
        model.zero_grad()
        model.pair_loss(one, torch.Generator())["loss"].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_the_loss_of_no_difference_is_that_of_a_coin() -> None:
    assert bpr_loss(torch.zeros(5)).item() == pytest.approx(math.log(2))


# Scores and features


def test_vbpr_scores_are_those_of_a_loop(toy_info: DatasetInfo) -> None:
    model = built("vbpr", toy_info, content_dim=3, modalities=["image", "price"])
    for parameter in (model.bias, *model.content_bias.values()):
        nn.init.normal_(parameter)
    users = torch.tensor([3, 1])
    scores = model.score(Batch(users, torch.zeros(2, 1, dtype=torch.int64)))
    for row, user in enumerate(users.tolist()):
        for item in range(1, ITEMS + 1):
            expected = model.bias[item] + model.users.weight[user] @ model.items.weight[item]
            for modality in ("image", "price"):
                raw = toy_info.features[modality].double()
                feature = raw[item] / raw.abs().max()
                seen = sum(model.projections[modality][:, f] * feature[f] for f in range(len(feature)))
                expected = expected + model.content_users.weight[user] @ seen
                expected = expected + model.content_bias[modality] @ feature
            assert scores[row, item].item() == pytest.approx(expected.item(), rel=1e-6)  # float32 features


@pytest.mark.parametrize("name", CONTENT)
def test_features_are_scaled_once_and_their_norms_recorded(name: str, toy_info: DatasetInfo) -> None:
    model = built(name, toy_info, modalities=["image", "text"])
    for modality in ("image", "text"):
        features = getattr(model, f"features_{modality}")
        missing = toy_info.missing[modality]
        assert features.abs().max().item() == pytest.approx(1.0)
        assert not features[missing].any()
        assert torch.equal(getattr(model, f"present_{modality}"), ~missing)
        norms = features[~missing].norm(dim=1)
        expected = torch.stack([norms.min(), norms.median(), norms.max()])
        torch.testing.assert_close(getattr(model, f"norms_{modality}"), expected, atol=1e-6, rtol=1e-6)
        raw = toy_info.features[modality].double()
        torch.testing.assert_close(features * getattr(model, f"scale_{modality}"), raw, atol=1e-6, rtol=1e-6)


def test_whitened_features_are_decorrelated_before_they_are_scaled(toy_info: DatasetInfo) -> None:
    model = built("duif", toy_info, is_whitened=True)
    raw, missing = toy_info.features["image"], toy_info.missing["image"]
    expected = whitening.fit(raw, missing).apply(raw, missing)
    torch.testing.assert_close(model.features_image.float(), expected / expected.abs().max())


def test_a_modality_that_all_items_lack_changes_nothing(toy_info: DatasetInfo) -> None:
    gone = torch.ones(ITEMS + 1, dtype=torch.bool)
    info = DatasetInfo(60, ITEMS, toy_info.item_counts, {"image": torch.zeros(ITEMS + 1, 4)}, {"image": gone})
    for name in CONTENT:
        model = built(name, info)
        loss = model.training_step(batches(walk(4))[0], torch.Generator().manual_seed(0))["loss"]
        assert torch.isfinite(loss)
        assert not model.content().any()


@pytest.mark.parametrize("name", METHODS)
def test_surfaces_exist_and_reach_the_scores(name: str, toy_info: DatasetInfo) -> None:
    settings = {"modalities": ["image", "price"]} if name in CONTENT else {}
    model = built(name, toy_info, **settings)
    assert set(settings.get("modalities", [])) <= set(model.surfaces)
    batch = Batch(torch.tensor([1, 2]), torch.zeros(2, 1, dtype=torch.int64))
    scorer = Scores(model)
    clean = scorer(batch)
    for surface, key in model.surfaces.items():
        value = model.state_dict()[key].clone()
        value[5] += 0.1
        moved = torch.func.functional_call(scorer, {f"method.{key}": value}, (batch,))
        changed = (moved != clean).any(dim=0).nonzero().flatten().tolist()
        assert changed == [5], surface
    assert torch.equal(scorer(batch), clean)


# Learning


@pytest.mark.parametrize("name", METHODS)
def test_learns_blocks_of_users_and_items(name: str) -> None:
    """Users of a block like its items; each user's last item is held out, and found among the block's."""
    rng = torch.Generator().manual_seed(0)
    blocks, size = 4, 12
    histories = []
    for user in range(40):
        first = 1 + (user % blocks) * size
        histories.append((first + torch.randperm(size, generator=rng)[:8]).tolist())
    kind = (torch.arange(blocks * size + 1) - 1).clamp(min=0) // size
    features = nn.functional.one_hot(kind, blocks) + 0.1 * torch.randn(len(kind), blocks, generator=rng)
    missing = torch.arange(len(kind)) == 0
    counts = torch.ones(len(kind), dtype=torch.int64)
    info = DatasetInfo(40, blocks * size, counts, {"image": features}, {"image": missing})
    model = built(
        name, info, dim=8, init_scale=0.1, **({"optimizer": "adam"} if name == "amr" else {})
    ).float()
    last = torch.tensor([history[-1] for history in histories])
    store = make_store([history[:-1] for history in histories])
    params = TrainingParams(batch_size=10, learning_rate=0.02, max_epochs=60, patience=60)
    progress = fit(model, store, Validation(store, last), params, seed=0)
    # 5 items of the block are left to each user: NDCG@10 of any order of them is 0.59 in the mean.
    assert progress.best_ndcg > 0.5
    assert progress.history[-1]["clean"] < 0.4
