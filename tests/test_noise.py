"""Noise put into training, and whether weights know it: places, truth, and measures on planted cases."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import evaluate
import inputs
import numpy as np
import pandas as pd
import preprocess
import pytest
import torch
import train
import yaml
from conftest import ITEMS, make_store, walk
from test_splits import frame, params, random_frame, raw

from ballast.data.preparation import Prepared, prepare
from ballast.data.sequences import training_batches
from ballast.errors import BallastError
from ballast.evaluation.noise import auc, sequence_truth, spearman, tercile, validity
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.params import DatasetParams, NoiseParams
from ballast.reproducibility import seed_dropout
from ballast.strict import parse

# --- noise in training


def spoilt(share: float, seed: int = 0, known: bool = True) -> Prepared:
    rows = random_frame(0)
    if not known:
        rows["is_noise"] = pd.array([pd.NA] * len(rows), dtype="boolean")
    return prepare("d", raw(rows), params(noise=NoiseParams(share=share, seed=seed)))


@pytest.mark.parametrize(("known", "digest"), [(True, "5740d0f8955bff7f"), (False, "a1b2329c47d3527e")])
def test_without_noise_the_tables_are_what_they_were(known: bool, digest: str) -> None:
    """The digests were taken before there was such a thing as noise in params.yaml."""
    rows = random_frame(0)
    if not known:
        rows["is_noise"] = pd.array([pd.NA] * len(rows), dtype="boolean")
    prepared = prepare("d", raw(rows), params())
    tables = (prepared.interactions, prepared.items, prepared.users)
    text = "".join(table.to_csv(index=False) for table in tables) + json.dumps(prepared.stats)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_share_of_training_becomes_items_that_the_user_never_met() -> None:
    clean = prepare("d", raw(random_frame(0)), params()).interactions
    prepared = spoilt(0.1)
    noisy = prepared.interactions
    changed = (noisy["item_id"] != clean["item_id"]).to_numpy()
    is_train = (clean["split"] == "train").to_numpy()
    assert changed.sum() == round(0.1 * is_train.sum())
    assert not changed[~is_train].any()
    own = set(zip(clean["user_id"], clean["item_id"], strict=True))
    new = list(zip(noisy.loc[changed, "user_id"], noisy.loc[changed, "item_id"], strict=True))
    assert not own & set(new)
    assert len(set(new)) == len(new)
    same = ["user_id", "position", "timestamp", "split"]
    pd.testing.assert_frame_equal(noisy[same], clean[same])
    assert prepared.stats["injected_noise_share"] == float(f"{changed.sum() / is_train.sum():.6g}")


def test_the_catalogue_stays_and_counts_follow() -> None:
    clean, noisy = prepare("d", raw(random_frame(0)), params()), spoilt(0.3)
    pd.testing.assert_frame_equal(noisy.items.drop(columns="n_train"), clean.items.drop(columns="n_train"))
    training = noisy.interactions[noisy.interactions["split"] == "train"]
    counts = training["item_id"].value_counts().reindex(noisy.items["item_id"], fill_value=0)
    assert noisy.items["n_train"].tolist() == counts.tolist() != clean.items["n_train"].tolist()


def test_a_larger_share_holds_the_smaller_ones_and_another_seed_is_another_draw() -> None:
    clean = prepare("d", raw(random_frame(0)), params()).interactions["item_id"]
    tables = [spoilt(share).interactions["item_id"] for share in (0.0, 0.05, 0.1, 0.3, 1.0)]
    assert tables[0].equals(clean)
    for less, more in pairwise(tables):
        places = (less != clean).to_numpy()
        assert less[places].equals(more[places])
        assert (more != clean).sum() > places.sum()
    assert not spoilt(0.1, seed=1).interactions["item_id"].equals(tables[2])


@pytest.mark.parametrize("known", [True, False])
def test_the_truth_holds_what_was_put_in_and_what_was_known(known: bool) -> None:
    clean = prepare("d", raw(random_frame(0)), params()).interactions
    noisy = spoilt(0.2, known=known).interactions
    changed = (noisy["item_id"] != clean["item_id"]).to_numpy()
    before = clean["is_noise"].to_numpy(bool) if known else np.zeros(len(clean), bool)
    assert noisy["is_noise"].notna().all()
    assert noisy["is_noise"].to_numpy(bool).tolist() == (changed | before).tolist()
    assert before.any() == known


def test_a_user_who_met_every_item_stays_as_it_is() -> None:
    rows = raw(frame("a1 a2 a3 a4 b1 b2 b3"))
    prepared = prepare("d", rows, params(noise=NoiseParams(share=1.0)))
    found = prepared.interactions
    assert found["item_id"].tolist() == [1, 2, 3, 4, 4, 2, 3]
    assert found["is_noise"].tolist() == [False] * 4 + [True, False, False]
    assert prepared.stats["injected_noise_share"] == float(f"{1 / 3:.6g}")


def test_settings_of_noise_are_checked() -> None:
    block = {"label": "D", "terms": "", "source": {}, "reader": {"name": "x"}, "seeds": [0]}
    assert parse(DatasetParams, block, "d").noise is None
    assert parse(DatasetParams, {**block, "noise": {"share": 0.1}}, "d").noise == NoiseParams(share=0.1)
    with pytest.raises(BallastError, match=r"d: noise\.sharing: unknown key"):
        parse(DatasetParams, {**block, "noise": {"sharing": 0.1}}, "d")
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(
            BallastError, match=r"datasets\.d\.noise\.share: .* is not a share between 0 and 1"
        ):
            spoilt(share)


# --- measures of weights


def test_auc_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 5, 30).astype(float), rng.integers(0, 4, 20).astype(float)
    pairs = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    assert auc(positive, negative) == pytest.approx(pairs.mean())
    assert auc(positive, negative[:0]) is None
    assert auc(positive[:0], negative) is None


def truth_of(noisy: Any, length: Any, popularity: Any) -> pd.DataFrame:
    return pd.DataFrame({"is_noisy": noisy, "length": length, "popularity": popularity})


def test_weights_that_follow_popularity_alone_are_seen_through() -> None:
    """Noise sits on rare items, and the weight is popularity: a high AUC, and chance within a third."""
    rng = np.random.default_rng(0)
    third = np.repeat([0, 1, 2], 3000)
    popularity = third + 0.001 * rng.random(9000)
    noisy = rng.random(9000) < np.array([0.8, 0.4, 0.1])[third]
    found = validity(popularity, truth_of(noisy, rng.integers(3, 30, 9000), popularity))
    assert found["auc"] > 0.7
    assert found["auc_by_popularity"] == pytest.approx([0.5] * 3, abs=0.06)
    assert min(found["auc_by_length"]) > 0.65
    assert found["correlation_popularity"] == pytest.approx(1)
    assert found["correlation_popularity_clean"] == pytest.approx(1)
    assert abs(found["correlation_length"]) < 0.1
    assert found["sequences_by_popularity"] == [3000] * 3
    assert found["noisy_sequence_share"] == pytest.approx(noisy.mean())
    honest = validity((~noisy).astype(float), truth_of(noisy, third, popularity))
    assert (honest["auc"], honest["mean_weight_clean"], honest["mean_weight_noisy"]) == (1.0, 1.0, 0.0)
    assert honest["correlation_popularity_clean"] is None  # all weights of clean sequences are equal


def test_what_is_undefined_is_none() -> None:
    found = validity(np.ones(4), truth_of([False] * 4, [3] * 4, [1.0, 2.0, 3.0, 4.0]))
    assert found["auc"] is found["mean_weight_noisy"] is found["correlation_length"] is None
    assert found["auc_by_length"] == [None] * 3
    assert found["sequences_by_length"] == [4, 0, 0]  # equal values are not torn apart
    json.dumps(found, allow_nan=False)
    assert spearman(np.ones(1), np.ones(1)) is None
    assert tercile(np.array([1.0, 1.0, 1.0, 9.0])).tolist() == [0, 0, 0, 2]


def interactions_of(histories: list[list[int]], noise: set[tuple[int, int]] = frozenset()) -> pd.DataFrame:  # type: ignore[assignment]
    """Training rows; `noise` holds (user, position)."""
    rows = [
        (user, item, place, "train", (user, place) in noise)
        for user, items in enumerate(histories, 1)
        for place, item in enumerate(items)
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "split", "is_noise"])
    return table.assign(is_noise=table["is_noise"].astype("boolean"))


def test_the_truth_is_about_what_training_shows() -> None:
    histories = walk(30, longest=12)
    rng = np.random.default_rng(0)
    noise = {(u, p) for u, items in enumerate(histories, 1) for p in range(len(items)) if rng.random() < 0.1}
    counts = np.arange(ITEMS + 1)
    truth = sequence_truth(interactions_of(histories, noise), counts, max_len=5)
    shown = 0
    for batch in training_batches(make_store(histories), 7, 5, torch.Generator().manual_seed(0)):
        assert batch.targets is not None
        for user, history, target in zip(
            batch.user_id.tolist(), batch.history.tolist(), batch.targets[:, -1].tolist(), strict=True
        ):
            seen = [item for item in [*history, target] if item]
            places = range(len(histories[user - 1]) - len(seen), len(histories[user - 1]))
            assert truth.loc[user, "is_noisy"] == any((user, place) in noise for place in places)
            assert truth.loc[user, "popularity"] == pytest.approx(counts[seen].mean())
            assert truth.loc[user, "length"] == len(histories[user - 1])
            shown += 1
    assert shown == 30
    assert 0 < truth["is_noisy"].mean() < 1


# --- the weights of a method


def atjt(info: DatasetInfo, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    model = {"dim": 8, "max_len": 10, "dropout": 0.5, **settings}
    return registry.build("atjt", registry.configure("atjt", model, "model"), info).train()


def a_batch() -> Any:
    return next(iter(training_batches(make_store(walk(12)), 12, 10, torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("weighting", ["learned", "detached"])
def test_a_learned_weight_is_the_opinion_of_who_never_saw_the_user(
    weighting: str, toy_info: DatasetInfo
) -> None:
    model, batch = atjt(toy_info, weighting=weighting), a_batch()
    for one in model.noise_models:  # else both know nothing, and think alike
        torch.nn.init.normal_(one.items.weight, std=3.0)
    opinions = []
    for row, user in enumerate(batch.user_id.tolist()):
        other = model.noise_models[(user + 1) % 2]
        opinions.append(other(batch.history[row : row + 1], batch.targets[row : row + 1, -1]).sigmoid())
    found = model.sequence_weights(batch)
    torch.testing.assert_close(found, torch.cat(opinions).detach())
    assert found.std() > 0
    assert not found.requires_grad


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_weights_of_losses_are_repeatable_and_leave_no_trace(backbone: str, toy_info: DatasetInfo) -> None:
    batch = a_batch()
    settings = {"backbone": {"name": backbone}, "loss": {"name": "bce"}}
    soft = atjt(toy_info, weighting="reweighted", beta=0.5, **settings)
    weights = soft.sequence_weights(batch)
    torch.rand(5)  # dropout would draw from here
    assert weights.equal(soft.sequence_weights(batch))
    assert soft.training
    assert not weights.requires_grad
    assert all(parameter.grad is None for parameter in soft.parameters())
    hard = atjt(toy_info, weighting="truncated", drop=0.25, **settings).sequence_weights(batch)
    assert sorted(hard.tolist()) == [0.0] * 3 + [1.0] * 9
    assert weights[hard == 0].max() <= weights[hard == 1].min()  # the same losses, cut instead of bent
    for weighting in ("none", "random"):
        assert atjt(toy_info, weighting=weighting, **settings).sequence_weights(batch) is None


# --- the stage


def prepared_of(interactions: pd.DataFrame, info: DatasetInfo) -> inputs.Prepared:
    return inputs.Prepared(interactions, info, "")


def test_the_stage_gives_each_user_its_own_weight(
    toy_info: DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are the truth itself are told as such, whatever order the batches come in."""
    histories = walk(40)
    noise = {(user, 1) for user in range(1, 41, 3)}
    table = interactions_of(histories, noise)
    model = atjt(toy_info)
    monkeypatch.setattr(model, "sequence_weights", lambda batch: (batch.user_id % 3 != 1).float())
    found = evaluate._noise(model, prepared_of(table, toy_info), 8)
    assert found is not None
    assert found["auc"] == 1.0
    assert found["noise_share"] == pytest.approx(14 / len(table))
    assert found["sequences"] == 40
    assert found["auc_replaced"] == 0.5  # these weights do not read what is replaced
    unknown = table.assign(is_noise=pd.array([pd.NA] * len(table), dtype="boolean"))
    assert evaluate._noise(model, prepared_of(unknown, toy_info), 8) == {
        "sequences": 40,
        "auc_replaced": 0.5,
    }
    seen: list[torch.Tensor] = []

    def doubtful(batch: Any) -> torch.Tensor:
        seen.append(batch.history)
        return torch.full((len(batch.history),), -float(len(seen)))

    monkeypatch.setattr(model, "sequence_weights", doubtful)
    told = evaluate._noise(model, prepared_of(unknown, toy_info), 40)
    assert told is not None
    assert told["auc_replaced"] == 1.0
    assert ((seen[0] != seen[1]).sum(1) == 1).all()
    soft = atjt(toy_info, weighting="reweighted")
    assert evaluate._noise(soft, prepared_of(unknown, toy_info), 8) is None
    without = evaluate._noise(soft, prepared_of(table, toy_info), 8)
    assert without is not None
    assert "auc_replaced" not in without  # a loss has seen the originals in training, a judge has not
    assert evaluate._noise(atjt(toy_info, weighting="none"), prepared_of(table, toy_info), 8) is None
    plain = registry.build("popularity", registry.configure("popularity", {}, "model"), toy_info)
    assert evaluate._noise(plain, prepared_of(table, toy_info), 8) is None


