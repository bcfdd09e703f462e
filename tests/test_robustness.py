"""Corrupted histories: exact sizes, the same noise for everyone, and nothing changed at budget 0."""

import contextlib
import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import inputs
import numpy as np
import pandas as pd
import pytest
import robustness
import torch
import yaml
from torch import nn

from ballast import params as parameters
from ballast.data import schemas
from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError
from ballast.evaluation.ranking import rank_targets
from ballast.models import registry
from ballast.models.method import Method
from ballast.robustness import corruption, stability, suite
from ballast.robustness.corruption import KINDS, corrupt, sample_users
from ballast.robustness.stability import rank_with_histories, rbo

ROOT = Path(__file__).resolve().parents[1]
ITEMS = 120
BUDGETS = [0.05, 0.1, 0.3, 0.5, 1.0]


def make_store(histories, users=None):
    lengths = [len(history) for history in histories]
    return SequenceStore(
        torch.tensor([item for history in histories for item in history], dtype=torch.int64),
        torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int64),
        torch.arange(1, len(histories) + 1) if users is None else torch.as_tensor(users),
    )


def rows_of(store):
    return [part.tolist() for part in store.items.split(store.lengths.tolist())]


def draw_histories(users=60, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.permutation(np.arange(1, ITEMS + 1))[: rng.integers(1, longest)].tolist() for _ in range(users)
    ]


@pytest.fixture(scope="module")
def histories():
    return [[], [7], [7, 9], [3, 3, 3], *draw_histories()]


@pytest.fixture(scope="module")
def store(histories):
    return make_store(histories, users=np.arange(len(histories)) * 5 + 2)


def half_up(budget, length):
    """Rounded half up in whole numbers, where 0.3 * 5 is no question."""
    return (round(budget * 100) * length * 2 + 100) // 200


def is_subsequence(short, long):
    rest = iter(long)
    return all(item in rest for item in short)


