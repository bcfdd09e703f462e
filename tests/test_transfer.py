"""Methods that carry a sequence encoder from domain to domain, and what they are made of."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pool
import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor
from torch.nn import functional

from ballast.data import schemas
from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models import losses, registry
from ballast.models.backbones import MASK
from ballast.models.experts import LEAST_NOISE, Experts
from ballast.models.method import DatasetInfo, Method
from ballast.models.methods.unisrec import without_some
from ballast.models.methods.vqrec import _centroids, _doubly_stochastic
from ballast.models.training import Validation, fit
from ballast.models.transferable import TransferableMethod, in_play, pairs_loss
from ballast.params import PoolParams, TrainingParams

HISTORY = torch.tensor([[0, 0, 3, 9], [7, 1, 4, 9]])
TARGETS = torch.tensor([[0, 0, 9, 5], [1, 4, 9, 30]])


def batch() -> Batch:
    return Batch(torch.tensor([1, 2]), HISTORY, TARGETS)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def built(method: str, info: DatasetInfo, **model: Any) -> Any:
    settings = {"dim": 16, "max_len": 10, "dropout": 0.0, **model}
    torch.manual_seed(1)
    return registry.build(method, registry.configure(method, settings, "model"), info)


def trained(method: Method, epochs: int = 2) -> Method:
    store = make_store(walk(40))
    validation = Validation(make_store([history[:-1] for history in walk(20, 1)]),
                            torch.tensor([history[-1] for history in walk(20, 1)]))  # fmt: skip
    fit(method, store, validation, TrainingParams(batch_size=16, max_epochs=epochs), seed=0)
    return method


# Experts


@pytest.mark.parametrize("is_affine", [False, True])
def test_experts_compute_the_equation(is_affine: bool) -> None:
    torch.manual_seed(0)
    experts = Experts(5, 3, 4, 0.5, is_affine, "normal").double().eval()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(7, 5, dtype=torch.float64)
    expected = torch.zeros(7, 3, dtype=torch.float64)
    for row in range(7):
        gates = (x[row] @ experts.gate).softmax(0)
        for k in range(4):
            shift = experts.shift[k]
            moved = x[row] @ experts.weight[k] + shift if is_affine else (x[row] - shift) @ experts.weight[k]
            expected[row] += gates[k] * moved
    torch.testing.assert_close(experts(x), expected)


def test_gates_start_even_and_are_noisy_in_training_alone() -> None:
    torch.manual_seed(0)
    experts, x = Experts(5, 3, 4, 0.0, False, "normal"), torch.randn(2000, 5)
    assert torch.equal(experts.eval()._gates(x), torch.full((2000, 4), 0.25))
    noise = experts.train()._gates(x).detach().log()
    spread = (noise - noise.mean(1, keepdim=True)).std() * (4 / 3) ** 0.5
    assert float(spread) == pytest.approx(float(functional.softplus(torch.zeros(()))) + LEAST_NOISE, rel=0.05)


def test_each_expert_drops_features_of_its_own() -> None:
    torch.manual_seed(0)
    experts, x = Experts(50, 50, 2, 0.5, False, "normal"), torch.ones(1, 50)
    with torch.no_grad():
        experts.weight.copy_(torch.eye(50).expand(2, 50, 50))
    kept = experts.train()(x)[0].detach()
    # Halves of two independent masks: 0, one of them, or both.
    assert len(kept.unique()) == 4


def test_the_two_initialisations_differ_in_scale(toy_info: DatasetInfo) -> None:
    normal, default = (
        built("ant", toy_info, initialisation=name).state_dict() for name in ("normal", "default")
    )
    for key in ("experts.text.weight", "backbone.layers.0.widen.weight", "backbone.positions"):
        assert float(normal[key].std()) == pytest.approx(0.02, rel=0.2), key
        assert float(default[key].std()) > 0.1, key


# Pools


def prepare(folder: Path, name: str, people: list[str], histories: list[list[int]]) -> None:
    """A prepared dataset of 4 items whose users have these raw ids; the last item of each is held out."""
    rows = [
        {"user_id": user, "item_id": item, "position": place, "timestamp": None, "is_noise": None,
         "split": "test" if place == len(history) - 1 else "train"}
        for user, history in enumerate(histories, 1)
        for place, item in enumerate(history)
    ]  # fmt: skip
    trained_on = [sum(item in history[:-1] for history in histories) for item in range(1, 5)]
    items = pd.DataFrame({"item_id": range(1, 5), "raw_item_id": list("abcd"), "n_train": trained_on})
    nothing = dict.fromkeys(("title", "description", "category", "price", "image"))
    tables = {
        "interactions": pd.DataFrame(rows),
        "items": items.assign(**nothing),
        "users": pd.DataFrame({"user_id": range(1, len(people) + 1), "raw_user_id": people}),
    }
    for table, frame in tables.items():
        schemas.write(table, frame, folder / "data/prepared" / name / f"{table}.parquet")


@pytest.fixture
def domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path, "books", ["ann", "bob"], [[1, 2, 3], [2, 3, 4]])
    prepare(tmp_path, "films", ["bob", "cid"], [[1, 2, 3], [4, 3, 1, 2]])
    prepare(tmp_path, "games", ["bob"], [[1, 2]])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pool_stacks_its_domains(domains: Path) -> None:
    tables = pool._tables("all", PoolParams(sources=["books", "films"]))
    assert tables["users"]["raw_user_id"].tolist() == ["ann", "bob", "bob", "cid"]
    assert tables["interactions"].groupby("user_id")["item_id"].apply(list).tolist() == [
        [1, 2, 3], [2, 3, 4], [5, 6, 7], [8, 7, 5, 6]
    ]  # fmt: skip
    assert tables["items"]["n_train"].tolist() == [1, 2, 1, 0, 2, 1, 1, 1]


def test_a_pool_leaves_out_the_targets_people(domains: Path) -> None:
    chosen = PoolParams(sources=["books", "films"], without_users_of=["games"])
    tables = pool._tables("all", chosen)
    assert tables["users"].to_dict("list") == {"user_id": [1, 2], "raw_user_id": ["ann", "cid"]}
    assert tables["interactions"].groupby("user_id")["item_id"].apply(list).tolist() == [
        [1, 2, 3], [8, 7, 5, 6]
    ]  # fmt: skip
    assert tables["items"]["n_train"].tolist() == [1, 1, 0, 0, 1, 0, 1, 1]
    for name, table in tables.items():
        schemas.write(name, table, domains / f"{name}.parquet")  # still a valid dataset
        schemas.read(name, domains / f"{name}.parquet")
    with pytest.raises(BallastError, match="without_users_of leaves no user"):
        pool._tables("all", PoolParams(sources=["games"], without_users_of=["films"]))


def test_a_shuffled_pool_keeps_what_each_user_has(domains: Path) -> None:
    long = [[1 + (user + place) % 4 for place in range(12)] for user in range(20)]
    prepare(domains, "long", [str(user) for user in range(20)], long)
    plain, shuffled = (
        pool._tables("all", PoolParams(sources=["long"], is_shuffled=flag))["interactions"]
        for flag in (False, True)
    )
    assert shuffled.drop(columns="item_id").equals(plain.drop(columns="item_id"))
    assert not shuffled["item_id"].equals(plain["item_id"])
    is_train = plain["split"] == "train"
    assert shuffled[~is_train].equals(plain[~is_train])
    both = [frame[is_train].groupby("user_id")["item_id"].apply(sorted) for frame in (plain, shuffled)]
    assert both[0].tolist() == both[1].tolist()


# The loss among the batch's targets


def test_in_batch_counts_each_target_once() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(5, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    targets = torch.tensor([3, 5, 3, 8, 5])
    loss = losses.build({"name": "in_batch"}, "model.loss")
    logits = hidden @ table[[3, 5, 8]].T
    expected = functional.cross_entropy(logits, torch.tensor([0, 1, 0, 2, 1]))
    torch.testing.assert_close(loss(hidden, targets, table, None, rng()), expected)
    of_candidates = loss.of_candidates(
        lambda items: torch.einsum("md,mcd->mc", hidden, table[items]), targets, 8, None, rng()
    )
    torch.testing.assert_close(of_candidates, expected)


def test_items_in_play_are_numbered_anew() -> None:
    short, items = in_play(batch())
    assert items.tolist() == [0, 1, 3, 4, 5, 7, 9, 30]
    assert short.targets is not None
    assert torch.equal(items[short.history], HISTORY)
    assert torch.equal(items[short.targets], TARGETS)
    full = Batch(torch.tensor([1]), torch.tensor([[3, 9]]), torch.tensor([[9, 5]]))
    assert in_play(full)[1].tolist() == [0, 3, 5, 9]  # no padding in it, and still number 0


def test_items_in_play_give_the_loss_of_the_whole_table(toy_info: DatasetInfo) -> None:
    model = built("ant", toy_info, loss={"name": "in_batch"}).eval()
    table = model.item_table()
    unit = functional.normalize(table, dim=-1)
    expected = model.next_item_loss(batch(), table, unit, rng())
    torch.testing.assert_close(model.training_step(batch(), rng())["loss"], expected)


# What is carried, frozen and learned anew


def adapted(
    info: DatasetInfo, tmp_path: Path, method: str = "ant", **model: Any
) -> tuple[Any, dict[str, Tensor]]:
    """A method on another domain that starts from one trained on the toy's, and that one's state."""
    path = tmp_path / "state.safetensors"
    source = trained(built("ant", info, loss={"name": "in_batch"}))
    registry.save(source, path)
    other = dataclasses.replace(info, features={key: value.flip(1) for key, value in info.features.items()})
    target = built("ant", other, **model)
    registry.adopt(target, path)
    return target, source.state_dict()


def encoder_of(model: Method) -> set[str]:
    names = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    return names - {"backbone.positions"}


def same(model: Method, state: dict[str, Tensor]) -> set[str]:
    """Parameters with the values that they have in `state`."""
    return {name for name, value in model.named_parameters() if torch.equal(value, state[name])}


def test_relearning_keeps_the_transformer_and_nothing_else(toy_info: DatasetInfo, tmp_path: Path) -> None:
    model, source = adapted(toy_info, tmp_path, is_encoder_frozen=True)
    encoder = {name for name, _ in model.named_parameters() if name.startswith("backbone.")} - {
        "backbone.positions"
    }
    untrained = {
        name for name, value in model.named_parameters() if not value.any()
    }  # biases, shifts and gates
    assert any("gate" in name for name in untrained)
    assert same(model, source) - untrained == encoder - untrained
    trained(model)
    assert same(model, source) == encoder
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == encoder


@pytest.mark.parametrize("is_frozen", [True, False])
def test_tuning_starts_from_everything(is_frozen: bool, toy_info: DatasetInfo, tmp_path: Path) -> None:
    model, source = adapted(toy_info, tmp_path, is_encoder_frozen=is_frozen, carries_items=True)
    names = {name for name, _ in model.named_parameters()}
    assert same(model, source) == names
    trained(model)
    assert same(model, source) == (encoder_of(model) if is_frozen else set())


def test_a_carried_state_keeps_the_targets_features(toy_info: DatasetInfo, tmp_path: Path) -> None:
    model, source = adapted(toy_info, tmp_path, carries_items=True)
    assert torch.equal(model.features_text, toy_info.features["text"].flip(1))
    assert not torch.equal(model.features_text, source["features_text"])


def test_scaled_modalities_reach_the_experts_at_one_size(toy_info: DatasetInfo) -> None:
    """Encoders make rows that differ in size: unscaled, the largest drowns the others."""
    sizes = {"text": 0.05, "image": 1.0, "price": 30.0}
    features = {name: toy_info.features[name] * size for name, size in sizes.items()}
    info = dataclasses.replace(toy_info, features=features)
    scaled, unscaled = (built("ant", info, is_scaled=value).eval() for value in (True, False))
    met: dict[str, Tensor] = {}
    for name, experts in scaled.experts.items():
        experts.register_forward_pre_hook(lambda _, given, name=name: met.update({name: given[0]}))
    parts = scaled.modality_vectors()
    for name, rows in met.items():
        assert float(rows[~info.missing[name]].square().mean()) == pytest.approx(1.0, rel=1e-5), name
        is_missing = info.missing[name]
        assert not parts[name][is_missing].any()
    assert not any(key.startswith("scale_") for key in unscaled.state_dict())
    with torch.no_grad():
        expected = unscaled.experts["price"](info.features["price"] * scaled.scale_price)
    known = ~info.missing["price"]
    torch.testing.assert_close(parts["price"][known], expected[known])


@pytest.mark.parametrize("carries_items", [False, True])
def test_a_tuned_item_side_keeps_the_scales_it_was_trained_at(
    carries_items: bool, toy_info: DatasetInfo, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    registry.save(built("ant", toy_info, is_scaled=True), path)
    larger = {name: 4 * rows for name, rows in toy_info.features.items()}
    target = dataclasses.replace(toy_info, features=larger)
    model = built("ant", target, is_scaled=True, carries_items=carries_items)
    own = model.scale_text.clone()
    registry.adopt(model, path)
    torch.testing.assert_close(model.scale_text, own * (4 if carries_items else 1))


def test_a_state_that_lacks_what_is_carried_is_refused(toy_info: DatasetInfo, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    registry.save(built("ant", toy_info, modalities=["text", "image"]), path)
    registry.adopt(built("ant", toy_info), path)  # the item side is learned anew
    with pytest.raises(
        BallastError, match=r"'experts\.price.*' does not fit: pre-train and adapt with the same"
    ):
        registry.adopt(built("ant", toy_info, carries_items=True), path)


def test_ids_are_never_carried(toy_info: DatasetInfo) -> None:
    model = built("ant", toy_info, has_ids=True, carries_items=True)
    assert not any(name.startswith("items") for name in model.transferable)


# ANT


def test_ant_fuses_as_published(toy_info: DatasetInfo) -> None:
    model = built("ant", toy_info, product=0.3).eval()
    parts = model.modality_vectors()
    t, v, p = (parts[name] for name in ("text", "image", "price"))
    torch.testing.assert_close(model.item_table(), t + v + p + 0.3 * t * v)
    for name, part in parts.items():
        assert torch.equal((part == 0).all(1), toy_info.missing[name])


def test_alignment_is_of_targets_with_text_and_image(toy_info: DatasetInfo) -> None:
    model = built("ant", toy_info, loss={"name": "in_batch"}, alignment=0.5).eval()
    parts = model.modality_vectors()
    both = ~(toy_info.missing["text"] | toy_info.missing["image"])
    items = [item for item in (1, 4, 5, 9, 30) if both[item]]
    expected = 0.5 * pairs_loss(parts["image"][items], parts["text"][items], 0.07)
    torch.testing.assert_close(model.training_step(batch(), rng())["alignment"], expected)


def test_alignment_without_images_is_an_error(toy_info: DatasetInfo) -> None:
    with pytest.raises(BallastError, match=r"model\.alignment: needs text and image"):
        built("ant", toy_info, modalities=["text"], alignment=0.1)


def test_scores_are_cosines_over_the_temperature(toy_info: DatasetInfo) -> None:
    model = trained(built("ant", toy_info, temperature=0.1)).eval()
    scores = model.score(batch())
    assert float(scores.detach().abs().max()) <= 10 + 1e-4
    state = model.backbone.query(HISTORY, model.item_table())
    cosine = functional.cosine_similarity(state[:, None], model.item_table()[None], dim=-1)
    torch.testing.assert_close(scores, cosine / 0.1, atol=1e-4, rtol=1e-4)


# UniSRec


def test_a_view_loses_items_and_keeps_order() -> None:
    history = torch.tensor([[0, 0, 4, 5, 6, 7]] * 500)
    view = without_some(history, 0.3, rng())
    lengths = (view != 0).sum(1)
    assert float(lengths.float().mean()) == pytest.approx(1 + 3 * 0.7, abs=0.1)
    assert bool((view[:, -1] == 7).all())
    for row in view:
        items = row[row != 0].tolist()
        assert items == sorted(items)
        assert row.tolist() == [0] * (6 - len(items)) + items


# VQ-Rec


def test_codes_are_those_of_the_carried_centroids(toy_info: DatasetInfo, tmp_path: Path) -> None:
    settings = {"groups": 4, "codes": 8}
    source = built("vqrec", toy_info, **settings)
    registry.save(source, tmp_path / "state.safetensors")
    moved = {key: value.roll(1, 1) for key, value in toy_info.features.items()}
    target = built("vqrec", dataclasses.replace(toy_info, features=moved), carries_items=True, **settings)
    registry.adopt(target, tmp_path / "state.safetensors")
    before = target.codes_text.clone()
    target.enter("")
    parts = target._parts(moved["text"])
    for group in range(4):
        distance = (parts[group][:, None] - source.centroids_text[group][None]).norm(dim=-1)
        assert torch.equal(target.codes_text[:, group], distance.argmin(1))
    assert not torch.equal(before, target.codes_text)


def test_more_codes_than_items_fill_up(toy_info: DatasetInfo) -> None:
    model = built("vqrec", toy_info, groups=4, codes=3 * ITEMS)
    assert model.centroids_text.shape == (4, 3 * ITEMS, 3)
    assert int(model.codes_text.max()) < ITEMS


def test_points_that_differ_in_the_last_bit_share_a_centroid() -> None:
    points = torch.tensor([-2.884994, 0.15, 0.61991423, 0.60837394, 1.3562217, 0.15])
    points[5] = torch.nextafter(points[5], torch.tensor(1.0))
    centroids = _centroids(points[None, :, None], 6)  # (1, 6, 1)
    assert (points[:, None] - centroids[0, :, 0]).abs().min(1).values.max() < 1e-6


def test_alignments_start_at_the_identity_and_stay_doubly_stochastic(toy_info: DatasetInfo) -> None:
    plain, aligned = (
        built("vqrec", toy_info, groups=4, codes=8, is_realigned=x).eval() for x in (False, True)
    )
    aligned.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(aligned.item_table(), plain.item_table(), atol=1e-3, rtol=0)
    matrix = _doubly_stochastic(torch.randn(2, 6, 6))
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 6))
    torch.testing.assert_close(matrix.sum(1), torch.ones(2, 6), atol=0.05, rtol=0)


@pytest.mark.parametrize("model", [{"has_ids": True}, {"loss": {"name": "cross_entropy"}}])
def test_synthetic_negatives_elsewhere_are_an_error(model: dict[str, Any], toy_info: DatasetInfo) -> None:
    settings = {"groups": 4, "codes": 8, "synthetic": 0.5, "loss": {"name": "in_batch"}, **model}
    with pytest.raises(BallastError, match=r"model\.synthetic: goes with model\.loss in_batch"):
        built("vqrec", toy_info, **settings)


def test_groups_that_do_not_divide_the_features_are_an_error(toy_info: DatasetInfo) -> None:
    with pytest.raises(BallastError, match=r"model\.groups: 5 does not divide the 12 text features"):
        built("vqrec", toy_info, groups=5)


# FDSA and S3-Rec


def test_attention_weighs_modalities(toy_info: DatasetInfo) -> None:
    model = built("fdsa", toy_info, modalities=["text", "image"]).eval()
    torch.nn.init.normal_(model.attention.weight)
    t = model.features_text @ model.projections["text"].weight.T
    v = model.features_image @ model.projections["image"].weight.T
    logits = torch.stack([t @ model.attention.weight[0], v @ model.attention.weight[0]], 1)
    missing = torch.stack([toy_info.missing["text"], toy_info.missing["image"]], 1)
    weight = logits.masked_fill(missing, -torch.inf).softmax(1).nan_to_num(0.0)
    torch.testing.assert_close(model.feature_table(), weight[:, :1] * t + weight[:, 1:] * v)
    assert bool((missing.any(1) & ~missing.all(1)).any())  # some item has one modality alone


def test_both_networks_make_the_state_that_scores(toy_info: DatasetInfo) -> None:
    model = built("fdsa", toy_info, modalities=["text"]).eval()
    history, table = batch().history, model.item_table()
    torch.testing.assert_close(model.score(batch()), model.query(history, table) @ table.T)
    torch.nn.init.normal_(model.projections["text"].weight)
    before = model.query(history, table)
    torch.nn.init.zeros_(model.projections["text"].weight)
    assert not torch.allclose(model.query(history, table), before)


def test_pretraining_trains_the_tasks_and_finetuning_does_not(toy_info: DatasetInfo) -> None:
    model = built("s3rec", toy_info, modalities=["text", "image"], attributes=4)
    model.enter("pretraining")
    items = torch.tensor([history[:6] for history in walk(9, shortest=6)])
    longer = Batch(torch.arange(1, 10), items[:, :-1], items[:, 1:])
    parts = model.train().training_step(longer, rng())
    assert set(parts) == {"loss", "associated", "masked_item", "masked_attribute", "segment"}
    parts["loss"].backward()
    assert all(value.grad is not None and value.grad.any() for value in model.parameters())
    model.enter("finetuning")
    assert set(model.training_step(batch(), rng())) == {"loss"}
    assert not model.mask.requires_grad


def test_pretraining_reads_both_directions(toy_info: DatasetInfo) -> None:
    model = built("s3rec", toy_info).eval()
    table, changed = model.item_table(), HISTORY.clone()
    changed[:, -1] = 2
    first, second = model._read(HISTORY, table), model._read(changed, table)
    assert not torch.isclose(first[1, 0], second[1, 0]).all()
    assert torch.equal(model.encode(HISTORY, table)[1, 0], model.encode(changed, table)[1, 0])


def test_pretraining_is_judged_by_what_it_learns(toy_info: DatasetInfo) -> None:
    model = built("s3rec", toy_info).eval()
    finetuned = model.score(batch())
    model.enter("pretraining")
    guessed = model.score(batch())
    asked = torch.cat([HISTORY, torch.full((2, 1), MASK)], dim=1)
    table = model.item_table()
    expected = model.bilinear["masked_item"](model._read(asked, table)[:, -1]) @ table.T
    torch.testing.assert_close(guessed, expected)
    assert not torch.isclose(guessed, finetuned).all()


def test_s3rec_needs_a_transformer(toy_info: DatasetInfo) -> None:
    with pytest.raises(BallastError, match=r"model\.backbone: S3-Rec pre-trains a Transformer: name sasrec"):
        built("s3rec", toy_info, backbone={"name": "gru4rec"})


def test_a_backbone_without_states_is_an_error(toy_info: DatasetInfo) -> None:
    for method in ("ant", "fdsa"):
        with pytest.raises(BallastError, match=r"model\.backbone: din has no states"):
            built(method, toy_info, backbone={"name": "din"}, loss={"name": "bce"})
    assert issubclass(registry.method_class("ant"), TransferableMethod)
