"""The report stage on a small made-up study: its numbers, its refusals, its page."""

import dataclasses
import doctest
import importlib.util
import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from ballast.data import schemas
from ballast.errors import BallastError
from ballast.evaluation.metrics import ndcg
from ballast.params import AttackParams, DatasetParams, PoisonParams, RobustnessParams, SourceParams, load
from ballast.reporting import answer as answers
from ballast.reporting import evidence, plots, poisoning, results, study_figures, tables, threats, variants
from ballast.reporting.claims import default_claims

ROOT = Path(__file__).resolve().parents[1]
DATASETS = {"toys": 120, "shop": 90}  # users
METHODS = {"popularity": "popularity", "item-knn": "item_knn", "sasrec": "next_item"}
SEEDS = [0, 1, 2]
STRENGTH = {"popularity": 0.05, "item-knn": 0.3, "sasrec": 0.9}
ITEMS = 200

pytestmark = pytest.mark.timeout(300)


def write_params(folder, datasets=DATASETS, methods=METHODS, kinds=("insert", "shuffle"), **report):
    data = {
        "root": "../..",
        "study": {"name": "made-up", "title": "A made-up study", "question": "Does the report hold?"},
        "datasets": {
            name: {
                "label": name.title(),
                "terms": "none & free",
                "source": {"files": []},
                "reader": {"name": "tabular"},
                "seeds": SEEDS,
                "is_simulated": name == "shop",
            }
            for name in datasets
        },
        "targets": list(datasets),
        "content_datasets": [],
        "features": {},
        "methods": {name: {"label": name.upper(), "method": file} for name, file in methods.items()},
        "content_methods": {},
        "transfer_methods": {},
        "transfer": {},
        "tuning": {},
        "cells": {dataset: {method: {} for method in methods} for dataset in datasets},
        "evaluation": {},
        "robustness": {"users": 40, "kinds": list(kinds), "budgets": [0.0, 0.2, 0.5]},
        "report": {"bootstrap_draws": 300, **report},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return load(folder / "params.yaml")


def draw_ranks(rng, users, strength):
    """Ranks from 1 to ITEMS, lower for a stronger method."""
    return 1 + np.minimum(rng.geometric(0.002 + 0.1 * strength, users), ITEMS - 1)


def ranks_table(dataset, method, users, seeds, strength):
    counts = np.random.default_rng(5).choice([0, 2, 5, 20, 80], users)
    histories = np.random.default_rng(6).choice([2, 7, 12, 60], users, p=[0.3, 0.3, 0.3, 0.1])
    parts = []
    for seed in seeds:
        rank = draw_ranks(np.random.default_rng([seed, len(method)]), users, strength)
        parts.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "method": method,
                    "seed": np.int32(seed),
                    "user_id": np.arange(1, users + 1, dtype=np.int32),
                    "rank": rank,
                    "rank_unmasked": rank + 1,
                    "n_candidates": ITEMS - histories,
                    "n_ties": 0,
                    "target_n_train": counts,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def robustness_table(ranks, params, strength):
    parts = []
    own = ranks[ranks["user_id"] <= params.robustness.users]
    for kind in params.robustness.kinds:
        for budget in params.robustness.budgets:
            part = own[["dataset", "method", "seed", "user_id"]].assign(
                condition=kind,
                surface="history",
                norm="share",
                budget=np.float32(budget),
                clean_rank=own["rank"],
                rank=(own["rank"] * (1 + budget * strength)).astype(int),
                size=np.float32(budget),
                truncated=False,
                rbo=np.float32(1 - budget),
            )
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def sizes_of(table):
    found = table[["condition", "surface", "budget"]].drop_duplicates().to_dict("records")
    return {f"{row['condition']} {row['surface']}@{row['budget']:g}": 0.1 for row in found}


def write_cell(folder, params, dataset, method, users, strength, is_fixed):
    seeds = SEEDS[:1] if is_fixed else SEEDS
    name = f"{dataset}--{method}"
    ranks = ranks_table(dataset, method, users, seeds, strength)
    schemas.write("ranks", ranks, folder / f"reports/ranks/{name}.parquet")
    table = robustness_table(ranks, params, strength)
    schemas.write("robustness", table, folder / f"reports/robustness/{name}.parquet")
    history = [
        {"epoch": e, "loss": 5 / e, "valid_ndcg@10": 0.1 - 0.1 / e, "seconds": 1.0} for e in range(1, 9)
    ]
    train = {
        "epochs": 0 if is_fixed else 8,
        "best_epoch": 0 if is_fixed else 8,
        "seconds": 8.0,
        "targets_per_second": 1e4,
        "parameters": 1000,
        "peak_memory_mb": 100.0,
        "history": [] if is_fixed else history,
    }
    evaluate = {"coverage@10": 0.5, "mean_popularity@10": 33.0, "tie_share": 0.0, "users": users}
    if not is_fixed:  # a method with vectors to measure
        vectors = {
            "spectrum": [1.0, 0.5, 0.5 * strength],
            **dict.fromkeys(results.COLLAPSE, 0.25),
            "effective_rank": 1.5,
            **{
                f"{measure}_by_popularity": [0.1, 0.2, 0.3, 0.4, 0.5]
                for measure in ("mean_count", "cosine", "cosine_centred", "norm")
            },
        }
        evaluate["degeneration"] = vectors
    key = {"dataset": dataset, "method": method}
    config = dataclasses.asdict(params.cell(dataset, method))
    environment = {"device": "a processor", "threads": 1}
    cells = {
        "train": {
            **key,
            "config": config,
            "seeds": dict.fromkeys(map(str, seeds), train),
            "environment": environment,
        },
        "evaluate": {**key, "seeds": dict.fromkeys(map(str, seeds), evaluate), "environment": environment},
        "robustness": {
            **key,
            "config": dataclasses.asdict(params.robustness),
            "seeds": {str(seed): {"seconds": 1.0, "sizes": sizes_of(table)} for seed in seeds},
            "noise_hashes": {"insert@0.2": "ab"},
        },
    }
    for stage, cell in cells.items():
        path = folder / f"reports/cells/{stage}/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cell))


def make_study(folder, datasets=DATASETS, methods=METHODS, strength=STRENGTH, **report):
    params = write_params(folder, datasets, methods, **report)  # `kinds` of corruption among them
    for dataset, users in datasets.items():
        for method in methods:
            fixed = method in ("popularity", "item-knn", "feature-knn")
            write_cell(folder, params, dataset, method, users, strength[method], fixed)
        path = folder / f"reports/cells/preprocess/{dataset}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        stats = {
            "users": users,
            "items": ITEMS,
            "interactions": 9 * users,
            "density": 0.045,
            "mean_length": 9.0,
            "text_coverage": 1.0,
            "image_coverage": 0.5,
            "price_coverage": 0.0,
        }
        path.write_text(json.dumps(stats))
    return params