def study_of(folder: Path) -> None:
    """Params and raw files of a study of one small dataset and its twins, whose training is another."""
    model = {"dim": 8, "max_len": 6, "loss": {"name": "bce"}}
    methods: dict[str, Any] = {
        "din": {"method": "next_item", "model": {**model, "backbone": {"name": "din"}}},
        "atjt": {"method": "atjt", "model": model},
    }
    block = {
        "label": "Toy",
        "terms": "none",
        "source": {},
        "reader": {"name": "tabular", "interactions": "rows.csv", "items": None},
        "filter": {"min_user_interactions": 1},
        "seeds": [0, 1],
    }
    twins = {
        "toy-noise": {"noise": {"share": 0.2}},
        "toy-half": {"sample": {"share": 0.5}},
        "toy-fake": {"poison": {"attack": {"name": "injection"}, "share": 0.2, "pushed": 2}},
    }
    names = ("toy", *twins)
    for block_of in methods.values():
        block_of |= {"label": "M", "training": {"max_epochs": 1, "batch_size": 32}}
    data = {
        "root": ".",
        "study": {"name": "s", "title": "S"},
        "datasets": {"toy": block, **{name: {**block, **twin} for name, twin in twins.items()}},
        "targets": list(names),
        "methods": methods,
        "cells": {name: {method: {} for method in methods} for name in names},
        "evaluation": {"sampled": [{"negatives": 9}]},
        **{key: {} for key in ("features", "content_methods", "transfer_methods", "transfer", "tuning")},
        **{key: {} for key in ("robustness", "report")},
        "content_datasets": [],
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(data))
    rows = [(user, item, time) for user, items in enumerate(walk(50)) for time, item in enumerate(items)]
    for name in names:
        (folder / "data/raw" / name).mkdir(parents=True)
        table = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
        table.to_csv(folder / "data/raw" / name / "rows.csv", index=False)