@pytest.mark.parametrize("budget", [*BUDGETS, 0.29])
def test_sizes_are_exact(store, histories, budget):
    longer = make_store([*histories, list(range(1, 51))])  # 0.29 * 50 is below 14.5 in floating point
    for kind in KINDS:
        noise = corrupt(longer, kind, budget, 3, ITEMS)
        for old, new, size in zip(rows_of(longer), rows_of(noise.store), noise.size.tolist(), strict=True):
            count = max(half_up(budget, len(old)), 1) if old else 0
            change = kind.partition("-")[0]
            if change == "insert":
                assert len(new) - len(old) == count
                assert is_subsequence(old, new)
            elif change == "replace":
                assert len(new) == len(old)
                assert sum(a != b for a, b in zip(old, new, strict=True)) == count
            elif change == "delete":
                count = min(count, max(len(old) - 1, 0))
                assert len(old) - len(new) == count
                assert is_subsequence(new, old)
            else:
                count = max(count, 2) if len(old) >= 2 else 0
                assert sorted(new) == sorted(old)
                if len(set(old)) < len(old):
                    count = 0  # [3, 3, 3]: no order of it differs
                assert sum(a != b for a, b in zip(old, new, strict=True)) == count
            assert size == pytest.approx(count / max(1, len(old)))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_budget_is_the_identity(store, kind):
    noise = corrupt(store, kind, 0.0, 3, ITEMS)
    assert noise.store.items.equal(store.items)
    assert noise.store.offsets.equal(store.offsets)
    assert noise.size.eq(0).all()
    assert noise.hash == corruption.Corrupted(store, noise.size).hash


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_a_user_depends_on_nobody_else(store, kind):
    targets = torch.arange(len(store)) % ITEMS + 1
    together = rows_of(corrupt(store, kind, 0.3, 3, ITEMS, targets).store)
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[:30]
    histories = rows_of(store)
    some = make_store([histories[i] for i in order.tolist()], users=store.user_ids[order])
    torch.manual_seed(99)  # no global generator is drawn from
    alone = rows_of(corrupt(some, kind, 0.3, 3, ITEMS, targets[order]).store)
    assert alone == [together[i] for i in order.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_hash_tells_noise_apart(store, kind):
    noise = corrupt(store, kind, 0.3, 3, ITEMS)
    assert noise.hash == corrupt(store, kind, 0.3, 3, ITEMS).hash
    renamed = SequenceStore(store.items, store.offsets, store.user_ids + 1)
    others = [corrupt(store, kind, 0.5, 3, ITEMS).hash, corrupt(renamed, kind, 0.3, 3, ITEMS).hash]
    assert len({noise.hash, *others}) == 3
    is_drawn = not kind.startswith("delete-")  # which items go is a matter of their place alone
    assert (corrupt(store, kind, 0.3, 4, ITEMS).hash != noise.hash) == is_drawn


@pytest.mark.parametrize(
    ("place", "kept"),
    [("first", [3, 4, 5, 6, 7]), ("middle", [1, 2, 5, 6, 7]), ("last", [1, 2, 3, 4, 5])],
)
def test_placed_changes_are_where_they_say(place, kept):
    histories = make_store([[1, 2, 3, 4, 5, 6, 7]])
    left = rows_of(corrupt(histories, f"delete-{place}", 0.3, 0, ITEMS).store)[0]
    assert left == kept
    replaced = rows_of(corrupt(histories, f"replace-{place}", 0.3, 0, ITEMS).store)[0]
    assert [item for item in replaced if item <= 7] == left
    assert (
        corrupt(histories, f"replace-{place}", 0.3, 1, ITEMS).hash
        != corrupt(histories, f"replace-{place}", 0.3, 0, ITEMS).hash
    )


def test_noise_does_not_change_between_versions():
    """Numbers in reports stay comparable only while the draws stay these."""
    rows = rows_of(corrupt(make_store([[1, 2, 3, 4, 5, 6]]), "replace", 0.3, 0, 1000).store)
    assert rows == [[1, 2, 70, 353, 5, 6]]


@pytest.mark.parametrize("kind", ["insert", "replace"])
def test_new_items_are_new(store, histories, kind):
    # All but two items are in the history or the target, so a careless draw would surely meet them.
    crowded = make_store([np.random.default_rng(i).permutation(ITEMS)[: ITEMS - 3] + 1 for i in range(20)])
    free = [set(range(1, ITEMS + 1)) - set(row) for row in rows_of(crowded)]
    targets = torch.tensor([min(left) for left in free])
    noise = corrupt(crowded, kind, 0.5, 3, ITEMS, targets)
    for old, new, left, target in zip(
        rows_of(crowded), rows_of(noise.store), free, targets.tolist(), strict=True
    ):
        assert set(new) - set(old) == left - {target}


def test_new_items_are_uniform():
    users = 4000
    store = make_store([[2, 5, 9]] * users)
    noise = corrupt(store, "insert", 1.0, 0, 12, torch.full((users,), 7))
    counts = np.bincount(noise.store.items, minlength=13)[1:]
    drawn = counts[[0, 2, 3, 5, 7, 9, 10, 11]]  # without 2, 5, 9 and 7
    assert drawn.sum() == 3 * users
    assert counts[6] == 0
    expected = 3 * users / 8
    assert ((drawn - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001


def test_a_catalogue_that_was_all_met_is_refused():
    with pytest.raises(BallastError, match="user 4 has met every item"):
        corrupt(make_store([[1, 2], [1, 2, 3]], users=[3, 4]), "replace", 0.5, 0, 3)


def test_positions_are_uniform_and_reach_both_ends():
    length, users = 10, 3000
    store = make_store([list(range(1, length + 1))] * users)
    replaced = corrupt(store, "replace", 0.3, 0, ITEMS).store.items.view(users, length) != store.items.view(
        users, length
    )
    assert replaced.float().mean(0) == pytest.approx(np.full(length, 0.3), abs=0.04)
    inserted = corrupt(store, "insert", 0.1, 0, ITEMS).store.items.view(users, length + 1) > length
    assert inserted.float().mean(0) == pytest.approx(np.full(length + 1, 1 / 11), abs=0.025)


@pytest.mark.parametrize("kind", ["insert", "replace", "delete"])
def test_larger_budgets_keep_the_smaller_ones_changes(store, kind):
    small, large = (rows_of(corrupt(store, kind, budget, 3, ITEMS).store) for budget in (0.1, 0.3))
    for old, less, more in zip(rows_of(store), small, large, strict=True):
        if kind == "insert":
            assert is_subsequence(less, more)
        elif kind == "delete":
            assert is_subsequence(more, less)
        else:
            assert all(c == b for a, b, c in zip(old, less, more, strict=True) if a != b)


def test_unknown_kind_and_budget():
    store = make_store([[1, 2]])
    with pytest.raises(BallastError, match="unknown corruption 'swap'; known: insert"):
        corrupt(store, "swap", 0.1, 0, 9)
    for budget in (-0.1, 1.1, float("nan")):
        with pytest.raises(BallastError, match="is not a share"):
            corrupt(store, "insert", budget, 0, 9)


def test_sample_users():
    users = np.arange(3, 5000, 7)
    sample = sample_users(users, 200, 0)
    assert len(sample) == len(set(sample)) == 200
    assert set(sample) <= set(users)
    assert (np.diff(sample) > 0).all()
    assert set(sample_users(users[::-1], 100, 0)) < set(sample)
    assert set(sample_users(users, 200, 1)) != set(sample)
    assert sample_users(users, 10_000, 0).tolist() == users.tolist()


def test_hash_bits_are_fair():
    """Neighbouring users and places give unrelated bits."""
    users, places = (part.reshape(-1) for part in np.meshgrid(np.arange(200), np.arange(50)))
    bits = corruption.hashed(0, "x", users, places)
    assert len(set(bits.tolist())) == len(bits)
    ones = np.unpackbits(bits.view(np.uint8)).reshape(len(bits), 64).mean(0)
    assert ones == pytest.approx(np.full(64, 0.5), abs=0.025)


def test_rbo_by_hand():
    for module in (stability, corruption):
        assert doctest.testmod(module).failed == 0
    same = np.arange(10)[None]
    assert rbo(same, same) == pytest.approx([1.0])
    assert rbo(same, same + 10) == pytest.approx([0.0])
    # Agreement 1, 1/2, 1/3 and none new after: 0.1 (1 + 0.9 / 2 + 0.81 / 3) + 0.9^3 / 3.
    assert rbo(np.array([[1, 2, 3]]), np.array([[1, 4, 5]])) == pytest.approx([0.172 + 0.243])
    # Item 3 is common from depth 3 on, when both lists have it.
    assert rbo(np.array([[3, 1, 2]]), np.array([[5, 6, 3]])) == pytest.approx([0.1 * 0.81 / 3 + 0.729 / 3])


def test_rbo_weighs_the_top():
    first = np.arange(10)[None]
    top, bottom = first.copy(), first.copy()
    top[0, 0], bottom[0, 9] = 90, 90
    assert rbo(first, top) < rbo(first, bottom) < 1


class LastItem(Method):
    """Scores by a table of the last two items; longer histories are out of its sight."""

    def __init__(self):
        nn.Module.__init__(self)
        self.table = torch.randn(ITEMS + 1, ITEMS + 1, generator=torch.Generator().manual_seed(0))

    max_len = 2

    def score(self, batch, rng=None):
        assert batch.history.shape[1] <= 2
        return self.table[batch.history[:, -1]] + 0.5 * self.table[batch.history[:, 0]]


def test_zero_budget_ranks_equal_clean_ones(store):
    targets = (store.user_ids * 11) % ITEMS + 1
    clean = rank_targets(LastItem(), store, targets, topk=10)
    for kind in KINDS:
        noisy = corrupt(store, kind, 0.0, 0, ITEMS, targets).store
        ranking = rank_with_histories(LastItem(), store, noisy, targets, topk=10)
        for name in ("rank", "rank_unmasked", "n_candidates", "n_ties", "topk"):
            assert getattr(ranking, name).equal(getattr(clean, name)), name


def test_noisy_histories_reach_the_method_and_both_are_masked():
    model = LastItem()
    clean, noisy = (
        make_store([[1, 2, 3], [4, 5, 6]], users=[9, 4]),
        make_store([[1, 2, 7], [4, 5]], users=[9, 4]),
    )
    targets = torch.tensor([8, 9])
    ranking = rank_with_histories(model, clean, noisy, targets, batch_size=1, topk=ITEMS)
    for row, (pair, masked) in enumerate([((2, 7), [1, 2, 3, 7]), ((4, 5), [4, 5, 6])]):
        scores = model.table[pair[1]] + 0.5 * model.table[pair[0]]
        rivals = [i for i in range(1, ITEMS + 1) if i not in masked]
        assert ranking.rank[row] == sum(bool(scores[i] >= scores[targets[row]]) for i in rivals)
        assert ranking.n_candidates[row] == len(rivals)
        assert set(ranking.topk[row, : len(rivals)].tolist()) == set(rivals)


def test_users_need_not_be_sorted():
    clean = make_store([[1, 2], [3], [4, 5, 6]], users=[30, 10, 20])
    targets = torch.tensor([50, 60, 70])
    expected = rank_targets(LastItem(), clean, targets)
    assert rank_with_histories(LastItem(), clean, clean, targets).rank.equal(expected.rank)


PARAMS = {
    "root": str(ROOT),
    "study": {"name": "tiny", "title": "Tiny"},
    "datasets": {
        "tiny": {
            "label": "Tiny",
            "terms": "none",
            "source": {},
            "reader": {"name": "tabular"},
            "seeds": [0, 1],
        }
    },
    "targets": ["tiny"],
    "content_datasets": [],
    "features": {},
    "methods": {
        "knn": {"label": "kNN", "method": "item_knn", "model": {"max_len": 8}},
        "pop": {"label": "Popularity", "method": "popularity"},
    },
    "content_methods": {},
    "transfer_methods": {},
    "transfer": {},
    "tuning": {},
    "cells": {"tiny": {"knn": {}, "pop": {}}},
    "evaluation": {},
    "robustness": {"users": 20, "budgets": [0.0, 0.2, 0.5]},
    "report": {},
}


def prepare_study(folder, **robustness):
    settings = {**PARAMS, "robustness": {**PARAMS["robustness"], **robustness}}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    histories = draw_histories(users=50, longest=20, seed=1)
    rows = [
        (user, item, place, split)
        for user, history in enumerate((row for row in histories if len(row) >= 3), start=1)
        for place, (item, split) in enumerate(
            zip(history, ["train"] * (len(history) - 2) + ["valid", "test"], strict=True)
        )
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "split"])
    counts = frame[frame["split"] == "train"]["item_id"].value_counts()
    ids = np.arange(1, ITEMS + 1)
    items = pd.DataFrame({"item_id": ids, "raw_item_id": ids.astype(str), "title": None, "description": None,
                          "category": None, "price": None, "image": None,
                          "n_train": counts.reindex(ids, fill_value=0).to_numpy()})  # fmt: skip
    prepared = folder / "data/prepared/tiny"
    schemas.write("items", items, prepared / "items.parquet")
    frame = frame.assign(timestamp=None, is_noise=None)
    schemas.write("interactions", frame, prepared / "interactions.parquet")
    (folder / "reports").mkdir()
    (folder / "reports/code.json").write_text('{"robustness": {}}')


def save_model(method):
    """What the train stage leaves, without training."""
    params = parameters.load(Path("params.yaml"))
    cell, prepared = params.cell("tiny", method), inputs.load_cell(params, "tiny", method)
    folder = Path("data/models/tiny") / method
    folder.mkdir(parents=True)
    for seed in inputs.seeds(params, "tiny", method):
        model = inputs.fresh(cell, inputs.config(cell, "params.yaml"), prepared.info, seed)
        if not model.is_trained_by_steps:
            train = prepared.store(["train"])
            model.fit_sequences(train.items, train.offsets)
        registry.save(model, folder / f"seed-{seed}.safetensors")


@contextlib.contextmanager
def inside(folder):
    """Stages run in a study's folder; their process-wide settings would reach other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BALLAST_DEVICE", "cpu")
        patch.setattr(robustness, "prepare_process", lambda: None)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    prepare_study(folder)
    with inside(folder):
        for method in ("knn", "pop"):
            save_model(method)
            robustness.main("tiny", method)
    return folder


def read_cell(folder, method):
    table = schemas.read("robustness", folder / f"reports/robustness/tiny--{method}.parquet")
    return table, json.loads((folder / f"reports/cells/robustness/tiny--{method}.json").read_text())


def test_stage_writes_every_condition(study):
    table, cell = read_cell(study, "knn")
    kinds = ["insert", "replace", "delete", "shuffle"]
    asked = {"users": 20, "seed": 0, "kinds": kinds, "budgets": [0.0, 0.2, 0.5]}
    assert cell["config"].items() >= asked.items()
    assert list(cell["seeds"]) == ["0"]  # counting draws nothing at random
    names = {f"{kind}@{budget:g}" for kind in kinds for budget in (0.2, 0.5)}
    assert set(cell["noise_hashes"]) == set(cell["seeds"]["0"]["sizes"]) == names
    assert len(table) == 20 * 8
    assert table.groupby("user_id")["clean_rank"].nunique().eq(1).all()
    sizes = table.groupby(["condition", "budget"], observed=True)["size"].mean()
    for (kind, budget), size in sizes.items():
        assert size == pytest.approx(cell["seeds"]["0"]["sizes"][f"{kind}@{budget:g}"], abs=1e-5)


def test_stage_ranks_are_those_of_the_library(study):
    """Popularity reads no history: noise moves neither ranks nor lists beyond what it masks."""
    table, _ = read_cell(study, "pop")
    calm = table[table["condition"].isin(["delete", "shuffle"])]
    assert calm["rank"].equals(calm["clean_rank"])
    assert calm["rbo"].eq(1).all()
    assert (table["rank"] <= table["clean_rank"]).all()  # inserted items no longer compete
    moved, _ = read_cell(study, "knn")
    assert (moved["rank"] != moved["clean_rank"]).any()
    assert moved["rbo"].between(0, 0.99).any()


def test_stage_truncated(study):
    table, _ = read_cell(study, "knn")
    frame = schemas.read("interactions", study / "data/prepared/tiny/interactions.parquet")
    lengths = frame[frame["split"] != "test"].groupby("user_id").size()
    shuffled = table[table["condition"] == "shuffle"]
    assert shuffled["truncated"].any()
    assert not shuffled["truncated"].all()
    assert (shuffled["truncated"].to_numpy() == (lengths[shuffled["user_id"]] > 8).to_numpy()).all()


def test_methods_meet_the_same_users_and_noise(study):
    (first, one), (second, other) = (read_cell(study, method) for method in ("knn", "pop"))
    keys = ["user_id", "condition", "budget", "size"]
    assert first[keys].equals(second[keys])
    assert one["noise_hashes"] == other["noise_hashes"]


def test_stage_refuses_settings(tmp_path):
    for number, (change, message) in enumerate(
        [
            ({"kinds": ["insert", "swap"]}, "robustness.kinds: unknown 'swap'; known: insert, replace"),
            ({"budgets": [0.0]}, "robustness.budgets: give at least one share above 0"),
            ({"users": 0}, "robustness.users: 0 is less than 1"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare_study(folder, **change)
        with inside(folder), pytest.raises(BallastError, match=message):
            robustness.main("tiny", "knn")


def test_stage_ends_in_one_line_without_a_model(tmp_path):
    prepare_study(tmp_path)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BALLAST_DEVICE": "cpu"}
    command = [sys.executable, str(ROOT / "stages/robustness.py"), "--dataset", "tiny", "--method", "knn"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "seed-0.safetensors: no trained model" in ended.stderr
    assert not (tmp_path / "reports/robustness").exists()


# Attacks

GRID = [0.1, 0.5]
ATTACKS = {
    "random": {"attack": {"name": "random"}, "budgets": GRID},
    "fgm": {"attack": {"name": "fgm"}, "budgets": GRID, "surfaces": ["items", "text"]},
    "pgd": {"attack": {"name": "pgd", "steps": 3}, "budgets": GRID},
    "promote": {"attack": {"name": "pgd", "steps": 3, "goal": "promote"}, "budgets": [0.5]},
    "pixels": {"attack": {"name": "pixels"}, "budgets": [4.0], "surfaces": ["image"]},
    "transfer": {"attack": {"name": "transfer", "steps": 3}, "budgets": GRID},
}
NEURAL = {
    "label": "SASRec",
    "method": "next_item",
    "model": {
        "dim": 8,
        "max_len": 8,
        "dropout": 0.0,
        "backbone": {"name": "sasrec", "layers": 1, "heads": 1},
    },
    "training": {"batch_size": 8, "learning_rate": 0.01, "max_epochs": 1, "patience": 1},
}


def attacked_study(folder):
    prepare_study(folder, kinds=["insert"], attacks=ATTACKS, attack_users=12, pushed=2)
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings["methods"]["neural"] = NEURAL
    settings["cells"]["tiny"]["neural"] = {}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    with inside(folder):
        for method in ("neural", "pop"):
            save_model(method)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    attacked_study(folder)
    with inside(folder):
        for method in ("neural", "pop"):
            robustness.main("tiny", method)
    return folder


def test_attacks_are_tried_on_what_a_method_has(attacked):
    table, cell = read_cell(attacked, "neural")
    found = set(table[["condition", "surface", "budget"]].round(6).itertuples(index=False, name=None))
    wanted = {("insert", "history", 0.2), ("insert", "history", 0.5)}
    wanted |= {(name, "items", budget) for name in ("random", "fgm", "pgd") for budget in GRID}
    wanted |= {(f"promote-{place}", "items", 0.5) for place in (1, 2)}
    assert {(c, s, round(float(b), 3)) for c, s, b in found} == wanted
    assert set(cell["seeds"]) == {"0", "1"}
    assert len(cell["seeds"]["0"]["sizes"]) == len(wanted)
    assert cell["seeds"]["0"]["sizes"]["pgd items@0.5"] == pytest.approx(0.5, rel=1e-4)
    assert set(cell["flags"]) == {"0", "1"}
    assert len(cell["pushed"]) == 2
    nothing, _ = read_cell(attacked, "pop")
    assert set(nothing["surface"]) == {"history"}


def test_what_was_made_on_another_seed_is_tried_where_both_know_the_same(attacked):
    """Item vectors are each seed's own; texts are not, and one seed alone has no other."""
    table, _ = read_cell(attacked, "neural")
    assert "transfer" not in set(table["condition"])
    with inside(attacked):
        params = parameters.load(Path("params.yaml"))
        settings = params.robustness
        prepared = inputs.load_cell(params, "tiny", "neural")
        models = [inputs.trained(params, "tiny", "neural", prepared, seed) for seed in (0, 1)]
        for model in models:
            model.surfaces = {"items": "items.weight", "text": "texts"}
            model.register_buffer("texts", torch.ones(4, 2))
        for surrogate, wanted in [(models[1], {"text"}), (models[0], {"items", "text"}), (None, set())]:
            found = robustness._attacks(models[0], settings, robustness.Means(None, surrogate))
            assert {attack.surface for name, _, attack in found if name == "transfer"} == wanted


def test_attacked_users_are_among_the_others(attacked):
    table, _ = read_cell(attacked, "neural")
    users = {surface: set(rows["user_id"]) for surface, rows in table.groupby("surface", observed=True)}
    assert len(users["items"]) == 12
    assert len(users["history"]) == 20
    assert users["items"] < users["history"]


def test_gradients_hurt_more_than_chance(attacked):
    table, _ = read_cell(attacked, "neural")
    table = table[table["budget"] > 0.3]
    loss = (1 / np.log2(1 + table["clean_rank"]) - 1 / np.log2(1 + table["rank"])).groupby(
        table["condition"], observed=True
    )
    assert loss.mean()["pgd"] > loss.mean()["random"]
    assert loss.mean()["fgm"] > loss.mean()["random"]


def test_an_ended_run_goes_on_where_it_stopped(attacked, tmp_path, monkeypatch):
    """Conditions that are done are not computed again, and the table is that of an undisturbed run."""
    attacked_study(tmp_path)
    corrupted, attack = suite.Subject.corrupted, suite.Subject.attacked
    calls = []

    def counted(self, noise):
        calls.append(noise)
        return corrupted(self, noise)

    def ended(*_):
        raise KeyboardInterrupt

    with inside(tmp_path):
        monkeypatch.setattr(suite.Subject, "corrupted", counted)
        monkeypatch.setattr(suite.Subject, "attacked", ended)
        with pytest.raises(KeyboardInterrupt):
            robustness.main("tiny", "neural")
        assert len(calls) == 2  # two shares of inserted items, of the first seed
        monkeypatch.setattr(suite.Subject, "attacked", attack)
        robustness.main("tiny", "neural")
    assert len(calls) == 4  # those of the second seed alone
    whole, _ = read_cell(attacked, "neural")
    resumed, _ = read_cell(tmp_path, "neural")
    pd.testing.assert_frame_equal(whole, resumed)
    assert not list((tmp_path / ".scratch/robustness").glob("*"))


def test_unknown_attack_is_told(tmp_path):
    prepare_study(tmp_path, attacks={"mine": {"attack": {"name": "fgn"}, "budgets": [0.1]}})
    with inside(tmp_path), pytest.raises(BallastError, match=r"attacks.mine.attack: unknown attack 'fgn'"):
        robustness.main("tiny", "knn")
