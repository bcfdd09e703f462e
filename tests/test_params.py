"""params.yaml: every mistake is one line that names the key, and what is read is what was written."""

from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml

from ballast.errors import BallastError
from ballast.params import Params, TrainingParams, load
from ballast.strict import parse

ROOT = Path(__file__).resolve().parents[1]

# A small study in the way people write one: anchors, merges, exponents.
TEXT = """
root: .
study: {name: toy, title: A toy study}
datasets:
  shop: &shop
    label: Shop
    terms: none
    source: {files: [{name: log.csv}]}
    reader: {name: tabular}
    seeds: [0, 1]
  market: {<<: *shop, label: Market}
targets: [shop]
content_datasets: [shop, market]
features: {text: {name: tfidf_svd, dim: 8}}
methods:
  popularity: {label: Popularity, method: popularity}
  sasrec: &sasrec
    label: SASRec
    method: next_item
    model: &model
      backbone: {name: sasrec, layers: 2, heads: 2}
      loss: {name: bce, negatives: 4}
      dim: 32
    training: {batch_size: 64, learning_rate: 1e-3, weight_decay: 0, max_epochs: 20}
content_methods:
  features: {<<: *sasrec, label: Features, method: sasrec_features}
transfer_methods:
  transfer: {<<: *sasrec, label: Transfer, method: sasrec_features, start: shared}
transfer:
  pools: {sources: {sources: [market]}}
  pretraining:
    shared: {<<: *sasrec, label: Shared, method: sasrec_features, pool: sources}
  targets: [shop]
tuning:
  trials: 3
  datasets: {shop: {model: {max_len: 20}}}
  methods: [sasrec]
  space: {training.learning_rate: [0.001, 0.002], model.dim: [16, 32]}
cells:
  shop:
    popularity: {}
    sasrec: {model: {loss: {negatives: 8}, dim: 64}, training: {batch_size: 32}}
    features: {model: {loss: {name: cross_entropy}, backbone: {layers: 1}}}
    transfer: {}
evaluation: {topk: 20}
robustness: {budgets: [0.1, 0.5]}
report: {baseline: popularity}
"""


def read(tmp_path: Path, text: str = TEXT) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def refusal(tmp_path: Path, text: str) -> str:
    """The message without the path of the temporary folder; always a single line."""
    with pytest.raises(BallastError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


# What is read


def test_reads_what_is_written(tmp_path: Path) -> None:
    params = read(tmp_path)
    assert params.study.name == "toy"
    assert params.datasets["market"].label == "Market"
    assert params.datasets["market"].seeds == [0, 1]
    assert params.content_methods["features"].model == params.methods["sasrec"].model
    assert params.evaluation.batch_size == 512  # a default
    assert list(params.all_methods()) == ["popularity", "sasrec", "features", "transfer"]
    assert params.grid() == [
        ("shop", "popularity"),
        ("shop", "sasrec"),
        ("shop", "features"),
        ("shop", "transfer"),
    ]


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "0.001", "+1e-3", "1.e-3"])
def test_an_exponent_is_a_number(number: str, tmp_path: Path) -> None:
    rate = read(tmp_path, TEXT.replace("1e-3", number)).methods["sasrec"].training.learning_rate
    assert isinstance(rate, float)
    assert rate == 0.001


@pytest.mark.parametrize("word", ["1e", "e3", "1-3", "0x1f-2", "1e-3s"])
def test_what_only_looks_like_an_exponent_is_not(word: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, TEXT.replace("1e-3", word))
    assert message.startswith(f"params.yaml: methods.sasrec.training.learning_rate: got '{word}', expected ")


def test_a_whole_number_is_taken_for_a_share(tmp_path: Path) -> None:
    assert read(tmp_path).methods["sasrec"].training.weight_decay == 0


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "studies").glob("*/params.yaml"))],
                         ids=lambda path: path.parent.name)  # fmt: skip