@pytest.fixture(scope="module")
def stage():
    """stages/report.py as a module."""
    sys.path.insert(0, str(ROOT / "stages"))
    try:
        spec = importlib.util.spec_from_file_location("report_stage", ROOT / "stages/report.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "stages"))
    return module


CALIBRATION = [
    {"dataset": "toys", "method": "sasrec", "metric": "ndcg@10", "theirs": 9.0, "source": "a <book>"},
    {"dataset": "toys", "method": "sasrec", "metric": "hr@10", "theirs": 0.9, "minimum": 0.01, "source": "b"},
]


@pytest.fixture(scope="module")
def study(tmp_path_factory, stage):
    """A study with its report written."""
    folder = tmp_path_factory.mktemp("study")
    make_study(folder, calibration=CALIBRATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage.main()
    return folder


def table(study, name):
    return pd.read_csv(study / f"reports/tables/{name}.csv")


def test_metrics_equal_a_direct_computation(study):
    found = json.loads((study / "reports/metrics.json").read_text())
    assert list(found) == list(DATASETS)
    for dataset in DATASETS:
        assert list(found[dataset]) == list(METHODS)
        for method in METHODS:
            ranks = pd.read_parquet(study / f"reports/ranks/{dataset}--{method}.parquet").astype(
                {"rank": float}
            )
            gain = (1 / np.log2(1 + ranks["rank"])).where(ranks["rank"] <= 10, 0.0)
            row = found[dataset][method]
            assert row["ndcg@10"] == round(gain.groupby(ranks["seed"]).mean().mean(), 5)
            assert row["hr@5"] == pytest.approx((ranks["rank"] <= 5).mean(), abs=1e-5)
            assert row["hr@10-unmasked"] == pytest.approx((ranks["rank"] <= 9).mean(), abs=1e-5)
            assert row["coverage@10"] == 0.5
            tail = ranks[ranks["target_n_train"] < 10]
            assert row["tail_hr@10"] == pytest.approx((tail["rank"] <= 10).mean(), abs=1e-5)


def test_tables_sum_up(study):
    accuracy = table(study, "accuracy").set_index(["dataset", "method"])
    for name, names in [
        ("popularity", {"0-2", "3-9", "10-49", "50+"}),
        ("activity", {"0-4", "5-9", "10-19", "50+"}),
    ]:
        for key, bins in table(study, name).groupby(["dataset", "method"]):
            assert set(bins["bin"]) == names  # nobody has 20 to 49 items
            assert bins["users"].sum() == DATASETS[key[0]]
            weighted = (bins["ndcg@10"] * bins["users"]).sum() / bins["users"].sum()
            assert weighted == pytest.approx(accuracy.loc[key, "ndcg@10"])
            assert (bins["low"] <= bins["ndcg@10"]).all()
            assert (bins["ndcg@10"] <= bins["high"]).all()
    drawn = pd.read_csv(study / "reports/figures/activity.csv")
    counted = table(study, "activity")
    assert set(counted["users"] < study_figures.FEW) == {True, False}
    assert len(drawn) == (counted["users"] >= study_figures.FEW).sum()
    assert len(table(study, "tests")) == 2 * 3  # all pairs of three methods on two datasets
    tests = table(study, "tests").set_index(["dataset", "method_a", "method_b"])
    for (dataset, a, b), row in tests.iterrows():
        difference = accuracy.loc[(dataset, a), "ndcg@10"] - accuracy.loc[(dataset, b), "ndcg@10"]
        assert row["difference"] == pytest.approx(difference)
        assert row["p_holm"] >= row["p"]
    assert accuracy.loc[("toys", "popularity"), "seeds"] == 1
    assert np.isnan(accuracy.loc[("toys", "popularity"), "ndcg@10_sd"])
    assert accuracy.loc[("toys", "sasrec"), "seeds"] == 3


def test_robustness_by_hand(study):
    frame = table(study, "robustness").set_index(["dataset", "method", "condition", "budget"])
    ranks = pd.read_parquet(study / "reports/robustness/toys--sasrec.parquet").astype({"rank": float})
    own = ranks[(ranks["condition"] == "insert") & np.isclose(ranks["budget"], 0.5)].astype(
        {"clean_rank": float}
    )
    gain = [(1 / np.log2(1 + own[c])).where(own[c] <= 10, 0.0).mean() for c in ("rank", "clean_rank")]
    row = frame.loc[("toys", "sasrec", "insert", 0.5)]
    assert row["relative"] == pytest.approx(gain[0] / gain[1])
    assert row["low"] <= row["relative"] <= row["high"]
    assert row["rbo"] == pytest.approx(0.5)
    assert row["users"] == 40
    assert frame.loc[("toys", "sasrec", "insert", 0.0), "relative"] == 1
    metrics = json.loads((study / "reports/metrics.json").read_text())["toys"]["sasrec"]
    middle = frame.loc[("toys", "sasrec", "insert", 0.2), "relative"]
    kept = (middle + row["relative"]) / 2  # budget 0 is no part of it
    assert metrics["robustness_area-insert"] == pytest.approx(kept, abs=1e-5)


def test_collapse_is_told_of_methods_with_vectors(study):
    frame = table(study, "degeneration").set_index(["dataset", "method"])
    assert set(frame.index) == {(dataset, "sasrec") for dataset in DATASETS}
    row = frame.loc[("toys", "sasrec")]
    assert (row["dim"], row["effective_rank"], row["rank_share"]) == (3, 1.5, 0.5)
    accuracy = table(study, "accuracy").set_index(["dataset", "method"])
    assert row["ndcg@10"] == pytest.approx(accuracy.loc[("toys", "sasrec"), "ndcg@10"])
    spectra = pd.read_csv(study / "reports/figures/spectra.csv")
    assert list(spectra[spectra["dataset"] == "toys"]["sigma"])[:2] == [1.0, 0.5]


def test_a_study_without_vectors_has_no_word_of_collapse(tmp_path, stage, monkeypatch):
    make_study(tmp_path)
    for path in (tmp_path / "reports/cells/evaluate").glob("*--sasrec.json"):
        cell = json.loads(path.read_text())
        for seed in cell["seeds"].values():
            del seed["degeneration"]
        path.write_text(json.dumps(cell))
    monkeypatch.chdir(tmp_path)
    stage.main()
    assert not (tmp_path / "reports/figures/spectra.csv").exists()
    assert "collapsed" not in (tmp_path / "reports/index.html").read_text()


def add_records(folder):
    """Sampled protocols of every method, and sasrec's weights, which know the noise; only toys has any."""
    for path in (folder / "reports/cells/evaluate").glob("*.json"):
        cell = json.loads(path.read_text())
        strength = STRENGTH[cell["method"]]
        cell["sampled_hashes"] = dict.fromkeys(("63@0.75", "20@0"), cell["dataset"])
        for seed, record in cell["seeds"].items():
            value = {name: strength - 0.01 * int(seed) for name in results.SAMPLED}
            record["sampled"] = {"63@0.75": value, "20@0": dict.fromkeys(results.SAMPLED, 0.5 * strength)}
            if cell["method"] == "sasrec":
                is_toys = cell["dataset"] == "toys"
                record["noise"] = {
                    "noise_share": 0.1 if is_toys else 0.0,
                    "noisy_sequence_share": 0.4 if is_toys else 0.0,
                    "sequences": cell["seeds"][seed]["users"] - 5,
                    "auc": 0.7 + 0.01 * int(seed) if is_toys else None,
                    "auc_by_length": [0.6, 0.7, None],
                    "auc_by_popularity": [0.5, 0.6, 0.8],
                    "correlation_length": -0.1,
                    "correlation_length_clean": None,
                    "correlation_popularity": 0.25,
                    "correlation_popularity_clean": 0.125,
                    "mean_weight_clean": 0.9,
                    "mean_weight_noisy": 0.8 if is_toys else None,
                }
        path.write_text(json.dumps(cell))


GRID = (0.1, 0.5)
ATTACKED_USERS = 60
ATTACKED = {"sasrec": 4, "item-knn": 2}  # how far targets fall, a unit of budget


def add_attacks(folder):
    """Popularity has nothing to attack; item-knn loses less than sasrec."""
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    block = {"attack": {"name": "random"}, "budgets": list(GRID)}
    settings["robustness"] |= {
        "attack_users": ATTACKED_USERS,
        "pushed": 2,
        "missing": [0.5],
        "attacks": {
            "random": block,
            "pgd": {**block, "attack": {"name": "pgd"}},
            "push": {"attack": {"name": "pgd", "goal": "promote"}, "budgets": [0.5]},
        },
    }
    settings["report"]["versus"] = [["item-knn", "sasrec"], ["sasrec", "item-knn"], ["sasrec", "popularity"]]
    settings["report"]["claims"] = [
        {"text": "Counting adds to sequence", "pairs": [["popularity", "sasrec"]]},
        {"text": "Co-occurrence adds to counting", "pairs": [["item-knn", "popularity"]]},
    ]
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    path = folder / "reports/cells/evaluate/toys--sasrec.json"
    cell = json.loads(path.read_text())
    for seed in cell["seeds"].values():  # as a diffusion model records it
        steps = {"1": 0.1, "2": 0.2}
        seed["diffusion"] = {
            "alpha_bar": [0.9, 0.2],
            "passes": [0.1, 0.2],
            "overlap@10": 0.5,
            "reverse_steps": steps,
        }
    path.write_text(json.dumps(cell))
    config = dataclasses.asdict(load(folder / "params.yaml").robustness)
    for path in (folder / "reports/cells/robustness").glob("*.json"):
        cell = json.loads(path.read_text())
        cell["config"] = config
        place = folder / f"reports/robustness/{path.stem}.parquet"
        table = schemas.read("robustness", place)
        if cell["method"] in ATTACKED:
            table = pd.concat([table, attack_rows(folder, cell)], ignore_index=True)
            cell["flags"] = {seed: [] for seed in cell["seeds"]}
            if cell["method"] == "sasrec":
                flag = {"name": "zero gradient", "about": "items", "detail": "nothing moves"}
                cell["flags"]["0"] = cell["flags"]["2"] = [flag]
        for record in cell["seeds"].values():
            record["sizes"] = sizes_of(table)
        schemas.write("robustness", table, place)
        path.write_text(json.dumps(cell))


def attack_rows(folder, cell):
    ranks = schemas.read("ranks", folder / f"reports/ranks/{cell['dataset']}--{cell['method']}.parquet")
    own = ranks[ranks["user_id"] <= ATTACKED_USERS]
    parts = []

    def add(condition, surface, norm, budget, rows, clean, rank):
        columns = {"condition": condition, "surface": surface, "norm": norm, "budget": np.float32(budget)}
        reached = {"clean_rank": clean, "rank": rank, "size": np.float32(budget), "truncated": False}
        kept = rows[["dataset", "method", "seed", "user_id"]]
        parts.append(kept.assign(**columns, **reached, rbo=np.float32(0.5)))

    for budget in GRID:
        add("random", "items", "l2", budget, own, own["rank"], own["rank"])
        worse = (own["rank"] * (1 + ATTACKED[cell["method"]] * budget)).astype(int)
        add("pgd", "items", "l2", budget, own, own["rank"], worse)
    everyone = ranks[ranks["user_id"] <= 40]
    add("missing", "text", "share", 0.5, everyone, everyone["rank"], everyone["rank"] + 1)
    for place in (1, 2):  # a different number of users has met each item already
        new = own[own["user_id"] > 10 * place]
        pushed = np.where(new["user_id"] % 2 == 0, 10, np.where(new["user_id"] % 5 == 0, 900, 11))
        add(f"push-{place}", "items", "l2", 0.5, new, 40 + 10 * place, pushed)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory, stage):
    """A study whose methods were attacked, with its report written."""
    folder = tmp_path_factory.mktemp("attacked")
    make_study(folder, calibration=CALIBRATION)
    add_attacks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage.main()
    return folder


def test_what_is_left_under_attack(attacked):
    frame = table(attacked, "attacks").set_index(["dataset", "method", "condition", "budget"])
    ranks = schemas.read("ranks", attacked / "reports/ranks/toys--sasrec.parquet")
    own = ranks[ranks["user_id"] <= ATTACKED_USERS]["rank"]
    row = frame.loc[("toys", "sasrec", "pgd", 0.5)]
    assert row["clean_ndcg@10"] == pytest.approx(ndcg(own, 10).mean())
    assert row["ndcg@10"] == pytest.approx(ndcg((own * 3).astype(int), 10).mean())
    assert row["relative"] == pytest.approx(row["ndcg@10"] / row["clean_ndcg@10"])
    assert row["low"] < row["relative"] < row["high"]
    assert row["users"] == ATTACKED_USERS
    assert frame.loc[("toys", "sasrec", "missing", 0.5), "users"] == 40
    assert frame.loc[("toys", "item-knn", "random", 0.1), "relative"] == 1
    assert "popularity" not in frame.index.get_level_values("method")


def test_columns_of_attacks_stand_by_role_and_budget(attacked):
    lines = (attacked / "reports/tables/attacks.tex").read_text().splitlines()
    (header,) = [line for line in lines if line.startswith("Method & Users")]
    columns = [name.split() for name in header.removesuffix(r" \\").split(" & ")[3:]]
    roles = [role for role, _ in columns]
    assert list(dict.fromkeys(roles)) == ["random", "worst", "without"]
    assert roles == sorted(roles, key=["random", "worst", "without"].index)
    assert all(a[1] < b[1] for a, b in itertools.pairwise(columns) if a[0] == b[0])


def test_data_sets_tell_what_share_of_the_items_has_content(study):
    tex = (study / "reports/tables/datasets.tex").read_text()
    assert "Texts & Pictures & Prices" in tex


def test_long_names_widen_a_figure_instead_of_narrowing_its_panel():
    frame = pd.DataFrame({"dataset": "toys", "method": "a", "steps": [1, 2], "ndcg@10": [0.1, 0.2]})
    frame = frame.assign(low=frame["ndcg@10"], high=frame["ndcg@10"])
    widths = {}
    for label in ("SASRec (cross entropy)", "CDDRec with a reverse chain, steps weighted alike"):
        figure = plots.trend(
            frame,
            plots.looks({"a": label}, frozenset()),
            {"toys": "Toys"},
            x="steps",
            x_label="",
            doubles=True,
        )
        figure.draw_without_rendering()
        widths[label] = figure.axes[0].get_position().width * figure.get_figwidth()
    assert min(widths.values()) > 0.8 * max(widths.values())


def test_of_too_many_curves_the_highest_on_average_are_named():
    """Under an attack that leaves nobody anything, where a curve ends says nothing."""
    names = [f"m{index}" for index in range(14)]
    rows = [
        {"dataset": "toys", "method": name, "budget": budget, "relative": kept, "is_random": is_random}
        for index, name in enumerate(names)
        for is_random in (False, True)
        for budget, kept in ((0.05, index / 20), (0.2, 0.0))
    ]
    frame = pd.DataFrame(rows).assign(threat="items attacked", norm="l2")
    style = plots.looks({name: f"Method {name}" for name in names}, frozenset())
    (axis,) = plots.threat(frame, style, {"toys": "Toys"}).axes
    heights = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert sorted(heights, key=lambda label: -heights[label]) == [f"Method m{i}" for i in range(13, 5, -1)]
    named = [line for line in axis.lines if line.get_label() in heights]
    pale = [line for line in axis.lines if line.get_color() == plots.GREY]
    assert len(named) == 8
    assert len(pale) == 12  # six curves and their random directions
    assert "pale: 6 others" in axis.get_xlabel()


def test_corrupted_histories_are_told_as_without_attacks(attacked, study):
    for name in ("robustness", "tests", "accuracy"):
        pd.testing.assert_frame_equal(table(attacked, name), table(study, name))


def test_shares_kept_are_tested_in_declared_pairs(attacked):
    frame = table(attacked, "loss_tests")
    pairs = set(zip(frame["method_a"], frame["method_b"], strict=True))
    assert pairs == {("item-knn", "sasrec"), ("sasrec", "item-knn")}  # popularity was not attacked
    worst = frame[(frame["condition"] == "pgd") & (frame["budget"] == 0.5) & (frame["dataset"] == "toys")]
    one, other = worst.to_dict("records")
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["seeds"] == len(SEEDS)
    left = table(attacked, "attacks").set_index(["dataset", "method", "condition", "budget"])
    assert one["mean_a"] == pytest.approx(left["relative"].loc[("toys", "item-knn", "pgd", 0.5)])
    assert one["mean_b"] == pytest.approx(left["relative"].loc[("toys", "sasrec", "pgd", 0.5)])
    nothing = frame[frame["condition"] == "random"]
    assert (nothing["difference"] == 0).all()
    assert (nothing["verdict"] == "undecided").all()


def test_declared_pairs_are_a_family_of_their_own(attacked, study):
    frame = table(attacked, "differences")
    assert len(frame) == 3 * frame["dataset"].nunique()  # attacked or not
    one, other, third = frame[frame["dataset"] == "toys"].to_dict("records")
    means = table(attacked, "accuracy").set_index(["dataset", "method"])["ndcg@10"]
    knn, sasrec = means.loc[("toys", "item-knn")], means.loc[("toys", "sasrec")]
    assert one["gain"] == pytest.approx((knn - sasrec) / sasrec)
    assert other["gain"] == pytest.approx((sasrec - knn) / knn)
    assert one["low"] < one["gain"] < one["high"]
    assert one["low"] * sasrec == pytest.approx(-other["high"] * knn)
    all_pairs = table(attacked, "tests")
    all_pairs = all_pairs[(all_pairs["dataset"] == "toys") & (all_pairs["method_a"] == "popularity")]
    same = all_pairs[all_pairs["method_b"] == "sasrec"]
    assert len(same) == 1
    assert third["p_holm"] <= same["p_holm"].iloc[0]
    assert not (study / "reports/tables/differences.csv").exists()  # which declares none


def test_what_draws_and_chains_decide_is_shown_where_there_are_some(attacked, study):
    (row,) = table(attacked, "draws").to_dict("records")
    assert (row["dataset"], row["method"], row["steps"]) == ("toys", "sasrec", 2)
    for name in ("reverse-steps", "schedule"):
        assert (attacked / f"reports/figures/{name}.png").exists()
        assert not (study / f"reports/figures/{name}.png").exists()
    assert "What do random draws decide?" in (attacked / "reports/index.html").read_text()


@pytest.mark.parametrize("pairs", [[["sasrec", "sasrec"]], [["sasrec", "popularity"]] * 2])
def test_a_pair_is_of_two_methods_and_named_once(tmp_path, pairs):
    make_study(tmp_path)
    settings = yaml.safe_load((tmp_path / "params.yaml").read_text())
    settings["report"]["versus"] = pairs
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(BallastError, match=r"report\.versus"):
        load(tmp_path / "params.yaml")


def test_exposure_of_pushed_items(attacked):
    frame = table(attacked, "promotions")
    assert set(frame["condition"]) == {"push"}
    assert (frame["clean"] == 0).all()
    assert frame["attacked"].tolist() == pytest.approx([0.5] * len(frame))
    assert (frame["clean_place"] == 55).all()
    assert frame["attacked_place"].between(10, 11).all()  # a few stay far behind
    assert frame["users"].tolist() == pytest.approx([ATTACKED_USERS - 15] * len(frame))


def test_what_pushed_items_gain_is_tested(attacked):
    frame, gains = table(attacked, "promotion_tests"), table(attacked, "promotions").set_index("method")
    assert {"push"} == set(frame["condition"])
    for row in frame.to_dict("records"):
        for name, side in ((row["method_a"], "mean_a"), (row["method_b"], "mean_b")):
            own = gains.loc[[name]]
            own = own[own["budget"] == row["budget"]].iloc[0]
            assert row[side] == pytest.approx(own["attacked"] - own["clean"], abs=0.05)
    assert set(frame["verdict"]) == {"undecided"}  # all gain alike
    assert "Paired tests of what pushed items gain" in (attacked / "reports/index.html").read_text()


def test_gains_of_pushed_items_are_of_users_who_have_not_met_them():
    """Two items, of which the first user has met one."""
    rows = pd.DataFrame(
        [
            (1, 1, 0, 50, 3),
            (1, 2, 0, 50, 3),
            (2, 2, 0, 50, 11),
            (1, 1, 1, 5, 3),
            (1, 2, 1, 50, 3),
            (2, 2, 1, 50, 3),
        ],
        columns=["item", "user_id", "seed", "clean_rank", "rank"],
    )
    rows["condition"] = "push-" + rows["item"].astype(str)
    settings = AttackParams(attack={"name": "pgd", "goal": "promote"}, budgets=[0.1], surfaces=["items"])
    settings = RobustnessParams(attacks={"push": settings}, pushed=2)
    rows = rows.assign(surface="items", norm="l2", budget=0.1)
    (gained,) = threats._gained(rows, settings).items()
    assert gained[0] == ("push", "items", "l2", 0.1)
    assert gained[1].tolist() == [[1, 0.5], [0, 1]]


def test_warnings_stand_beside_the_verdict(attacked):
    frame = table(attacked, "flags")
    assert frame["seeds"].tolist() == [2, 2]
    assert set(frame["method"]) == {"sasrec"}
    page = (attacked / "reports/index.html").read_text()
    assert "Attacks and missing content" in page
    assert "nothing moves" in page
    assert "keeps the largest share" in page


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ((0.9, 0.3, 0.1), "at budget 0.2, B has the highest NDCG@10 left of 2 methods, 0.0300 of 0.1000"),
        (
            (0.9, 0.3, 0.1),
            "B keeps the largest share, 30 % (100 users; no pair tested); at more than that, nobody keeps",
        ),
        ((0.9, 0.8, 0.7), "at budget 0.5, B has the highest"),
        ((0.1, 0.0, 0.0), "none of 2 methods keeps 20 % of its NDCG@10, from budget 0.1 on."),
    ],
)
def test_the_answer_is_told_where_somebody_stands(kept, said):
    (sentence,) = told_of(kept)
    assert said in sentence
    assert "warn" not in sentence


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((1, 1), "set apart 0 of 2; with 1 seed no test of trained methods decides, 3 are needed."),
        ((0, 2), "set apart 0 of 2; with 2 seeds no test of trained methods decides, 3 are needed."),
        ((1, 3), "set apart 0 of 2."),
        ((0, 0), "set apart 0 of 2."),  # counts alone, which need none
    ],
)
def test_seeds_that_are_missing_are_told_as_the_reason(seeds, said):
    rows = pd.DataFrame({"method": ["a", "b"], "reference": "c", "gain": 0.1, "seeds": seeds})
    (sentence,) = answers._added(rows.assign(verdict="undecided"), {})
    assert sentence.endswith(said)


