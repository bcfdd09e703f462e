"""The ragged store, the batches of an epoch, and negative sampling."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from ballast.data.sequences import SequenceStore, sample_negatives, training_batches


def make_store(histories, users=None):
    lengths = torch.tensor([0, *(len(history) for history in histories)])
    items = torch.tensor([item for history in histories for item in history], dtype=torch.int64)
    user_ids = torch.arange(1, len(histories) + 1) if users is None else torch.tensor(users)
    return SequenceStore(items, lengths.cumsum(0), user_ids)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def histories():
    """137 users, so that batches of 16 leave a partial one; items say whose they are and where."""
    rng = np.random.default_rng(0)
    lengths = [0, 1, 1, 2, 40, *rng.integers(2, 12, 132)]
    return [[user * 100 + place for place in range(length)] for user, length in enumerate(lengths, start=1)]


FRAME = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 2, 2, 2, 4, 4],
        "item_id": [5, 6, 7, 8, 5, 9, 3, 3],
        "split": ["train", "valid", "test", "train", "train", "test", "valid", "test"],
    }
)


def rows_of(store):
    rows = [part.tolist() for part in store.items.split(store.lengths.tolist())]
    return dict(zip(store.user_ids.tolist(), rows, strict=True))


def test_from_interactions():
    assert rows_of(SequenceStore.from_interactions(FRAME, ["train"])) == {1: [5], 2: [8, 5]}
    both = SequenceStore.from_interactions(FRAME, ["train", "valid"])
    assert rows_of(both) == {1: [5, 6], 2: [8, 5], 4: [3]}
    assert both.items.dtype == both.offsets.dtype == both.user_ids.dtype == torch.int64
    assert len(both) == 3


def test_from_interactions_gives_a_row_to_each_user_asked_for():
    chosen = SequenceStore.from_interactions(FRAME, ["train"], np.array([2, 3, 4]))
    assert rows_of(chosen) == {2: [8, 5], 3: [], 4: []}
    assert chosen.lengths.tolist() == [2, 0, 0]


def test_histories_are_left_padded_and_recent():
    store = make_store([[1, 2, 3, 4], [], [5], [6, 7]])
    rows = torch.tensor([3, 0, 1, 2])
    assert store.histories(rows).tolist() == [[0, 0, 6, 7], [1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 5]]
    assert store.histories(rows, max_len=3).tolist() == [[0, 6, 7], [2, 3, 4], [0, 0, 0], [0, 0, 5]]
    assert store.histories(torch.tensor([2]), max_len=3).tolist() == [[5]]
    assert store.histories(torch.tensor([2]), length=3).tolist() == [[0, 0, 5]]
    assert store.histories(torch.tensor([1])).tolist() == [[0]]
    assert store.histories(torch.tensor([], dtype=torch.int64)).shape == (0, 1)
    assert make_store([[], []]).histories(torch.tensor([0, 1])).tolist() == [[0], [0]]


@pytest.mark.parametrize("max_len", [3, 50])
@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_an_epoch_has_each_target_once(histories, batch_size, max_len):
    found, users = Counter(), Counter()
    for batch in training_batches(make_store(histories), batch_size, max_len, seeded()):
        assert batch.history.shape == batch.targets.shape
        assert batch.history.shape[1] <= max_len
        users.update(batch.user_id.tolist())
        rows, places = torch.nonzero(batch.targets, as_tuple=True)
        found.update(zip(batch.user_id[rows].tolist(), batch.targets[rows, places].tolist(), strict=True))
    expected = [(user, item) for user, items in enumerate(histories, 1) for item in items[1:][-max_len:]]
    assert found == Counter(expected)
    # No one with something to learn is left out, not even by the last, partial batch.
    assert users == Counter(user for user, items in enumerate(histories, 1) if len(items) >= 2)


@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_first_items_are_targets_where_they_are_asked_for(histories, batch_size):
    found = Counter()
    for batch in training_batches(make_store(histories), batch_size, 50, seeded(), with_first=True):
        assert batch.history.shape == batch.targets.shape
        follows = batch.history[:, 1:] == batch.targets[:, :-1]
        assert follows[batch.targets[:, :-1] != 0].all()
        rows, places = torch.nonzero(batch.targets, as_tuple=True)
        found.update(zip(batch.user_id[rows].tolist(), batch.targets[rows, places].tolist(), strict=True))
    assert found == Counter((user, item) for user, items in enumerate(histories, 1) for item in items)


def test_a_target_follows_its_position(histories):
    for batch in training_batches(make_store(histories), 16, 5, seeded()):
        real = batch.history != 0
        assert (batch.targets[real] == batch.history[real] + 1).all()  # items count places
        assert (batch.targets[~real] == 0).all()
        assert (real[:, 1:] >= real[:, :-1]).all()  # padding is on the left
        assert real[:, -1].all()


def test_batches_are_of_like_length(histories):
    """Padding costs time; sorted groups keep it low."""
    real = places = 0
    for batch in training_batches(make_store(histories), 16, 50, seeded()):
        real, places = real + int((batch.history != 0).sum()), places + batch.history.numel()
    assert real / places > 0.7


def test_batches_depend_on_the_generator_alone(histories):
    def epoch(seed):
        batches = training_batches(make_store(histories), 16, 50, seeded(seed))
        return [batch.user_id.tolist() for batch in batches]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert {frozenset(users) for users in epoch(0)} != {frozenset(users) for users in epoch(1)}


def test_negatives_exclude():
    exclude = torch.tensor([[1, 2, 0], [9, 9, 3]]).repeat(500, 1)  # (M, X)
    drawn = sample_negatives((1000, 8), 200, exclude, seeded())
    assert drawn.shape == (1000, 8)
    assert not (drawn[:, :, None] == exclude[:, None, :]).any()
    assert (drawn.min(), drawn.max()) == (1, 200)
    assert drawn.equal(sample_negatives((1000, 8), 200, exclude, seeded()))


def test_negatives_are_uniform_over_the_rest():
    drawn = sample_negatives((4000, 5), 10, torch.tensor([[4, 7]]).expand(4000, 2), seeded(), redraws=30)
    counts = torch.bincount(drawn.flatten(), minlength=11)[1:].double()
    assert counts[[3, 6]].sum() == 0
    rest = counts[counts > 0]
    assert len(rest) == 8
    assert float(((rest - 2500) ** 2 / 2500).sum()) < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001


def test_negatives_give_up_after_their_redraws():
    drawn = sample_negatives((5, 4), 3, torch.tensor([[1, 2, 3]]).expand(5, 3), seeded())
    assert drawn.shape == (5, 4)
    assert ((drawn >= 1) & (drawn <= 3)).all()