def test_the_studies_of_this_project_are_read_as_dvc_reads_them(path: Path) -> None:
    params = load(path)
    assert params.grid()
    data = ruamel.yaml.YAML(typ="safe").load(path)
    assert parse(Params, data, "params.yaml") == params


# Cells


def test_a_cell_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    params = read(tmp_path)
    cell = params.cell("shop", "sasrec")
    assert cell.model == {
        "backbone": {"name": "sasrec", "layers": 2, "heads": 2},
        "loss": {"name": "bce", "negatives": 8},
        "dim": 64,
    }
    assert cell.training == TrainingParams(batch_size=32, learning_rate=1e-3, max_epochs=20)
    assert params.methods["sasrec"].model["dim"] == 32  # the method's own block stays as it is
    assert params.methods["sasrec"].model["loss"] == {"name": "bce", "negatives": 4}


def test_a_component_named_anew_drops_the_settings_of_the_old(tmp_path: Path) -> None:
    model = read(tmp_path).cell("shop", "features").model
    assert model["loss"] == {"name": "cross_entropy"}
    assert model["backbone"] == {"name": "sasrec", "layers": 1, "heads": 2}


def test_a_component_named_the_same_keeps_its_settings(tmp_path: Path) -> None:
    text = changed("{model: {loss: {negatives: 8}, dim: 64}", "{model: {loss: {name: bce, negatives: 9}}")
    assert read(tmp_path, text).cell("shop", "sasrec").model["loss"] == {"name": "bce", "negatives": 9}
    text = changed("{model: {loss: {negatives: 8}, dim: 64}", "{model: {loss: {name: bce}}")
    assert read(tmp_path, text).cell("shop", "sasrec").model["loss"] == {"name": "bce", "negatives": 4}


def test_an_empty_cell_is_the_methods_own_block(tmp_path: Path) -> None:
    params = read(tmp_path)
    assert params.cell("shop", "popularity") == params.methods["popularity"]
    assert params.cell("shop", "transfer") == params.transfer_methods["transfer"]


def test_a_cell_outside_the_grid_is_refused_by_name(tmp_path: Path) -> None:
    params = read(tmp_path)
    with pytest.raises(BallastError) as error:
        params.cell("market", "sasrec")
    message = "params.yaml: cells.market.sasrec is missing: write `sasrec: {}` under cells.market"
    assert str(error.value) == message
    with pytest.raises(BallastError) as error:
        params.cell("shop", "sasrek")
    expected = "params.yaml: unknown method 'sasrek'; known: popularity, sasrec, features, transfer"
    assert str(error.value) == expected


# Refusals

TRAINING = "training: {batch_size: 64, learning_rate: 1e-3, weight_decay: 0, max_epochs: 20}"