def test_a_board_names_whom_to_pick_for_a_threat():
    others = [("pgd-table", "a", 0.1), ("pgd-table", "b", 0.05)]
    pick, nobody = picked(
        (0.9, 0.3, 0.1), others=others, flags=[("b", "sign", "pgd on items, l2, row, rank at 0.2")]
    )
    assert (pick.threat, pick.tested) == ("items attacked, 0.2", "none")
    assert pick.first == answers.Place("B", "0.0300 of 0.1000 (checks warn)")
    assert pick.second == answers.Place("B", "30 %")
    assert nobody.threat == "items attacked as one table, 0.1"
    assert nobody.first == answers.Place("", "nobody keeps 20 %")


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("undecided", "undecided"), "(100 users; of 2 declared pairs a test sets none apart)"),
        (("undecided", "better"), "(100 users; of 2 declared pairs tests set apart 1: B keeps more than A)"),
        (("worse", "undecided"), "(100 users; of 2 declared pairs tests set apart 1: A keeps less than B)"),
    ],
)
def test_the_answer_quotes_the_tests_of_its_condition(verdicts, said):
    keys = {"dataset": "toys", "condition": "pgd", "surface": "items", "norm": "l2"}
    own = [
        {**keys, "budget": 0.2, "method_a": a, "method_b": b, "verdict": verdict}
        for (a, b), verdict in zip((("a", "b"), ("b", "a")), verdicts, strict=True)
    ]
    elsewhere = [
        {**own[0], **change, "verdict": "better"} for change in ({"budget": 0.5}, {"surface": "image"})
    ]
    (sentence,) = told_of((0.9, 0.3, 0.1), tests=pd.DataFrame([*own, *elsewhere]))
    assert said in sentence


