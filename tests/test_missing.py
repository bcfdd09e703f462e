"""Missing modalities: the same items for every method, nested over shares, as if they had come without."""

from typing import Any

import pytest
import torch
from conftest import make_store, walk
from torch import Tensor

from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models import registry
from ballast.models.method import DatasetInfo, Method
from ballast.reproducibility import seed_dropout
from ballast.robustness.missing import drop, dropped_items, losable
from ballast.robustness.surface import Overridden, call_with

SHARES = (0.0, 0.1, 0.2, 0.5, 1.0)


def batch() -> Batch:
    store = make_store(walk(20))
    return Batch(store.user_ids, store.histories(torch.arange(20), 10))


@pytest.fixture(scope="module")
def model(toy_info: DatasetInfo) -> Method:
    seed_dropout(0, "initial weights")
    settings = {"dim": 8, "max_len": 10, "modalities": ["text", "image"]}
    method: Any = registry.build(
        "sasrec_features", registry.configure("sasrec_features", settings, "m"), toy_info
    )
    method.surfaces = {"text": "features_text", "image": "features_image"}
    return method.eval()


def test_items_are_nested_over_shares_and_their_number_is_exact() -> None:
    has = torch.rand(1001, generator=torch.Generator().manual_seed(0)) < 0.8
    has[0] = False
    before: set[int] = set()
    for share in SHARES:
        items = dropped_items(has, "text", share, seed=3).tolist()
        assert len(items) == int(share * int(has.sum()) + 0.5)
        assert before <= set(items)
        assert items == sorted(items)
        assert has[items].all()
        before = set(items)
    assert before == set(has.nonzero().squeeze(1).tolist())


def test_items_depend_on_seed_and_modality_alone() -> None:
    has = torch.ones(1001, dtype=torch.bool)
    has[0] = False
    first = dropped_items(has, "text", 0.2, 0)
    assert torch.equal(first, dropped_items(has, "text", 0.2, 0))
    for other in (dropped_items(has, "text", 0.2, 1), dropped_items(has, "image", 0.2, 0)):
        shared = len(set(first.tolist()) & set(other.tolist()))
        assert 20 < shared < 60  # about a fifth of a fifth


def test_a_share_of_zero_changes_nothing_bit_for_bit(model: Method) -> None:
    dropped = drop(model, "text", 0.0, 0)
    assert dropped.size == 0
    assert torch.equal(call_with(model, "score", dropped.overrides, batch()), model.score(batch()))


@pytest.mark.parametrize("modality", ["text", "image"])
def test_dropped_items_are_as_those_that_came_without(modality: str, model: Any, toy_info: Any) -> None:
    dropped = drop(model, modality, 0.5, 0)
    table = dropped.overrides[f"features_{modality}"]
    zero = ~table.any(dim=1)
    assert set(zero.nonzero().squeeze(1).tolist()) == {
        *toy_info.missing[modality].nonzero().squeeze(1).tolist(),
        *dropped.items.tolist(),
    }
    assert torch.equal(table[~zero], getattr(model, f"features_{modality}")[~zero])
    assert dropped.size == pytest.approx(0.5, abs=0.02)
    scores: Tensor = Overridden(model, dropped.overrides).score(batch())
    other = "image" if modality == "text" else "text"
    alone = getattr(model, f"features_{other}") @ model.projections[other].weight.T
    own = model.items.weight[dropped.items] + alone[dropped.items]
    with torch.no_grad():
        moved = call_with(model, "item_table", dropped.overrides)
    torch.testing.assert_close(moved[dropped.items], own.detach())
    assert not torch.equal(scores, model.score(batch()))


def test_marks_of_missing_items_are_set_too(toy_info: DatasetInfo) -> None:
    """With all pictures gone, a mean over modalities must be over texts alone."""
    settings = {"modalities": ["text", "image"], "max_len": 10}
    both: Any = registry.build("feature_knn", registry.configure("feature_knn", settings, "m"), toy_info)
    texts = registry.build(
        "feature_knn", registry.configure("feature_knn", {**settings, "modalities": ["text"]}, "m"), toy_info
    )
    dropped = drop(both.eval(), "image", 1.0, 0)
    found = call_with(both, "score", dropped.overrides, batch())
    torch.testing.assert_close(found, texts.eval().score(batch()))


def test_content_kept_as_it_came_is_zero_too(toy_info: DatasetInfo) -> None:
    settings = {"modalities": ["text"]}
    raw = registry.build("ant", registry.configure("ant", settings, "m"), toy_info).eval()
    dropped = drop(raw, "text", 1.0, 0)
    assert not dropped.overrides["features_text"].any()
    assert not call_with(raw, "item_table", dropped.overrides).any()


def test_codes_of_what_is_missing_are_not_read(toy_info: DatasetInfo) -> None:
    """VQ-Rec reads no features that an attack could change, and yet an item may lose its text."""
    settings = {"groups": 4, "codes": 8, "max_len": 10}
    method = registry.build("vqrec", registry.configure("vqrec", settings, "m"), toy_info).eval()
    assert losable(method, ("text", "image", "price")) == ["text"]
    assert not drop(method, "text", 0.0, 0).items.tolist()
    dropped = drop(method, "text", 0.5, 0)
    has = ~toy_info.missing["text"]
    assert dropped.items.tolist() == dropped_items(has, "text", 0.5, 0).tolist()
    assert dropped.size == pytest.approx(0.5, abs=0.02)
    with torch.no_grad():
        table, clean = call_with(method, "item_table", dropped.overrides), method.item_table()
    kept = has.clone()
    kept[dropped.items] = False
    assert not table[~kept].any()
    assert torch.equal(table[kept], clean[kept])
    assert clean[dropped.items].any(dim=1).all()


def test_mistakes_are_named(model: Method) -> None:
    with pytest.raises(BallastError, match=r"1\.5 is not a share between 0 and 1"):
        drop(model, "text", 1.5, 0)
    with pytest.raises(BallastError, match="SasrecFeatures has no surface 'price'; it declares: image, text"):
        drop(model, "price", 0.5, 0)
