"""Whitened-feature kNN against a computation by hand, and as a saved state."""

import pytest
import torch
from torch.nn import functional

from ballast.content import whitening
from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.method import DatasetInfo
from ballast.models.methods.feature_knn import FeatureKnn
from ballast.strict import parse

ITEMS = 9


@pytest.fixture
def info() -> DatasetInfo:
    rng = torch.Generator().manual_seed(0)
    features = {
        "text": torch.randn(ITEMS + 1, 5, generator=rng),
        "image": torch.randn(ITEMS + 1, 3, generator=rng),
    }
    missing = {name: torch.zeros(ITEMS + 1, dtype=torch.bool) for name in features}
    missing["text"][[0, 4]] = True
    missing["image"][[0, 2, 4, 7]] = True
    for name in features:
        features[name][missing[name]] = 0
    return DatasetInfo(4, ITEMS, torch.ones(ITEMS + 1, dtype=torch.int64), features, missing)


def batch(*histories: list[int], length: int = 4) -> Batch:
    rows = [[0] * (length - len(history)) + history for history in histories]
    return Batch(torch.arange(len(rows)), torch.tensor(rows))


def config(**changes: object) -> FeatureKnn.Config:
    return parse(FeatureKnn.Config, {"modalities": ["text", "image"], **changes}, "params.yaml: model")


def by_hand(
    info: DatasetInfo, history: list[int], item: int, decay: float, weights: dict[str, float]
) -> float:
    total = weight_sum = 0.0
    for name, weight in weights.items():
        raw, missing = info.features[name], info.missing[name]
        unit = functional.normalize(whitening.fit(raw, missing, 0.01).apply(raw, missing), dim=1)
        pairs = [
            (decay**age, float(unit[seen] @ unit[item]))
            for age, seen in enumerate(reversed(history))
            if not missing[seen]
        ]
        if pairs and not missing[item]:
            total += weight * sum(c * s for c, s in pairs) / sum(c for c, _ in pairs)
            weight_sum += weight
    return total / weight_sum if weight_sum else 0.0


def test_scores_are_those_of_the_definition(info: DatasetInfo) -> None:
    method = FeatureKnn(config(decay=0.5, weights={"image": 3.0}), info)
    histories = [[1, 2, 3], [4], [2, 7], [9, 8, 4, 5]]
    scores = method.score(batch(*histories))
    assert scores.shape == (4, ITEMS + 1)
    expected = [
        [by_hand(info, history, item, 0.5, {"text": 1.0, "image": 3.0}) for item in range(1, ITEMS + 1)]
        for history in histories
    ]
    assert torch.allclose(scores[:, 1:], torch.tensor(expected), atol=1e-6)
    assert not scores[1].any()  # item 4 has no content: nothing is said of its user
    assert not scores[:, 4].any()
    assert scores[2, 1:4].any()


def test_row_alone_and_more_padding_change_nothing(info: DatasetInfo) -> None:
    method = FeatureKnn(config(), info)
    histories = [[1, 2, 3], [5], [6, 7]]
    together = method.score(batch(*histories))
    alone = torch.cat([method.score(batch(history)) for history in histories])
    padded = method.score(batch(*histories, length=30))
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together, padded, atol=1e-6)


def test_only_the_newest_item_counts_without_memory(info: DatasetInfo) -> None:
    method = FeatureKnn(config(decay=0.0), info)
    assert torch.allclose(method.score(batch([1, 2, 3])), method.score(batch([3])), atol=1e-6)


def test_most_like_itself(info: DatasetInfo) -> None:
    scores = FeatureKnn(config(modalities=["text"]), info).score(batch([3]))
    assert scores[0].argmax() == 3
    assert scores[0, 3].item() == pytest.approx(1.0, abs=1e-5)


def test_saved_state_scores_without_feature_tables(info: DatasetInfo) -> None:
    method = FeatureKnn(config(), info)
    bare = DatasetInfo(info.num_users, info.num_items, info.item_counts)
    restored = FeatureKnn(config(), bare)
    with pytest.raises(BallastError, match="needs text features"):
        restored.fit_sequences(torch.tensor([1]), torch.tensor([0, 1]))
    restored.load_state_dict(method.state_dict())
    assert torch.equal(restored.score(batch([1, 5])), method.score(batch([1, 5])))
    assert not list(method.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": []}, "model.modalities: got \\[\\]"),
        ({"decay": 1.5}, "model.decay: got 1.5"),
        ({"weights": {"price": 1.0}}, "only for modalities that are used, not \\['price'\\]"),
        ({"weights": {"text": 0.0}}, "model.weights.text: got 0.0"),
        ({"modality": "text"}, "model.modality: unknown key; did you mean 'modalities'"),
    ],
)
def test_configuration_errors_name_the_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BallastError, match=message):
        config(**changes)