def test_a_pair_is_decided_where_all_attacks_of_one_budget_agree():
    """Each method's figure is that under its own worst attack, which need not be that of the other."""
    keys = {"dataset": "toys", "surface": "items", "norm": "l2", "budget": 0.2}
    found = {
        ("a", "b"): {"pgd": "better", "fgm": "better", "pgd-table": "undecided"},
        ("a", "c"): {"pgd": "undecided", "fgm": "better", "pgd-table": "better"},
        ("b", "c"): {"pgd": "worse", "fgm": "better", "pgd-table": "worse"},
    }
    tests = pd.DataFrame(
        {**keys, "condition": condition, "method_a": a, "method_b": b, "verdict": verdict}
        for (a, b), said in found.items()
        for condition, verdict in said.items()
    )
    (sentence,) = told_of((0.9, 0.3, 0.1), tests=tests)
    assert "of 3 declared pairs tests set apart 1: A keeps more than B" in sentence


def test_a_test_is_flagged_where_the_checks_warn_of_its_attack():
    about = "pgd on items, l2, row, rank at 0.2"
    flags = pd.DataFrame([("toys", "b", "sign", about)], columns=["dataset", "method", "flag", "about"])
    keys = {"dataset": "toys", "norm": "l2", "method_a": "a", "method_b": "b"}
    tests = [("pgd", 0.2, "items"), ("fgm", 0.2, "items"), ("pgd", 0.5, "items"), ("pgd", 0.2, "image")]
    frame = pd.DataFrame([{**keys, "condition": c, "budget": b, "surface": where} for c, b, where in tests])
    # Who fails PGD fails in its ball, which FGM shares.
    assert threats.flagged(frame, flags, RobustnessParams(attacks=ATTACKS)) == ["b", "b", "", ""]


def test_the_answer_tells_of_pushed_items_and_of_fake_users():
    rows = pd.DataFrame(
        {"condition": "promote", "surface": "image", "budget": [0.1, 0.2, 0.2], "method": ["a", "a", "b"]}
        | {"clean": [0.0, 0.01, 0.0], "attacked": [0.9, 0.25, 0.5]}
    )
    labels, settings = {"a": "A", "b": "B"}, RobustnessParams(attacks=ATTACKS)
    rows = rows.assign(dataset="toys", norm="l2")
    at = {"dataset": "toys", "condition": "promote", "surface": "image", "norm": "l2", "budget": 0.2}
    tests = pd.DataFrame([{**at, "method_a": "b", "method_b": "a", "verdict": "more"}])
    for found, tested in [
        (tests, "of 1 declared pairs tests set apart 1: B lets it gain more than A"),
        (tests.assign(verdict="undecided"), "of 1 declared pairs a test sets none apart"),
        (tests.assign(budget=0.1), "no pair tested"),
    ]:
        assert [pick.evidence for pick in answers._pushed(rows, found, labels, settings)] == [
            "Pushed by its image at budget 0.2, an item enters the first 10 of 50.0 % of the users new to it "
            f"with B (0.0 % before), of 25.0 % with A (2 methods; {tested})."
        ]
    (nobody,) = answers._pushed(rows.assign(attacked=0.0), tests, labels, settings)
    assert nobody.evidence == "Pushed by its image at budget 0.2, an item enters nobody's first 10."
    assert nobody.first == nobody.second == answers.Place("", "nobody's lists")
    (pick,) = answers._pushed(rows, tests, labels, settings)
    assert (pick.threat, pick.tested) == ("its image, 0.2", "1 of 1 decided")
    assert (pick.first, pick.second) == (answers.Place("B", "50.0 %"), answers.Place("A", "25.0 %"))
    (lone,) = answers._pushed(rows[rows["method"] == "b"], tests, labels, settings)
    assert (lone.first, lone.second) == (answers.Place("B", "50.0 %"), answers.Place("", "no other attacked"))
    (pixels,) = answers._pushed(rows.assign(condition="pixels-strong"), tests, labels, settings)
    assert pixels.threat == "its pixels, 0.2"
    fakes = pd.DataFrame(
        {"condition": "random", "share": [0.0, 0.01, 0.05, 0.05], "method": ["a", "a", "a", "b"]}
        | {"dataset": "toys"}
        | {
            "exposure": [0.9, 0.9, 0.1, 0.2],
            "exposure_low": 0.05,
            "exposure_high": 0.3,
            "seeds": [3, 3, 1, 3],
        }
    )
    at = {"dataset": "toys", "condition": "random", "share": 0.05}
    tests = pd.DataFrame([{**at, "method_a": "a", "method_b": "b", "verdict": "less"}])
    (pick,) = answers._poisoned(fakes, tests, labels)
    assert (pick.threat, pick.tested) == ("5 % fake users, random", "1 of 1 decided")
    assert (pick.first, pick.second) == (answers.Place("B", "20.0 %"), answers.Place("A", "10.0 %"))
    said = pick.evidence
    assert said.startswith(
        "With 5 % fake users (random), a pushed item enters the first 10 of 20.0 % of real"
    )
    assert "with B (seeds 5.0 to 30.0), of 10.0 % of real users new to it with A; over seeds" in said
    assert said.endswith("over seeds, of 1 declared pairs tests set apart 1: A lets it gain less than B.")