# What is written in place of what, and what the message says.
MISTAKES: dict[str, tuple[str, str, str]] = {
    # Mistyped keys
    "top level": ("root: .", "rot: .", "params.yaml: rot: unknown key; did you mean 'root'?"),
    "nested": (
        "batch_size: 64", "batchsize: 64",
        "params.yaml: methods.sasrec.training.batchsize: unknown key; did you mean 'batch_size'?",
    ),
    "in a dataset": (
        "label: Shop", "lable: Shop", "params.yaml: datasets.shop.lable: unknown key; did you mean 'label'?",
    ),
    "in a list": (
        "{name: log.csv}", "{name: log.csv, sha: ab}",
        "params.yaml: datasets.shop.source.files.0.sha: unknown key; did you mean 'sha256'?",
    ),
    "in a cell": (
        "training: {batch_size: 32}", "training: {batch: 32}",
        "params.yaml: cells.shop.sasrec.training.batch: unknown key; did you mean 'batch_size'?",
    ),
    "in the report": (
        "{baseline: popularity}", "{base_line: popularity}",
        "params.yaml: report.base_line: unknown key; did you mean 'baseline'?",
    ),
    "like nothing": (
        "{topk: 20}",
        "{zzz: 20}",
        "params.yaml: evaluation.zzz: unknown key; known keys: batch_size, sampled, topk",
    ),
    # Missing keys
    "no study": ("study: {name: toy, title: A toy study}\n", "", "params.yaml: study: this key is missing"),
    "no title": (
        "{name: toy, title: A toy study}", "{name: toy}", "params.yaml: study.title: this key is missing",
    ),
    # Wrong types: nothing is turned into what was meant
    "text for a number": (
        "batch_size: 64", "batch_size: '64'",
        "params.yaml: methods.sasrec.training.batch_size: got '64', expected a valid integer",
    ),
    "share for a number": (
        "batch_size: 64", "batch_size: 64.5",
        "params.yaml: methods.sasrec.training.batch_size: got 64.5, expected a valid integer",
    ),
    "number for a switch": (
        "title: A toy study}", "title: x, is_simulated: 1}",
        "params.yaml: study.is_simulated: got 1, expected a valid boolean",
    ),
    "one for many": (
        "targets: [shop]\ncontent", "targets: shop\ncontent",
        "params.yaml: targets: got 'shop', expected a valid",
    ),
    "not one of the choices": (
        TRAINING, "training: {precision: float16}",
        "params.yaml: methods.sasrec.training.precision: got 'float16', expected 'float32' or 'bfloat16'",
    ),
    "text for a block": (
        "popularity: {label: Popularity, method: popularity}", "popularity: popularity",
        "params.yaml: methods.popularity: got 'popularity', expected",
    ),
    "wrong type in a cell": (
        "training: {batch_size: 32}", "training: {batch_size: many}",
        "params.yaml: cells.shop.sasrec.training.batch_size: got 'many', expected a valid integer",
    ),
    # Names of nothing
    "target": (
        "targets: [shop]\ncontent", "targets: [shp]\ncontent",
        "params.yaml: targets: unknown dataset 'shp'; known: market, shop",
    ),
    "content dataset": (
        "content_datasets: [shop, market]", "content_datasets: [shop, x]",
        "params.yaml: content_datasets: unknown dataset 'x'; known: market, shop",
    ),
    "source domain": (
        "{sources: [market]}", "{sources: [mall]}",
        "params.yaml: transfer.pools.sources.sources: unknown dataset 'mall'; known: market, shop",
    ),
    "transfer target": (
        "  targets: [shop]", "  targets: [mall]",
        "params.yaml: transfer.targets: unknown dataset 'mall'; known: market, shop",
    ),
    "pool": (
        "pool: sources", "pool: source",
        "params.yaml: transfer.pretraining.shared.pool: unknown pool 'source'; known: sources",
    ),
    "pre-training": (
        "start: shared", "start: share",
        "params.yaml: transfer_methods.transfer.start: unknown pre-training 'share'; known: shared",
    ),
    "no pre-training": (
        ", start: shared", "",
        "params.yaml: transfer_methods.transfer.start: unknown pre-training None; known: shared",
    ),
    "a pool of nothing": (
        "{sources: [market]}", "{sources: []}",
        "params.yaml: transfer.pools.sources.sources: name at least one dataset",
    ),
    "people of nowhere": (
        "{sources: [market]}", "{sources: [market], without_users_of: [mall]}",
        "params.yaml: transfer.pools.sources.without_users_of: unknown dataset 'mall'; known: market, shop",
    ),
    "dataset of a cell": (
        "cells:\n  shop:", "cells:\n  mall: {sasrec: {}}\n  shop:",
        "params.yaml: cells.mall: unknown dataset; known: market, shop",
    ),
    "dataset of no cell": (
        "cells:\n  shop:", "cells:\n  mall: {}\n  shop:",
        "params.yaml: cells.mall: unknown dataset; known: market, shop",
    ),
    "an id twice": (
        "transfer_methods:\n",
        "transfer_methods:\n  features: {label: F, method: popularity, start: shared}\n",
        "params.yaml: transfer_methods.features: the id is taken by content_methods.features",
    ),
    "method of a cell": (
        "    popularity: {}", "    popularity: {}\n    sasrek: {}",
        "params.yaml: cells.shop.sasrek: unknown method; known: popularity, sasrec, features, transfer",
    ),
    "a cell that is missing": (
        "    popularity: {}\n", "",
        "params.yaml: cells.shop.popularity is missing: write `popularity: {}` under cells.shop",
    ),
    # Values out of range
    "no seeds": (
        "seeds: [0, 1]", "seeds: []", "params.yaml: datasets.shop.seeds: give one or more different whole",
    ),
    "a seed twice": (
        "seeds: [0, 1]", "seeds: [1, 1]", "params.yaml: datasets.shop.seeds: give one or more different",
    ),
    "no reader": (
        "reader: {name: tabular}", "reader: {}", "params.yaml: datasets.shop.reader: say which, such as",
    ),
    "budget": (
        "[0.1, 0.5]", "[0.1, 5]", "params.yaml: robustness.budgets: 5.0 is not a share between 0 and 1",
    ),
    "budget that is no number": (
        "[0.1, 0.5]", "[.nan]", "params.yaml: robustness.budgets",
    ),
    "batch size": (
        "batch_size: 64", "batch_size: 0",
        "params.yaml: methods.sasrec.training.batch_size: 0 is less than 1",
    ),
    "batch size in a cell": (
        "{batch_size: 32}", "{batch_size: -5}",
        "params.yaml: cells.shop.sasrec.training.batch_size: -5 is less than 1",
    ),
    "learning rate": (
        "learning_rate: 1e-3", "learning_rate: -0.1",
        "params.yaml: methods.sasrec.training.learning_rate: -0.1 is not above 0",
    ),
    "learning rate that is no number": (
        "learning_rate: 1e-3", "learning_rate: .nan",
        "params.yaml: methods.sasrec.training.learning_rate: nan is not above 0",
    ),
    "weight decay": (
        "weight_decay: 0", "weight_decay: -1.0",
        "params.yaml: methods.sasrec.training.weight_decay: -1.0 is not 0 or more",
    ),
    "no epochs": (
        "max_epochs: 20", "max_epochs: 0",
        "params.yaml: methods.sasrec.training.max_epochs: 0 is less than 1",
    ),
    "no patience": (
        "max_epochs: 20", "patience: 0", "params.yaml: methods.sasrec.training.patience: 0 is less than 1",
    ),
    "rising rate": (
        "max_epochs: 20", "learning_rate_decay: 1.5",
        "params.yaml: methods.sasrec.training.learning_rate_decay: 1.5 is not above 0 and at most 1",
    ),
    "width": ("      dim: 32", "      dim: 0", "params.yaml: methods.sasrec.model.dim: 0 is less than 1"),
    "dropout": (
        "      dim: 32", "      dropout: 1",
        "params.yaml: methods.sasrec.model.dropout: 1 is not 0 or more and",
    ),
    "heads": (
        "layers: 2, heads: 2", "layers: 2, heads: 0",
        "params.yaml: methods.sasrec.model.backbone.heads: 0 is less than 1",
    ),
    "decays that are searched": (
        "popularity: {label: Popularity, method: popularity}",
        "popularity: {label: Count, method: item_knn, model: {tune: {pair_decay: [0.9, 2.0]}}}",
        "params.yaml: methods.popularity.model.tune.pair_decay.1: 2.0 is not a share between 0 and 1",
    ),
    "a rate that is searched": (
        "[0.001, 0.002]", "[0.001, 0]",
        "params.yaml: tuning.space.training.learning_rate.1: 0 is not above 0",
    ),
    "seed": ("seeds: [0, 1]", "seeds: [0, -1]", "params.yaml: datasets.shop.seeds.1: -1 is not 0 or more"),
    "filter": (
        "label: Shop\n", "label: Shop\n    filter: {min_user_interactions: -3}\n",
        "params.yaml: datasets.shop.filter.min_user_interactions: -3 is not 0 or more",
    ),
    "no list": ("{topk: 20}", "{topk: 0}", "params.yaml: evaluation.topk: 0 is less than 1"),
    "no draws": (
        "{baseline: popularity}", "{baseline: popularity, bootstrap_draws: 0}",
        "params.yaml: report.bootstrap_draws: 0 is less than 1",
    ),
    "baseline": (
        "baseline: popularity", "baseline: sasrecx", "params.yaml: report.baseline: unknown method 'sasrecx'",
    ),
    "surface": (
        "{budgets: [0.1, 0.5]}", "{attacks: {pgd: {attack: {name: pgd}, budgets: [0.1], surfaces: [item]}}}",
        "params.yaml: robustness.attacks.pgd.surfaces: unknown surface 'item'; known: items, text, ",
    ),
    # Not what YAML takes
    "a key twice": (
        "root: .", "root: .\nroot: ..", "params.yaml: not valid YAML: key 'root' is given twice in",
    ),
    "a nested key twice": (
        "      dim: 32", "      dim: 32\n      dim: 64",
        "params.yaml: not valid YAML: key 'dim' is given twice in",
    ),
    "a bracket that stays open": ("seeds: [0, 1]", "seeds: [0, 1", "params.yaml: not valid YAML: while pars"),
    "an anchor that is not there": ("<<: *shop", "<<: *shp", "params.yaml: not valid YAML: found undefined"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(name: str, tmp_path: Path) -> None:
    old, new, message = MISTAKES[name]
    assert refusal(tmp_path, changed(old, new)).startswith(message)


def test_what_is_unknown_is_told_before_what_is_missing(tmp_path: Path) -> None:
    """A mistyped key is the cause of the missing one."""
    message = refusal(tmp_path, changed("{name: toy, title: A toy study}", "{name: toy, tilte: A toy study}"))
    assert message == "params.yaml: study.tilte: unknown key; did you mean 'title'?"


@pytest.mark.parametrize(
    ("text", "expected"), [("", "None"), ("- a\n- b\n", "['a', 'b']"), ("words", "'words'")]
)
def test_a_file_that_holds_no_study(text: str, expected: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, text).startswith(f"params.yaml: got {expected}, expected ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BallastError) as error:
        load(tmp_path / "params.yaml")
    message = "params.yaml: not found; run from a study's folder (the one with params.yaml)"
    assert str(error.value) == f"{tmp_path}/{message}"


def test_the_place_of_a_syntax_error_is_told(tmp_path: Path) -> None:
    message = refusal(tmp_path, changed("root: .", "root: .\nroot: .."))
    assert "line 3, column 1" in message


def test_an_anchor_with_an_overriding_key_may_be_merged_again(tmp_path: Path) -> None:
    """Merging rewrites PyYAML's nodes, after which an override looks like a key given twice."""
    nested = changed("      dim: 32", "      <<: &more {dim: 8, dropout: 0.5}\n      dim: 32")
    text = nested.replace("features: {model: {loss: {name: cross_entropy}, backbone: {layers: 1}}}",
                          "features: {model: {<<: *model, dropout: 0.1}}")  # fmt: skip
    assert text != nested
    params = read(tmp_path, text)
    assert params.methods["sasrec"].model["dim"] == 32
    assert params.cell("shop", "features").model["dim"] == 32
    assert params.cell("shop", "features").model["dropout"] == 0.1


def test_records_cannot_be_changed(tmp_path: Path) -> None:
    params: Any = read(tmp_path)
    with pytest.raises(AttributeError):
        params.study.name = "other"
