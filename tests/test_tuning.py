"""The search for settings: equal for all, resumable, adopted by a command that keeps the rest of the file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import adopt
import numpy as np
import pandas as pd
import pytest
import tune
from conftest import ITEMS, walk

from ballast import params as parameters
from ballast import tuning
from ballast.data import schemas
from ballast.errors import BallastError
from ballast.models.methods.next_item import NextItem
from ballast.params import TuningParams
from ballast.reporting import evidence

TEXT = """\
# A comment that stays.
root: .
study: {name: tiny, title: Tiny}
datasets:
  tiny: {label: Tiny, terms: none, source: {}, reader: {name: tabular}, seeds: [0, 1]}
targets: [tiny]
content_datasets: []
features: {}
methods:
  knn:
    label: kNN
    method: item_knn
    model: {tune: {pair_decay: [0.5, 0.9]}}
  sasrec: &sasrec
    label: SASRec
    method: next_item
    model: {backbone: {name: sasrec, heads: 1}, loss: {name: cross_entropy}, dim: 8, dropout: 0.1}
    training: {batch_size: 16, learning_rate: 1e-5, max_epochs: 3}
  gru4rec: {<<: *sasrec, label: GRU4Rec, model: {backbone: {name: gru4rec}, dim: 8}}
content_methods: {}
transfer_methods: {}
transfer: {}
tuning:
  trials: 3
  datasets: {tiny: {model: {max_len: 6}}}
  methods: [sasrec, gru4rec]
  space: {training.learning_rate: [0.01, 0.02], model.dropout: [0.0, 0.3]}
cells:
  tiny:
    knn: {}
    sasrec: {}  # written by a person
    gru4rec: {}