def told_of(kept, flags=(), others=(), tests=None):
    """Sentences on PGD of item vectors, which leaves B the shares `kept` and A half of them."""
    return [pick.evidence for pick in picked(kept, flags, others, tests)]


def picked(kept, flags=(), others=(), tests=None):
    rows = [
        {"dataset": "toys", "method": method, "condition": condition, "surface": "items"}
        | {"norm": "linf" if condition in ("fgsm", "pgd-linf") else "l2"}
        | {"budget": budget, "relative": share * factor, "ndcg@10": 0.1 * share * factor}
        | {"clean_ndcg@10": 0.1, "users": 100, "size": budget}
        for condition, method, factor in (("pgd", "a", 0.5), ("pgd", "b", 1.0), *others)
        for budget, share in zip((0.1, 0.2, 0.5), kept, strict=True)
    ]
    names = ["dataset", "method", "flag", "about"]
    said = pd.DataFrame([("toys", *flag) for flag in flags], columns=names)
    settings = RobustnessParams(attacks=ATTACKS)
    nothing = pd.DataFrame(columns=["dataset"])
    found = SimpleNamespace(
        attacks=threats.named(pd.DataFrame(rows), settings),
        flags=said,
        loss_tests=nothing if tests is None else tests,
        kept_tests=nothing,
    )
    return answers._threatened(found, settings, "toys", {"a": "A", "b": "B"})


ATTACKS = {
    name: AttackParams(attack={"name": name.partition("-")[0], **more}, budgets=[0.1], surfaces=["items"])
    for name, more in {
        "pgd": {},
        "fgm": {},
        "fgsm": {},  # whose norm is linf of itself
        "random": {},
        "pgd-table": {"scope": "table"},
        "pgd-linf": {"norm": "linf"},
        "pixels-strong": {},
    }.items()
}


def test_two_norms_are_two_threats_and_a_whole_table_a_third():
    others = [(name, method, 1) for name in ("fgsm", "pgd-linf", "pgd-table") for method in ("a", "b")]
    assert [sentence.partition(" at ")[0] for sentence in told_of((0.9, 0.8, 0.7), others=others)] == [
        "With items attacked",
        "With items attacked (linf)",
        "With items attacked as one table",
    ]


def test_threats_do_not_depend_on_what_params_call_an_attack():
    settings = RobustnessParams(attacks=ATTACKS)
    assert threats.threat("pixels-strong", "image", "linf", settings) == "pixels attacked"
    assert threats.attack_name("pixels-strong", settings) == "pixels"
    assert threats.threat("missing", "image", "share", settings) == "image missing"
    assert threats.threat("replace-last", "history", "share", settings) == "history: replace, last"


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([("fgm", "b", 0.4), ("pgd-table", "a", 0)], "A has the highest NDCG@10 left of 2 methods, 0.0350"),
        # A direction at random that does more than a gradient is what counts.
        ([("random", "b", 0.4)], "A has the highest NDCG@10 left of 2 methods, 0.0350"),
        ([("random", "b", 0.6)], "B has the highest NDCG@10 left of 2 methods, 0.0420"),
    ],
)
def test_the_answer_is_about_the_attack_that_leaves_least(others, said):
    (sentence,) = told_of((0.9, 0.8, 0.7), others=others)
    assert said in sentence


def test_what_each_method_keeps_of_each_threat(attacked):
    frame = table(attacked, "withstands").set_index(["dataset", "method", "threat"])["area"]
    left = (
        table(attacked, "attacks")
        .set_index(["dataset", "method", "condition", "budget"])["relative"]
        .sort_index()
    )
    budgets = list(left.loc[("toys", "sasrec", "pgd")].index)
    least = [min(left.loc[("toys", "sasrec", c, b)] for c in ("pgd", "random")) for b in budgets]
    assert frame.loc[("toys", "sasrec", "items attacked")] == pytest.approx(np.mean(least))
    assert frame.loc[("toys", "sasrec", "text missing")] == pytest.approx(
        left.loc[("toys", "sasrec", "missing", 0.5)]
    )
    histories = table(attacked, "robustness")
    own = histories[(histories["dataset"] == "toys") & (histories["method"] == "sasrec")]
    own = own[(own["condition"] == "insert") & (own["budget"] > 0)]
    assert frame.loc[("toys", "sasrec", "history: insert")] == pytest.approx(own["relative"].mean())
    lists = table(attacked, "overlap").set_index(["dataset", "method", "threat"])["rbo"]
    assert lists.loc[("toys", "sasrec", "history: insert")] == pytest.approx(own["rbo"].mean())
    tex = (attacked / "reports/tables/withstands.tex").read_text()
    assert "POPULARITY" not in tex  # which reads no history, and has nothing else to attack


def test_what_is_kept_of_histories_and_content_is_tested(attacked, study):
    frame = table(attacked, "kept_tests")
    frame = frame[frame["dataset"] == "toys"]
    assert set(frame["condition"]) == {"insert", "shuffle", "missing"}
    pairs = set(zip(frame["method_a"], frame["method_b"], strict=True))
    assert pairs == {("item-knn", "sasrec"), ("sasrec", "item-knn")}  # popularity reads no history
    histories = (
        table(attacked, "robustness").set_index(["dataset", "method", "condition", "budget"]).sort_index()
    )
    row = frame[(frame["condition"] == "shuffle") & (frame["method_a"] == "sasrec")].iloc[-1]
    for name, side in (("sasrec", "mean_a"), ("item-knn", "mean_b")):
        kept = histories["relative"].loc[("toys", name, "shuffle", round(row["budget"], 6))]
        assert row[side] == pytest.approx(kept)
    (row,) = frame[(frame["condition"] == "missing") & (frame["method_a"] == "sasrec")].to_dict("records")
    left = table(attacked, "attacks").set_index(["dataset", "method", "condition"]).sort_index()["relative"]
    assert row["mean_a"] == pytest.approx(left.loc[("toys", "sasrec", "missing")])
    assert not (study / "reports/tables/kept_tests.csv").exists()  # which declares no pair


def test_a_surface_without_content_is_no_threat():
    """Items without prices lose none: nobody withstands that."""
    rows = pd.DataFrame(
        [
            {"surface": surface, "size": size, "seed": 0, "user_id": 1, "rank": 1, "clean_rank": 1}
            | {"dataset": "toys", "method": "a", "condition": "missing", "norm": "share", "budget": 0.5}
            for surface, size in (("price", 0.0), ("text", 0.5))
        ]
    )
    cell = evidence.Cell("toys", "a", rows, rows, {}, {}, {})
    found = threats.tables([cell], RobustnessParams(attacks=ATTACKS))["missing"]["a"]
    assert set(found["surface"]) == {"text"}


@pytest.mark.parametrize(
    ("method", "about", "is_said"),
    [
        ("b", "pgd on items, l2, row, rank at 0.5", True),
        ("b", "pgd on items, l2, row, rank at 0.1", False),  # told at another budget
        ("b", "pgd on items, l2, row, rank, promoting 7 at 0.5", False),
        ("b", "pgd on image, l2, row, rank at 0.5", False),
        ("b", "pgd on items, l2, table, rank at 0.5", False),
        ("b", "pgd on items, linf, row, rank at 0.5", False),
        ("b", "items, l2, row", True),  # its gradient
        ("b", "NextItem", True),  # its scores
        ("a", "pgd on items, l2, row, rank at 0.5", False),  # not the method that is named
    ],
)
def test_a_warning_is_said_where_it_bears(method, about, is_said):
    (sentence,) = told_of((0.9, 0.8, 0.7), flags=[(method, "more steps still gain", about)])
    assert ("the checks warn about this attack on B" in sentence) == is_said


