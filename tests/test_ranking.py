"""Full ranking against a brute-force reading of its definition."""

import doctest
import math

import pytest
import torch
from torch import nn

from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError
from ballast.evaluation import ranking
from ballast.evaluation.ranking import ndcg_at, rank_targets
from ballast.models.method import Method

ITEMS, USERS = 30, 70


class TableScores(Method):
    """Scores that are given, by user id."""

    def __init__(self, table):
        nn.Module.__init__(self)
        self.table = table
        self.seen = []

    max_len = 5

    def score(self, batch, rng=None):
        self.seen.append(batch.history)
        return self.table[batch.user_id]


def make_store(histories, users=None):
    lengths = torch.tensor([0, *(len(history) for history in histories)])
    items = torch.tensor([item for history in histories for item in history], dtype=torch.int64)
    user_ids = torch.arange(1, len(histories) + 1) if users is None else users
    return SequenceStore(items, lengths.cumsum(0), user_ids)


@pytest.fixture
def case():
    """Scores with many ties, histories with repeats, some with the target among them."""
    rng = torch.Generator().manual_seed(0)
    table = torch.randint(0, 12, (USERS + 1, ITEMS + 1), generator=rng).float()
    table[::3] = torch.randn(table[::3].shape, generator=rng)
    targets = torch.randint(1, ITEMS + 1, (USERS,), generator=rng)
    histories = []
    for user in range(USERS):
        length = int(torch.randint(0, 20, (1,), generator=rng))
        history = torch.randint(1, ITEMS + 1, (length,), generator=rng).tolist()
        histories.append(history + [int(targets[user])] * (user % 4 == 0))
    assert any(len(set(history)) < len(history) for history in histories)
    return table, histories, targets


def brute_force(scores, history, target):
    """rank, rank_unmasked, n_candidates and n_ties of one user, item by item."""
    rivals = [item for item in range(1, ITEMS + 1) if item != target]
    allowed = [item for item in rivals if item not in history]
    own = scores[target]
    return (
        1 + sum(bool(scores[item] >= own) for item in allowed),
        1 + sum(bool(scores[item] >= own) for item in rivals),
        1 + len(allowed),
        sum(bool(scores[item] == own) for item in allowed),
    )


def columns(result):
    names = ("rank", "rank_unmasked", "n_candidates", "n_ties")
    return list(zip(*(getattr(result, name).tolist() for name in names), strict=True))


@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_agrees_with_brute_force(case, batch_size):
    table, histories, targets = case
    result = rank_targets(TableScores(table), make_store(histories), targets, batch_size)
    expected = [brute_force(table[user + 1], histories[user], int(targets[user])) for user in range(USERS)]
    assert columns(result) == expected
    assert result.topk is None
    assert result.rank.dtype == torch.int32


def test_equal_scores_rank_last():
    result = rank_targets(TableScores(torch.zeros(3, 6)), make_store([[1, 2], []]), torch.tensor([4, 4]))
    assert result.rank.tolist() == [3, 5]
    assert result.n_ties.tolist() == [2, 4]
    assert result.n_candidates.tolist() == [3, 5]


def test_target_in_history_still_competes():
    scores = torch.tensor([[0.0] * 5, [0.0, 1.0, 4.0, 3.0, 2.0]])
    result = rank_targets(TableScores(scores), make_store([[2, 3, 3, 2]]), torch.tensor([3]), topk=2)
    assert (result.rank.item(), result.rank_unmasked.item(), result.n_candidates.item()) == (1, 2, 3)


@pytest.mark.parametrize("padding", [100.0, 2.0])
def test_padding_never_ranks(padding):
    scores = torch.tensor([[0.0] * 5, [padding, 1.0, 2.0, 3.0, 2.0]])
    result = rank_targets(TableScores(scores), make_store([[1]]), torch.tensor([2]), topk=3)
    assert columns(result) == [(3, 3, 3, 1)]
    assert sorted(result.topk[0].tolist()) == [2, 3, 4]
    assert result.topk[0, 0] == 3


def test_topk_is_the_best_outside_the_history(case):
    table, histories, targets = case
    table = table + torch.arange(ITEMS + 1) * 1e-3  # no ties: one right answer
    result = rank_targets(TableScores(table), make_store(histories), targets, 16, topk=4)
    for user in range(USERS):
        masked = set(histories[user]) - {int(targets[user])}
        allowed = [item for item in range(1, ITEMS + 1) if item not in masked]
        best = sorted(allowed, key=lambda item: -float(table[user + 1, item]))[:4]
        assert result.topk[user].tolist() == best
        if result.rank[user] <= 4:
            assert best[int(result.rank[user]) - 1] == targets[user]


def test_topk_is_cut_to_the_catalogue():
    result = rank_targets(TableScores(torch.rand(2, 4)), make_store([[]]), torch.tensor([1]), topk=20)
    assert sorted(result.topk[0].tolist()) == [1, 2, 3]


def test_order_and_company_of_users_do_not_matter(case):
    table, histories, targets = case
    whole = rank_targets(TableScores(table), make_store(histories), targets, topk=3)
    order = torch.randperm(USERS, generator=torch.Generator().manual_seed(1))[:50]
    some = make_store([histories[i] for i in order.tolist()], order + 1)
    part = rank_targets(TableScores(table), some, targets[order], 7, topk=3)
    for name in ("rank", "rank_unmasked", "n_candidates", "n_ties", "topk"):
        assert getattr(part, name).equal(getattr(whole, name)[order]), name


def test_method_sees_the_recent_history_alone():
    method = TableScores(torch.rand(3, 10))
    rank_targets(method, make_store([[1, 2, 3, 4, 5, 6, 7], [8, 9]]), torch.tensor([8, 1]))
    assert [history.tolist() for history in method.seen] == [[[0, 0, 0, 8, 9], [3, 4, 5, 6, 7]]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("item", [0, 3, 5])
def test_scores_that_are_not_finite_are_an_error(bad, item):
    scores = torch.rand(3, 6)
    scores[2, item] = bad
    with pytest.raises(BallastError, match="a score is not finite"):
        rank_targets(TableScores(scores), make_store([[1], [3]]), torch.tensor([2, 2]))


def test_no_gradients_and_scores_unchanged():
    scores = torch.rand(3, 6, requires_grad=True)
    before = scores.detach().clone()
    result = rank_targets(TableScores(scores), make_store([[1], [2]]), torch.tensor([2, 1]), topk=2)
    assert not result.rank.requires_grad
    assert scores.equal(before)


class MadeItems(TableScores):
    """Scores by item vectors that are made, not kept."""

    made = 0

    def item_table(self):
        self.made += 1
        return self.table.T  # (I, U)

    def score(self, batch, rng=None):
        return self.item_table()[:, batch.user_id].T


def test_item_vectors_are_made_once_a_ranking(case):
    table, histories, targets = case
    store, method = make_store(histories), MadeItems(table)
    for number in (1, 2):
        found = rank_targets(method, store, targets, batch_size=7)
        assert method.made == number  # anew: training may have changed them
    assert torch.equal(found.rank, rank_targets(TableScores(table), store, targets).rank)
    method.table = torch.full_like(table, torch.nan)
    with pytest.raises(BallastError, match="not finite"):
        rank_targets(method, store, targets)
    assert "item_table" not in vars(method)


def test_ndcg_at():
    assert doctest.testmod(ranking).failed == 0
    assert ndcg_at(torch.tensor([2, 10, 11]), 10) == pytest.approx((1 / math.log2(3) + 1 / math.log2(11)) / 3)
    assert ndcg_at(torch.tensor([2]), 1) == 0