evaluation: {}
robustness: {}
report: {baseline: knn}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared dataset of 60 users, and a params.yaml that asks for two searches."""
    rows = [
        (user, item, place, split)
        for user, history in enumerate(walk(60), start=1)
        for place, (item, split) in enumerate(
            zip(history, ["train"] * (len(history) - 2) + ["valid", "test"], strict=True)
        )
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "position", "split"])
    ids = np.arange(1, ITEMS + 1)
    counts = frame[frame["split"] == "train"]["item_id"].value_counts().reindex(ids, fill_value=0)
    nothing = dict.fromkeys(["title", "description", "category", "price", "image"])
    items = pd.DataFrame(
        {"item_id": ids, "raw_item_id": ids.astype(str), **nothing, "n_train": counts.to_numpy()}
    )
    prepared = tmp_path / "data/prepared/tiny"
    schemas.write("items", items, prepared / "items.parquet")
    schemas.write("interactions", frame.assign(timestamp=None, is_noise=None),
                  prepared / "interactions.parquet")  # fmt: skip
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/code.json").write_text('{"tune": {}}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BALLAST_DEVICE", "cpu")
    monkeypatch.setattr(tune, "prepare_process", lambda: None)  # settings of the whole test process
    return tmp_path


def record(method: str) -> dict[str, Any]:
    return dict(json.loads(Path(f"reports/cells/tune/tiny--{method}.json").read_text()))


def search(values: int = 4, **settings: Any) -> TuningParams:
    return TuningParams(space={"model.dim": list(range(values)), "model.dropout": [0.1, 0.2]}, **settings)


def test_every_method_tries_the_same_settings_the_written_ones_first() -> None:
    found = tuning.trials(search(trials=6), "a")
    assert found[0] == {}
    assert len(found) == 6
    assert len({json.dumps(change) for change in found}) == 6
    assert tuning.trials(search(trials=6), "b") == found
    assert tuning.trials(search(trials=6, seed=1), "a") != found
    own = search(trials=6, spaces={"b": {"model.heads": [1, 2]}})
    assert len(tuning.trials(own, "b")) == 6
    assert {frozenset(change) for change in tuning.trials(own, "b")[1:]} == {
        frozenset(["model.dim", "model.dropout", "model.heads"])
    }


def test_a_space_that_is_too_small_is_refused() -> None:
    assert len(tuning.trials(search(values=1, trials=3), "a")) == 3
    with pytest.raises(BallastError, match=r"tuning.trials: 4 is more than the 2 combinations"):
        tuning.trials(search(values=1, trials=4), "a")


def test_a_cell_is_the_datasets_block_with_the_change_in_it() -> None:
    common = {"model": {"max_len": 20}, "training": {"batch_size": 64}}
    settings = TuningParams(datasets={"d": common})
    found = tuning.cell(settings, "d", {"model.loss.negatives": 4, "training.patience": 3})
    assert found == {"model": {"max_len": 20, "loss": {"negatives": 4}},
                     "training": {"batch_size": 64, "patience": 3}}  # fmt: skip
    assert common == {"model": {"max_len": 20}, "training": {"batch_size": 64}}


def test_of_equal_trials_the_first_is_best() -> None:
    values = [0.2, 0.5, 0.5, 0.1]
    trials = [{"change": {"n": n}, "valid_ndcg@10": value} for n, value in enumerate(values)]
    assert tuning.best({"trials": trials})["change"] == {"n": 1}


def test_search_and_adoption(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("sasrec", "gru4rec"):
        tune.main("tiny", method)
    first = record("sasrec")
    assert [trial["change"] for trial in first["trials"]] == [
        trial["change"] for trial in record("gru4rec")["trials"]
    ]
    assert all(trial["seconds"] > 0 and 1 <= trial["best_epoch"] <= 3 for trial in first["trials"])
    # A rate of 1e-5 learns nothing in three epochs: some other trial must win.
    assert tuning.best(first)["change"]
    assert not list((study / ".scratch/tune").iterdir())

    params = parameters.load(study / "params.yaml")
    found = evidence.Evidence(params, {}, {}, frozenset(), {("tiny", "sasrec"): first})
    with pytest.raises(BallastError, match=r"cells.tiny.sasrec is not what validation chose.*adopt.py"):
        evidence.check(found)
    adopt.main()
    assert "2 of 2 cells changed" in capsys.readouterr().out
    adopted = parameters.load(study / "params.yaml")
    evidence.check(replace(found, params=adopted))
    cell = adopted.cell("tiny", "sasrec")
    assert cell == tuning.tried(params, "tiny", "sasrec", tuning.best(first)["change"])
    assert cell.model["max_len"] == 6
    after = (study / "params.yaml").read_text()
    adopted_lines = ("    sasrec: {}", "    gru4rec: {}")
    kept = [line for line in TEXT.splitlines() if not line.startswith(adopted_lines)]
    assert [line for line in kept if line not in after.splitlines()] == []
    adopt.main()
    assert "0 of 2 cells changed" in capsys.readouterr().out
    assert (study / "params.yaml").read_text() == after


def test_an_ended_search_goes_on_where_it_was(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.main("tiny", "sasrec")
    whole = record("sasrec")
    calls = []

    def fit(*given: Any, **named: Any) -> Any:
        calls.append(given[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    real = tune.fit_phases
    monkeypatch.setattr(tune, "fit_phases", fit)
    with pytest.raises(KeyboardInterrupt):
        tune.main("tiny", "sasrec")
    tune.main("tiny", "sasrec")
    assert calls == [f"tiny sasrec trial {n} of 3" for n in (1, 2, 2, 3)]
    for one, other in zip(whole["trials"], record("sasrec")["trials"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_trial_goes_through_every_phase(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    monkeypatch.setattr(NextItem, "phases", ("base", "adversarial"))
    monkeypatch.setattr(NextItem, "enter", lambda self, phase: entered.append(phase))
    tune.main("tiny", "sasrec")
    assert entered == ["base", "adversarial"] * 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.dropout: [0.0, 0.3]", "model.drop: [0.0, 0.3]", "model.drop: unknown key; did you mean"),
        (
            "methods: [sasrec, gru4rec]",
            "methods: [sasrec, gru]",
            "tuning.methods: 'gru' is not under methods",
        ),
        ("datasets: {tiny: {model", "datasets: {big: {model", "tuning.datasets: unknown dataset 'big'"),
        ("trials: 3", "trials: 0", "tuning.trials: 0 is less than 1"),
        ("trials: 3", "trials: 9", "tuning.trials: 9 is more than the 4 combinations"),
        ("trials: 3", "spaces: {knn: {model.window: [1]}}", "tuning.spaces.knn: not a method that is tuned"),
    ],
)
def test_a_wrong_search_is_one_line(old: str, new: str, message: str, study: Path) -> None:
    (study / "params.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(BallastError) as error:
        tune.main("tiny", "sasrec")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_counting_methods_are_not_searched_here(study: Path) -> None:
    (study / "params.yaml").write_text(
        TEXT.replace("[sasrec, gru4rec]", "[knn]").replace("trials: 3", "trials: 1")
    )
    with pytest.raises(BallastError, match=r"tuned by `model.tune`"):
        tune.main("tiny", "knn")


def test_nothing_is_adopted_before_it_was_tried(study: Path) -> None:
    with pytest.raises(BallastError, match=r"tiny--sasrec.json: not found; run the tune stages"):
        adopt.main()
    assert (study / "params.yaml").read_text() == TEXT


def test_more_trials_than_the_others_are_refused(study: Path) -> None:
    params = parameters.load(study / "params.yaml")
    trials = [{"change": change, "valid_ndcg@10": -n} for n, change in enumerate(
        tuning.trials(params.tuning, "sasrec"))]  # fmt: skip
    records = {("tiny", "sasrec"): {"seed": 0, "trials": trials}}
    chosen = {"tiny": {**params.cells["tiny"], "sasrec": {"model": {"max_len": 6}}}}
    empty = pd.DataFrame()
    cell = evidence.Cell("tiny", "knn", empty, empty, {"seeds": {"0": {"trials": 4}}}, {}, {})
    found = evidence.Evidence(
        replace(params, cells=chosen), {("tiny", "knn"): cell}, {}, frozenset(["knn"]), records
    )
    with pytest.raises(BallastError, match=r"tiny--knn: 4 trials, while tuning.trials gives every method 3"):
        evidence.check(found)
    records["tiny", "sasrec"] = {"seed": 0, "trials": trials[:2]}
    with pytest.raises(BallastError, match=r"tiny--sasrec: stale: its tune record holds other trials"):
        evidence.check(found)