def test_rare_targets_are_those_of_the_whole(tmp_path):
    """A sample's counts would make other users rare: they are counted in what nothing was done to."""
    make_study(tmp_path)
    params = load(tmp_path / "params.yaml")
    whole, other = list(params.datasets)[:2]
    sample = dataclasses.replace(params.datasets[whole], label="Sample")
    apart = dataclasses.replace(params.datasets[other], reader={"name": "other"})
    params = dataclasses.replace(params, datasets={**params.datasets, other: apart, "sample": sample})

    def ranks(counts, users=(1, 2)):
        return pd.DataFrame({"user_id": [*users] * 2, "target_n_train": [*counts] * 2, "seed": [0, 0, 1, 1]})

    cells = {
        (whole, "sasrec"): ranks([9, 3]),
        ("sample", "sasrec"): ranks([1, 0]),
        (other, "sasrec"): ranks([5, 6]),
    }
    cells = {key: evidence.Cell(*key, frame, frame, {}, {}, {}) for key, frame in cells.items()}
    found = variants.popularity_of_base(cells, params)
    assert found["sample", "sasrec"].ranks["target_n_train"].tolist() == [9, 3, 9, 3]
    assert found[other, "sasrec"].ranks["target_n_train"].tolist() == [5, 6, 5, 6]
    cells["sample", "sasrec"] = dataclasses.replace(cells["sample", "sasrec"], ranks=ranks([1, 0], (1, 7)))
    found = variants.popularity_of_base(cells, params)
    assert found["sample", "sasrec"].ranks["target_n_train"].tolist() == [1, 0, 1, 0]  # other users


def test_what_keeps_nothing_has_no_area():
    """One budget, or several, at which nothing is left: the untested way there is not credited."""
    rows = [
        {"dataset": "toys", "method": "a", "condition": c, "budget": b, "relative": float(b == 0), "users": 5}
        for c, budgets in (("one", (0.0, 1.0)), ("two", (0.0, 0.2, 0.5)))
        for b in budgets
    ]
    assert (threats.area(pd.DataFrame(rows), ["condition"])["area"] == 0).all()


def test_attacks_have_their_figures_and_metrics(attacked, study):
    names = ["threat-items-attacked", "frontier-items-attacked", "threat-text-missing", "frontier-history"]
    names += ["degeneration-robustness"]
    frame = pd.read_csv(attacked / "reports/figures/degeneration-robustness.csv")
    assert (frame["users"] == ATTACKED_USERS).all()
    for name in names:
        assert (attacked / f"reports/figures/{name}.png").stat().st_size > 5000
        assert not (study / f"reports/figures/{name}.png").exists()
    frame = pd.read_csv(attacked / "reports/figures/frontier-items-attacked.csv")
    for _, rows in frame.groupby("dataset"):
        best = rows[rows["is_best"]].sort_values("ndcg@10")
        assert len(best)
        assert best["area"].is_monotonic_decreasing
    found = json.loads((attacked / "reports/metrics.json").read_text())["toys"]
    kept = table(attacked, "attacks").set_index(["dataset", "method", "condition"])["relative"]
    small, large = kept.loc[("toys", "sasrec", "pgd")]
    wanted = (small + large) / 2
    assert found["sasrec"]["robustness_area-pgd-items"] == pytest.approx(wanted, abs=1e-5)
    assert "robustness_area-pgd-items" not in found["popularity"]


