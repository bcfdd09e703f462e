"""What diffusion models owe to their draws and their reverse chain: measured, then reported."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_store, walk

from ballast.evaluation import diffusion, metrics
from ballast.evaluation.ranking import rank_targets
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.reporting import chains
from ballast.reproducibility import seed_dropout

FULL = {"conditioning": "full", "beta_last": 0.9, "step_weights": "equal", "draws": 3}


def built(name: str, info: DatasetInfo, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    small = {"dim": 8, "max_len": 10, "steps": 6, **settings}
    model = registry.build(name, registry.configure(name, small, "model"), info)
    with torch.no_grad():
        for parameter in model.parameters():  # as trained: what is drawn at random matters
            parameter.add_(torch.randn(parameter.shape) * 0.5)
        model.items.weight[0] = 0
    return model.eval()


@pytest.fixture
def users(toy_info: DatasetInfo) -> tuple[Any, Any]:
    store = make_store(walk(12))
    return store, torch.arange(len(store)) % toy_info.num_items + 1


def ndcg(model: Any, users: tuple[Any, Any]) -> float:
    return float(metrics.value("ndcg@10", rank_targets(model, *users).rank.numpy()).mean())


def test_single_passes_are_those_of_other_draws(toy_info: DatasetInfo, users: tuple[Any, Any]) -> None:
    model = built("cddrec", toy_info, **FULL)
    config = model.config
    found = diffusion.account(model, *users, batch_size=5)
    assert found is not None
    assert model.config is config
    for place in (0, 7):
        alone = built("cddrec", toy_info, **{**FULL, "draws": 1, "draw_seed": place})
        alone.load_state_dict(model.state_dict())
        assert found["passes"][place] == ndcg(alone, users)
    assert len(found["passes"]) == diffusion.PASSES
    assert np.std(found["passes"]) > 0
    assert 0 < found["overlap@10"] <= 1


@pytest.mark.parametrize("name", ["cddrec", "diffurec"])
def test_the_whole_chain_is_what_is_evaluated(
    name: str, toy_info: DatasetInfo, users: tuple[Any, Any]
) -> None:
    model = built(name, toy_info, **(FULL if name == "cddrec" else {"draws": 3}))
    found = diffusion.account(model, *users, batch_size=5)
    assert found is not None
    assert list(found["reverse_steps"]) == ["1", "2", "4", "6"]
    assert found["reverse_steps"]["6"] == ndcg(model, users)
    assert len(found["alpha_bar"]) == 6


def test_without_sampling_there_are_no_passes(toy_info: DatasetInfo, users: tuple[Any, Any]) -> None:
    found = diffusion.account(built("cddrec", toy_info), *users, batch_size=5)
    assert found is not None
    assert set(found) == {"alpha_bar"}
    sasrec = registry.build("next_item", registry.configure("next_item", {"dim": 8}, "model"), toy_info)
    assert diffusion.account(sasrec.eval(), *users, batch_size=5) is None


def test_the_release_samples_without_a_chain(toy_info: DatasetInfo, users: tuple[Any, Any]) -> None:
    found = diffusion.account(built("cddrec", toy_info, inference_noise=True), *users, batch_size=5)
    assert found is not None
    assert set(found) == {"alpha_bar", "passes", "overlap@10"}


def test_what_is_reported_is_within_a_seed() -> None:
    records = [
        {"passes": [0.1, 0.3], "overlap@10": 0.5, "reverse_steps": {"1": 0.2, "2": 0.4}},
        {"passes": [0.5, 0.7], "overlap@10": 0.7, "reverse_steps": {"1": 0.4, "2": 0.4}},
    ]
    records = [{"alpha_bar": [0.9, 0.1], **record} for record in records]
    cell = SimpleNamespace(
        dataset="shop",
        method="full",
        ranks=pd.DataFrame({"user_id": [1, 2, 1, 2]}),
        evaluate={"seeds": {str(seed): {"diffusion": record} for seed, record in enumerate(records)}},
    )
    plain = SimpleNamespace(**{**vars(cell), "method": "plain", "evaluate": {"seeds": {"0": {}}}})
    params = SimpleNamespace(cell=lambda *_: SimpleNamespace(model={"draws": 4}))
    evidence: Any = SimpleNamespace(cells={1: cell, 2: plain}, params=params)
    accuracy = pd.DataFrame({"dataset": ["shop"], "method": ["full"], "ndcg@10": [0.45]})
    (row,) = chains.draws(evidence, accuracy).to_dict("records")
    assert row["single_sd"] == pytest.approx(np.sqrt(2) / 10)  # of each seed, not of all four
    assert row["single_mean"] == pytest.approx(0.4)
    assert (row["single_low"], row["single_high"], row["draws"], row["steps"]) == (0.1, 0.7, 4, 2)
    steps = chains.by_steps(evidence).set_index("steps")
    assert steps["ndcg@10"].tolist() == pytest.approx([0.3, 0.4])
    assert (steps["high"] - steps["ndcg@10"]).tolist() == pytest.approx([np.sqrt(0.02), 0.0])
    assert chains.schedules(evidence)["alpha_bar"].tolist() == [0.9, 0.1]