def test_from_raw_files_to_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/code.json").write_text('{"train": {}}')
    records: dict[tuple[str, str], Any] = {}
    for dataset in ("toy", "toy-noise", "toy-half", "toy-fake"):
        preprocess.main(dataset=dataset)
        for method in ("din", "atjt"):
            train.main(dataset=dataset, method=method)
            evaluate.main(dataset=dataset, method=method)
            path = tmp_path / f"reports/cells/evaluate/{dataset}--{method}.json"
            records[dataset, method] = json.loads(path.read_text())
    for (dataset, method), record in records.items():
        for seed in ("0", "1"):
            noise = record["seeds"][seed].get("noise", {})
            assert ("auc_replaced" in noise) == (method == "atjt")
            assert ("auc" in noise) == (dataset == "toy-noise" and method == "atjt")
            assert ("degeneration" in record["seeds"][seed]) == (method == "atjt")  # din has no states
            assert 0 < record["seeds"][seed]["sampled"]["9@0.75"]["auc"] < 1
            assert record["seeds"][seed]["users"] == 50  # all are ranked for, whoever was trained on
            assert ("pushed_exposure@10" in record["seeds"][seed]) == (dataset == "toy-fake")
        assert record["sampled_hashes"] == records[dataset, "din"]["sampled_hashes"]
    stores = {
        name: inputs.load(tmp_path / "data/prepared" / name, {}) for name in ("toy", "toy-half", "toy-fake")
    }
    assert [len(prepared.store(["train"])) for prepared in stores.values()] == [50, 25, 60]
    users = stores["toy"].held_out("test")[0]
    lengths = [prepared.store(["train", "valid"], users).lengths.tolist() for prepared in stores.values()]
    assert lengths[0] == lengths[1] == lengths[2]  # and everyone's history is whole
    found = records["toy-noise", "atjt"]["seeds"]["0"]["noise"]
    statistics = json.loads((tmp_path / "reports/cells/preprocess/toy-noise.json").read_text())
    assert found["noise_share"] == pytest.approx(statistics["injected_noise_share"], rel=1e-5)
    assert found["sequences"] == 50
    assert "injected_noise_share" not in json.loads(
        (tmp_path / "reports/cells/preprocess/toy.json").read_text()
    )
