"""The sampled protocol against loops written out, and what its candidates are drawn from."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor

from ballast.data.sequences import Batch, SequenceStore
from ballast.errors import BallastError
from ballast.evaluation import ranking, sampled
from ballast.evaluation.sampled import METRICS, Candidates, draw_candidates, sampled_metrics
from ballast.models import registry
from ballast.models.method import DatasetInfo, Method
from ballast.params import EvaluationParams, SampledParams
from ballast.strict import parse


class Coarse(Method):
    """Scores of few different values, a row of a table for each user: ties are common."""

    def __init__(self, users: int) -> None:
        super().__init__(self.Config(), DatasetInfo(users, ITEMS, torch.ones(ITEMS + 1)))
        rng = torch.Generator().manual_seed(1)
        self.table = torch.randint(0, 6, (users + 1, ITEMS + 1), generator=rng).float()

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        return self.table[batch.user_id]


def held_out(users: int = 60) -> tuple[SequenceStore, Tensor]:
    whole = walk(users)
    return make_store([items[:-1] for items in whole]), torch.tensor([items[-1] for items in whole])


COUNTS = torch.arange(ITEMS + 1)  # item 1 once, item 2 twice, ...


def test_metrics_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    store, targets = held_out()
    chosen = draw_candidates(store, targets, COUNTS, SampledParams(negatives=15))
    model = Coarse(60)
    sums = dict.fromkeys(METRICS, 0.0)
    for row, user in enumerate(store.user_ids.tolist()):
        scores = model.table[user, chosen.items[row]].tolist()
        above = sum(score > scores[0] for score in scores[1:])
        ties = sum(score == scores[0] for score in scores[1:])
        sums["auc"] += (15 - above - ties + 0.5 * ties) / 15
        rank = 1 + above + ties
        for k in (5, 10, 20):
            sums[f"hr@{k}"] += rank <= k
            sums[f"ndcg@{k}"] += (rank <= k) / np.log2(1 + rank)
    expected = {name: pytest.approx(value / 60) for name, value in sums.items()}
    for computed in (1, 7 * ITEMS, 1 << 25):  # numbers held at once: blocks of 1, of some, of all users
        monkeypatch.setattr(sampled, "COMPUTED", computed)
        assert sampled_metrics(model, store, {"a": chosen}, ITEMS) == {"a": expected}


def test_candidates_are_new_to_the_user_and_differ() -> None:
    store, targets = held_out()
    for power in (0.0, 0.75):
        items = draw_candidates(store, targets, COUNTS, SampledParams(negatives=15, power=power)).items
        assert items[:, 0].tolist() == targets.tolist()
        for row in range(len(items)):
            own = {*store.items[store.offsets[row] : store.offsets[row + 1]].tolist(), int(targets[row])}
            negatives = items[row, 1:].tolist()
            assert len(set(negatives)) == 15
            assert not own & set(negatives)
            assert all(1 <= item <= ITEMS for item in negatives)


def test_a_user_meets_the_same_candidates_in_any_company() -> None:
    store, targets = held_out()
    params = SampledParams(negatives=15)
    all_of_them = draw_candidates(store, targets, COUNTS, params)
    few = SequenceStore(
        store.items[store.offsets[40] :], store.offsets[40:] - store.offsets[40], store.user_ids[40:]
    )
    some = draw_candidates(few, targets[40:], COUNTS, params)
    assert some.items.equal(all_of_them.items[40:])
    assert some.hash != all_of_them.hash == draw_candidates(store, targets, COUNTS, params).hash
    other = draw_candidates(store, targets, COUNTS, SampledParams(negatives=15, power=0.5))
    assert not other.items.equal(all_of_them.items)


@pytest.mark.parametrize("power", [0.0, 0.75, 2.0])
def test_items_are_drawn_by_the_power_of_their_count(power: float) -> None:
    users = 2000
    store = make_store([[1]] * users)
    targets = torch.full((users,), 2)
    items = draw_candidates(store, targets, COUNTS, SampledParams(negatives=1, power=power)).items[:, 1]
    found = np.bincount(items.numpy(), minlength=ITEMS + 1)[3:] / users
    weights = np.arange(3, ITEMS + 1) ** power
    assert np.abs(found - weights / weights.sum()).max() < 4 * np.sqrt(found.max() / users)


def test_all_that_is_left_can_be_drawn_and_no_more() -> None:
    store, targets = make_store([[1, 2, 3]]), torch.tensor([4])
    counts = COUNTS.clone()
    counts[5:11] = 0  # never drawn by popularity, as well as any other uniformly
    every = draw_candidates(store, targets, counts, SampledParams(negatives=ITEMS - 10, power=8.0)).items
    assert sorted(every[0, 1:].tolist()) == list(range(11, ITEMS + 1))
    assert draw_candidates(store, targets, counts, SampledParams(negatives=ITEMS - 4, power=0)).items.shape
    with pytest.raises(
        BallastError, match=f"{ITEMS - 9} negatives are asked for, and user 1 .*{ITEMS - 10} items"
    ):
        draw_candidates(store, targets, counts, SampledParams(negatives=ITEMS - 9))
    for wrong in ({"negatives": 0}, {"power": -1.0}, {"power": float("nan")}):
        with pytest.raises(BallastError, match=r"evaluation\.sampled"):
            draw_candidates(store, targets, counts, SampledParams(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", ["sasrec", "din"])
def test_scores_are_those_of_the_full_ranking(backbone: str, toy_info: DatasetInfo) -> None:
    """With every other item a negative, the rank is the one among the whole catalogue."""
    store, targets = held_out()
    model: Any = {"backbone": {"name": backbone}, "loss": {"name": "bce"}, "dim": 8, "max_len": 5}
    method = registry.build("next_item", registry.configure("next_item", model, "model"), toy_info).eval()
    torch.nn.init.normal_(method.items.weight[1:], generator=torch.Generator().manual_seed(0))  # type: ignore
    full = ranking.rank_targets(method, store, targets)
    rest = [
        [item for item in range(1, ITEMS + 1) if item not in {*history.tolist(), target}]
        for history, target in zip(store.items.split(store.lengths.tolist()), targets.tolist(), strict=True)
    ]
    least = min(map(len, rest))
    users = [row for row, items in enumerate(rest) if len(items) == least]
    one = make_store([store.items[store.offsets[row] : store.offsets[row + 1]].tolist() for row in users])
    items = torch.tensor([[int(targets[row]), *rest[row]] for row in users])
    found = sampled_metrics(method, one, {"all": Candidates(items)}, ITEMS)["all"]
    rank = full.rank[users].double()
    assert full.n_candidates[users].tolist() == [least + 1] * len(users)
    assert found["auc"] == pytest.approx(float(1 - (rank - 1).mean() / least))
    assert found["ndcg@10"] == pytest.approx(ranking.ndcg_at(full.rank[users]))


def test_settings_are_a_list_that_is_empty_by_default() -> None:
    assert EvaluationParams().sampled == []
    params = parse(
        EvaluationParams, {"sampled": [{"negatives": 63, "power": 0.75}, {"power": 0}]}, "evaluation"
    )
    assert [protocol.name for protocol in params.sampled] == ["63@0.75", "63@0"]
    with pytest.raises(BallastError, match=r"sampled\.0\.negative: unknown key; did you mean 'negatives'"):
        parse(EvaluationParams, {"sampled": [{"negative": 63}]}, "evaluation")