def test_methods_attacked_on_other_users_are_refused(attacked, stage, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    shutil.copytree(attacked, folder)
    monkeypatch.chdir(folder)
    path = folder / "reports/robustness/shop--item-knn.parquet"
    frame = schemas.read("robustness", path)
    is_other = (frame["surface"] == "items") & (frame["user_id"] == 7)
    schemas.write("robustness", frame.assign(user_id=frame["user_id"].mask(is_other, 88)), path)
    with pytest.raises(
        BallastError, match=r"--(item-knn|sasrec): the robustness table of seed 0 is not about"
    ):
        stage.main()


@pytest.fixture(scope="module")
def richer(tmp_path_factory, stage):
    """A study whose cells know of sampled protocols and of noise, with its report written."""
    folder = tmp_path_factory.mktemp("richer")
    make_study(folder)
    add_records(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage.main()
    return folder


def test_sampled_protocols_are_told_apart(richer):
    frame = table(richer, "sampled").set_index(["dataset", "method", "protocol"])
    assert len(frame) == 2 * 3 * 2
    assert frame.loc[("toys", "sasrec", "63@0.75"), "auc"] == pytest.approx(0.89)
    assert frame.loc[("toys", "sasrec", "20@0"), "ndcg@5"] == pytest.approx(0.45)
    page = (richer / "reports/index.html").read_text()
    assert "Toys · 120 users, 3 seeds · 63 negatives drawn by popularity to the 0.75" in page
    assert "20 negatives drawn uniformly" in page


def test_what_weights_know_of_noise(richer):
    frame = table(richer, "noise").set_index(["dataset", "method"])
    assert list(frame.index) == [("toys", "sasrec"), ("shop", "sasrec")]
    row = frame.loc[("toys", "sasrec")]
    assert (row["users"], row["seeds"], row["noise_share"]) == (115, 3, 0.1)
    assert row["auc"] == pytest.approx(0.71)
    assert row["auc_sd"] == pytest.approx(0.01)
    assert (row["auc_by_length_2"], row["auc_by_popularity_3"]) == (0.7, 0.8)
    assert np.isnan(row["auc_by_length_3"])
    assert np.isnan(frame.loc[("shop", "sasrec"), "auc"])  # nothing was noisy there
    figure = pd.read_csv(richer / "reports/figures/noise.csv")
    assert figure[["dataset", "noisy_dataset"]].to_numpy().tolist() == [["toys", "toys"], ["toys", "shop"]]
    assert "(n = 115 users)" in (richer / "reports/index.html").read_text()
    thirds = pd.read_csv(richer / "reports/figures/noise-popularity.csv").set_index("dataset").loc["toys"]
    assert thirds[["third", "auc"]].to_numpy().tolist() == [[0, 0.5], [1, 0.6], [2, 0.8]]
    thirds = pd.read_csv(richer / "reports/figures/noise-length.csv").set_index("dataset").loc["toys"]
    assert thirds["third"].tolist() == [0, 1]


def test_noise_models_are_judged_where_the_truth_is_unknown(richer, stage, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    shutil.copytree(richer, folder)
    for path in (folder / "reports/cells/evaluate").glob("*--sasrec.json"):
        cell = json.loads(path.read_text())
        for record in cell["seeds"].values():
            record["noise"] = {"sequences": 115, "auc_replaced": 0.625}
        path.write_text(json.dumps(cell))
    monkeypatch.chdir(folder)
    stage.main()
    frame = table(folder, "noise")
    assert frame["auc_replaced"].tolist() == [0.625] * len(frame)
    assert frame["auc"].isna().all()
    assert not (folder / "reports/figures/noise.png").exists()
    page = (folder / "reports/index.html").read_text()
    assert "AUC, items replaced" in page
    assert "Noisy sequences" not in page


def test_a_study_without_such_records_has_no_word_of_them(study, richer):
    found = [{str(path) for path in contents(folder / "reports")} for folder in (study, richer)]
    names = [f"tables/{name}.{kind}" for name in ("sampled", "noise") for kind in ("csv", "tex")]
    figures = ("noise", "noise-length", "noise-popularity")
    names += [f"figures/{name}.{kind}" for name in figures for kind in ("csv", "pdf", "png")]
    assert found[1] - found[0] == set(names)
    pages = [(folder / "reports/index.html").read_text() for folder in (study, richer)]
    for words in ("Against sampled negatives", "Do the weights know the noise?"):
        assert [words in page for page in pages] == [False, True]


ALTERED = {
    "toys": {},
    "toys-half": {"sample": {"share": 0.5}},
    "toys-noisy": {"noise": {"share": 0.2}},
    "toys-control": {"poison": {"attack": {"name": "random"}, "share": 0.0}},
    "toys-fake": {"poison": {"attack": {"name": "injection"}, "share": 0.1}},
    "toys-others": {
        "poison": {"attack": {"name": "random"}, "share": 0.1, "seed": 7}
    },  # no control of its own
}
EXPOSED = {"toys-control": 0.01, "toys-fake": 0.2, "toys-others": 0.3}


@pytest.fixture(scope="module")
def altered(tmp_path_factory, stage):
    """One dataset, whole and with its training cut, spoilt and poisoned, with its report written."""
    folder = tmp_path_factory.mktemp("altered")
    kinds = ("insert", "delete-first", "delete-last")
    params = make_study(folder, dict.fromkeys(ALTERED, 120), kinds=kinds)
    write_cell(folder, params, "toys-fake", "sasrec", 120, 0.3, False)  # what it loses with fake users
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    for name, block in ALTERED.items():
        settings["datasets"][name] |= {**block, "is_simulated": False}
        path = folder / f"reports/cells/preprocess/{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "fake_users": 12, "pushed_items": [3]}))
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for path in (folder / "reports/cells/evaluate").glob("*.json"):
        cell = json.loads(path.read_text())
        for seed, record in cell["seeds"].items():
            if cell["dataset"] in EXPOSED:
                record["pushed_exposure@10"] = EXPOSED[cell["dataset"]] + 0.01 * int(seed)
        path.write_text(json.dumps(cell))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage.main()
    return folder


def test_fake_users_are_set_against_their_control(altered):
    frame = table(altered, "poisoning").set_index(["variant", "method"])
    assert list(frame.index) == [("toys-fake", name) for name in METHODS]  # the others have no control
    row = frame.loc[("toys-fake", "sasrec")]
    assert (row["dataset"], row["condition"], row["share"], row["fake_users"]) == (
        "toys",
        "injection",
        0.1,
        12,
    )
    assert [row["clean_exposure"], row["exposure"]] == pytest.approx([0.02, 0.21])
    assert [row["exposure_low"], row["exposure_high"]] == pytest.approx([0.2, 0.22])
    means = [ndcg_of(altered, name) for name in ("toys-control", "toys-fake")]
    assert [row["control"], row["ndcg@10"]] == pytest.approx(means)
    assert row["change"] == pytest.approx(means[1] / means[0] - 1)
    assert row["low"] < row["change"] < row["high"] < 0
    unmoved = frame.loc[("toys-fake", "item-knn")]
    assert (unmoved["change"], unmoved["low"], unmoved["high"]) == (0, 0, 0)
    curve = pd.read_csv(altered / "reports/figures/poisoning-injection.csv").query("method == 'sasrec'")
    assert curve["share"].tolist() == [0.0, 0.1]
    assert curve["exposure"].tolist() == pytest.approx([0.02, 0.21])
    page = (altered / "reports/index.html").read_text()
    assert "Fake users in training" in page
    assert page.count("With 10 % fake users (injection)") == 1


def test_what_fake_users_gain_is_tested_over_seeds():
    """Gains are above the control's, seed by seed; one family of all attacks and shares."""
    exposed = {
        ("control", "a"): [0.01, 0.02, 0.03], ("half", "a"): [0.21, 0.23, 0.22],
        ("all", "a"): [0.3, 0.4, 0.5],
        ("control", "b"): [0.0], ("half", "b"): [0.1], ("all", "b"): [0.1],
        ("control", "c"): [0.0, 0.0, 0.0], ("half", "c"): [0.1, 0.1, 0.1], ("all", "c"): [0.1, 0.4, 0.2],
    }  # fmt: skip
    poison = {"control": 0.0, "half": 0.05, "all": 0.1}
    blocks = {
        name: DatasetParams(
            label=name,
            terms="",
            source=SourceParams(),
            reader={"name": "amazon"},
            seeds=[0, 1, 2],
            poison=PoisonParams(attack={"name": "random"}, share=share),
        )
        for name, share in poison.items()
    }
    pairs = [("a", "b"), ("c", "a"), ("c", "b")]
    params = SimpleNamespace(datasets=blocks, report=SimpleNamespace(declared_pairs=lambda: pairs))
    cells = {
        key: SimpleNamespace(
            evaluate={"seeds": {str(s): {"pushed_exposure@10": v} for s, v in enumerate(values)}}
        )
        for key, values in exposed.items()
    }
    found = SimpleNamespace(params=params, cells=cells, deterministic=frozenset("b"))
    rows = [
        {"dataset": "control", "variant": name, "method": method, "condition": "random", "users": 100}
        | {"share": share}
        for name, share in poison.items()
        for method in "abc"
    ]
    tests = poisoning.tests(found, pd.DataFrame(rows)).set_index(["share", "method_a", "method_b"])
    assert len(tests) == 6
    first = tests.loc[(0.05, "a", "b")]
    assert (first["mean_a"], first["mean_b"]) == pytest.approx((0.2, 0.1))
    gained = np.array([0.20, 0.21, 0.19])
    p = stats.ttest_1samp(gained, 0.1).pvalue
    assert first["p"] == pytest.approx(p)
    same = tests.loc[(0.05, "c", "b")]
    assert (same["difference"], same["p"], same["verdict"]) == (0, 1, "undecided")
    assert first["p_holm"] == pytest.approx(min(1, 6 * p))  # the smallest of the six
    assert first["verdict"] == "more"
    assert tests.loc[(0.05, "c", "a"), "verdict"] == "less"
    assert (tests.loc[0.1, "verdict"] == "undecided").all()


def test_changes_at_the_ends_of_a_history_share_a_figure(altered):
    frame = pd.read_csv(altered / "reports/figures/robustness-delete-places.csv")
    assert set(map(tuple, frame[["condition", "place", "budget"]].to_numpy())) == {
        ("delete-first", 0, 0.2), ("delete-last", 2, 0.2)
    }  # fmt: skip
    assert (altered / "reports/figures/robustness-insert.csv").exists()
    assert not (altered / "reports/figures/robustness-delete-first.csv").exists()


def ndcg_of(folder, dataset):
    ranks = schemas.read("ranks", folder / f"reports/ranks/{dataset}--sasrec.parquet")
    return ndcg(ranks["rank"].to_numpy(), 10).mean()


def test_accuracy_is_drawn_by_what_was_done_to_training(altered):
    cut = pd.read_csv(altered / "reports/figures/by-sample.csv")
    spoilt = pd.read_csv(altered / "reports/figures/by-noise.csv")
    assert set(map(tuple, cut[["variant", "dataset", "share"]].to_numpy())) == {
        ("toys", "toys", 1.0), ("toys-half", "toys", 0.5)
    }  # fmt: skip
    assert set(map(tuple, spoilt[["variant", "share"]].to_numpy())) == {("toys", 0.0), ("toys-noisy", 0.2)}


def test_verdicts_follow_the_planted_order(study):
    claims = table(study, "claims").set_index(["dataset", "text"])["verdict"]
    assert claims["shop", "Sequence beats co-occurrence beats popularity on Shop"] == "holds"
    assert claims["toys", "SASREC ranks better than POPULARITY on Toys"] == "holds"
    page = (study / "reports/index.html").read_text()
    assert "SASREC has the highest NDCG@10" in page
    assert "better than all 2 other methods" in page


def test_claims_rest_on_the_declared_pairs_where_there_are_such(attacked):
    """Among all pairs both are undecided; the declared one alone is decided in its smaller family."""
    params = load(attacked / "params.yaml")
    names = ["popularity", "item-knn", "sasrec"]
    pairs = table(attacked, "tests").assign(p_holm=0.2, verdict="undecided")
    differences = table(attacked, "differences").assign(p_holm=0.03)
    accuracy = pd.DataFrame({"dataset": "toys", "method": names})
    results = SimpleNamespace(accuracy=accuracy, pairs=pairs, differences=differences)
    found = {claim.text: claim for claim in default_claims(results, params)}
    turned, other = (
        found["Counting adds to sequence on Toys"],
        found["Co-occurrence adds to counting on Toys"],
    )
    assert (turned.verdict, other.verdict) == ("fails", "undecided")
    assert "adjusted p 0.030," in turned.evidence
    assert "adjusted p 0.200," in other.evidence


def test_calibration_passes_and_fails(study):
    frame = table(study, "calibration").set_index("metric")
    assert frame["verdict"].to_dict() == {"ndcg@10": "fail", "hr@10": "pass"}
    ours = table(study, "accuracy").set_index(["dataset", "method"]).loc[("toys", "sasrec"), "ndcg@10"]
    assert frame.loc["ndcg@10", "ratio"] == pytest.approx(ours / 9)


def test_page_loads_nothing_and_escapes(study):
    page = (study / "reports/index.html").read_text()
    assert not re.search(r"<(script|iframe|object|embed|img|image|audio|video)\b", page)
    for attribute in re.findall(r"\b(?:src|srcset|data|action)=", page):
        pytest.fail(f"the page loads something: {attribute}")
    assert not re.findall(r"url\((?!#)|@import", page)
    loaded = re.findall(r"<link\b[^>]*href=\"([^\"]*)\"", page)
    assert loaded == ["data:,"]  # an empty icon, so that browsers do not ask for one
    assert "a &lt;book&gt;" in page
    assert "none &amp; free" in page
    assert len(page) < 1_000_000


def test_page_links_files_that_exist(study):
    page = (study / "reports/index.html").read_text()
    links = {link for link in re.findall(r'href="([^"#:]+)"', page) if not link.startswith("../")}
    assert any(link.startswith("tables/") for link in links)
    assert [link for link in links if not (study / "reports" / link).exists()] == []
    stages = set(re.findall(r'href="\.\./\.\./\.\./(stages/\w+\.py)"', page))
    assert "stages/report.py" in stages


def test_simulated_data_are_marked(study):
    page = (study / "reports/index.html").read_text()
    assert 'Shop <span class="mark">SIMULATED</span>' in page
    assert "SIMULATED: Shop (n = 90 users)" in page  # in the figures themselves
    assert "SIMULATED: Toys" not in page
    assert "Shop · SIMULATED · 40 users, 3 seeds" in page  # robustness is about its own sample


def test_ids_on_the_page_are_unique(study):
    ids = re.findall(r'\bid="([^"]+)"', (study / "reports/index.html").read_text())
    assert len(ids) == len(set(ids))


def test_latex_is_balanced(study):
    files = list((study / "reports/tables").glob("*.tex"))
    assert len(files) == len(list((study / "reports/tables").glob("*.csv"))) == 14
    for path in files:
        text = path.read_text()
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        assert re.search(r"(?<!\\)%(?! needs)", text) is None
        width = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {width - 1}


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_second_run_gives_the_same_bytes(study, stage, monkeypatch):
    before = contents(study / "reports")
    monkeypatch.chdir(study)
    (study / "reports/figures/old.png").write_text("from an earlier study")
    left_over = study / "reports/ranks/shop--old.parquet"
    left_over.write_text("of a method that params.yaml no longer has")
    stage.main()
    left_over.unlink()
    after = contents(study / "reports")
    assert list(after) == list(before)
    assert [str(path) for path in after if after[path] != before[path]] == []
    assert (
        sum(len(data) for path, data in after.items() if path.parts[0] in ("figures", "index.html"))
        < 3_000_000
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study without a report yet."""
    folder = tmp_path_factory.mktemp("whole")
    make_study(folder)
    return folder


@pytest.fixture
def broken(whole, tmp_path, monkeypatch):
    """A copy of it, to be spoilt."""
    folder = tmp_path / "study"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    return folder


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def drop_seed(folder):
    path = folder / "reports/ranks/shop--sasrec.parquet"
    frame = schemas.read("ranks", path)
    schemas.write("ranks", frame[frame["seed"] != 1], path)


def drop_user(folder):
    path = folder / "reports/ranks/shop--item-knn.parquet"
    frame = schemas.read("ranks", path)
    schemas.write("ranks", frame[frame["user_id"] != 7], path)


def copy_ranks(folder):
    path = folder / "reports/ranks"
    (path / "shop--sasrec.parquet").write_bytes((path / "toys--sasrec.parquet").read_bytes())


def drop_condition(folder):
    path = folder / "reports/robustness/shop--sasrec.parquet"
    frame = schemas.read("robustness", path)
    schemas.write("robustness", frame[frame["condition"] != "shuffle"], path)


def spoil(stage, edit):
    return lambda folder: change(folder / f"reports/cells/{stage}/shop--sasrec.json", edit)


def rehash(cell):
    cell["sampled_hashes"]["63@0.75"] = "other"


CASES = {
    "missing cell": (
        lambda folder: (folder / "reports/cells/train/shop--sasrec.json").unlink(),
        "shop--sasrec.*missing",
    ),
    "missing ranks": (
        lambda folder: (folder / "reports/ranks/shop--sasrec.parquet").unlink(),
        "shop--sasrec.*missing",
    ),
    "missing statistics": (
        lambda folder: (folder / "reports/cells/preprocess/shop.json").unlink(),
        "shop.*missing",
    ),
    "torn cell": (
        lambda folder: (folder / "reports/cells/evaluate/shop--sasrec.json").write_text('{"seeds": '),
        "shop--sasrec.*not valid JSON",
    ),
    "stale training": (
        spoil("train", lambda cell: cell["config"]["training"].update(learning_rate=0.5)),
        "shop--sasrec: stale.*training.learning_rate",
    ),
    "stale robustness": (
        spoil("robustness", lambda cell: cell["config"].update(users=7)),
        "shop--sasrec: stale.*users",
    ),
    "no config": (spoil("train", lambda cell: cell.pop("config")), "shop--sasrec: stale"),
    "not a number": (
        spoil("train", lambda cell: cell["seeds"]["2"]["history"][3].update(loss=float("nan"))),
        r"shop--sasrec: seeds.2.history\[3\].loss .* not finite",
    ),
    "infinite coverage": (
        spoil("evaluate", lambda cell: cell["seeds"]["1"].update({"coverage@10": float("inf")})),
        "shop--sasrec: seeds.1.coverage@10 .* not finite",
    ),
    "seed dropped from ranks": (drop_seed, "shop--sasrec: its ranks has the seeds 0, 2, .* asks for 0, 1, 2"),
    "seed dropped from cell": (
        spoil("train", lambda cell: cell["seeds"].pop("1")),
        "shop--sasrec: its train cell has the seeds 0, 2",
    ),
    "user dropped": (drop_user, "shop--item-knn: the ranks of seed 0 is not about the same users"),
    "another dataset's ranks": (copy_ranks, "shop--sasrec: its evaluate table has dataset"),
    "condition dropped": (drop_condition, "shop--sasrec: its robustness table has the conditions"),
    "other candidates": (
        lambda folder: (add_records(folder), spoil("evaluate", rehash)(folder)),
        "shop--sasrec: its sampled candidates 63@0.75 are not those that shop--popularity met",
    ),
    "other noise": (
        spoil("robustness", lambda cell: cell.update(noise_hashes={"insert@0.2": "cd"})),
        "shop--sasrec: its corrupted histories",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_report_refuses(case, broken, stage):
    edit, message = CASES[case]
    edit(broken)
    with pytest.raises(BallastError, match=message) as caught:
        stage.main()
    assert "\n" not in str(caught.value)
    assert not (broken / "reports/metrics.json").exists()
    assert not (broken / "reports/tables").exists()


def test_training_method_with_one_seed_is_refused(broken, stage):
    """Only methods without training steps may have fewer seeds."""
    params = load(broken / "params.yaml")
    write_cell(broken, params, "shop", "sasrec", DATASETS["shop"], 0.9, is_fixed=True)
    with pytest.raises(BallastError, match="shop--sasrec: its train cell has the seeds 0, "):
        stage.main()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**CALIBRATION[0], "method": "bert"}, "toys x bert is not a cell"),
        ({**CALIBRATION[0], "metric": "auc"}, "unknown metric 'auc'"),
        ({**CALIBRATION[0], "their": 1}, r"calibration\[0\].their: this key is unknown"),
        ({"dataset": "toys"}, r"calibration\[0\].method: this key is missing"),
        ({**CALIBRATION[0], "theirs": 0}, "expected a number above 0"),
    ],
)
def test_calibration_entries_are_checked(entry, message, broken, stage):
    write_params(broken, calibration=[entry])
    with pytest.raises(BallastError, match=message):
        stage.main()


def test_best_so_far_by_hand():
    rows = [(0, 1, 0.1), (0, 2, 0.3), (0, 3, 0.2), (1, 1, 0.5)]  # seed 1 stops after its first epoch
    frame = pd.DataFrame(rows, columns=["seed", "epoch", "valid_ndcg@10"]).assign(dataset="d", method="m")
    best = results.best_so_far(frame)
    assert best["epoch"].tolist() == [1, 2, 3]
    assert best["best_valid_ndcg@10"].tolist() == pytest.approx([0.3, 0.4, 0.4])


def test_doctests():
    assert doctest.testmod(tables).failed == doctest.testmod(threats).failed == 0


def test_looks_are_fixed_and_distinct():
    labels = {f"m{index}": f"M{index}" for index in range(24)}
    style = plots.looks(labels, frozenset({"m0", "m5"}))
    assert style["m0"].colour == style["m5"].colour == plots.GREY
    assert len({(look.colour, look.line) for look in style.values()}) == 24
    fewer = plots.looks(dict(list(labels.items())[:9]), frozenset({"m0", "m5"}))
    assert all(style[name] == look for name, look in fewer.items())


def test_names_are_moved_apart():
    wanted = np.array([0.0, 0.01, 0.02, 0.9])
    placed = plots._apart(wanted, 0.1, 0.0, 1.0)
    assert (np.diff(placed) >= 0.1 - 1e-9).all()
    assert placed.min() >= 0
    assert placed.max() <= 1
    assert placed.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.9])
    assert plots._apart(wanted + 1, 0.1, 0.0, 3.0).tolist() == pytest.approx([0.91, 1.01, 1.11, 1.9])
