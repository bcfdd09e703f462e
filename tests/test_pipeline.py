"""The pipeline through real `dvc repro`, on a small simulated shop in a repository of its own."""

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fingerprint
import pandas as pd
import pytest
import torch
import yaml

from ballast.data import schemas
from ballast.data.sequences import SequenceStore
from ballast.evaluation.ranking import rank_targets
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.provenance import definitions_used

pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).resolve().parents[1]
ROBUSTNESS = {"users": 60, "kinds": ["insert", "shuffle"], "budgets": [0.2, 0.5]}
SEQUENCE = {"loss": {"name": "bce"}, "dim": 8, "max_len": 12, "dropout": 0.1}
TRAINING = {"batch_size": 16, "learning_rate": 3e-3}


def dataset(domain: str, users: int) -> dict[str, Any]:
    shop = {"seed": 7, "domain": domain, "users": users, "items": 60, "image_size": 16, "mean_length": 7.0}
    return {
        "label": domain.title(),
        "terms": "none",
        "is_simulated": True,
        "source": {"simulated": shop},
        "reader": {"name": "tabular"},
        "filter": {"min_user_interactions": 4},
        "seeds": [0, 1],
    }


PARAMS: dict[str, Any] = {
    "root": ".",
    "study": {"name": "toy", "title": "A toy study", "is_simulated": True},
    "datasets": {"shop": dataset("decor", 150), "mall": dataset("apparel", 100)},
    "targets": ["shop"],
    "content_datasets": ["shop", "mall"],
    "features": {
        "text": {"name": "tfidf_svd", "dim": 8, "fit_on": ["shop", "mall"]},
        "image": {"name": "contrastive", "dim": 4, "size": 16, "width": 4, "steps": 2},
    },
    "methods": {
        "popularity": {"label": "Popularity", "method": "popularity"},
        # None of the values is a default: what is chosen must survive until it is judged.
        "item-knn": {
            "label": "Item co-occurrence",
            "method": "item_knn",
            "model": {"tune": {"history_decay": [0.1, 0.2], "pair_decay": [0.3]}},
        },
        "sasrec": {
            "label": "SASRec",
            "method": "next_item",
            "model": SEQUENCE,
            "training": {**TRAINING, "max_epochs": 30, "patience": 30},
        },
    },
    "content_methods": {
        "feature-knn": {
            "label": "Features",
            "method": "feature_knn",
            "model": {"modalities": ["text", "image"]},
        }
    },
    "transfer_methods": {
        "transfer": {
            "label": "Transfer",
            "method": "sasrec_features",
            "start": "shared",
            "model": {**SEQUENCE, "modalities": ["text"], "loss": {"name": "cross_entropy"}},
            "training": {**TRAINING, "max_epochs": 2},
        }
    },
    "transfer": {
        "pools": {"sources": {"sources": ["mall"]}},
        "pretraining": {
            "shared": {
                "label": "Shared",
                "method": "sasrec_features",
                "pool": "sources",
                "model": {**SEQUENCE, "modalities": ["text"], "loss": {"name": "cross_entropy"}},
                "training": {**TRAINING, "max_epochs": 2},
            }
        },
        "targets": ["shop"],
    },
    "tuning": {
        "datasets": {},
        "methods": [],
        "content_methods": [],
        "trials": 1,
        "seed": 0,
        "space": {},
        "spaces": {},
    },
    "cells": {
        "shop": {"popularity": {}, "item-knn": {}, "sasrec": {}, "feature-knn": {}, "transfer": {}},
    },
    "evaluation": {"topk": 10},
    "robustness": ROBUSTNESS,
    "report": {"bootstrap_draws": 50, "scratch": {"transfer": "sasrec"}},
}
METHODS = tuple(PARAMS["cells"]["shop"])
SUFFIX = {"feature-knn": "_content", "transfer": "_adapted"}

# Notes which functions of the project a stage runs, from the end of its imports on.
TRACER = """

import json as _json
_project, _seen, _untraced = str(Path(__file__).resolve().parents[1]), set(), run


def _note(frame, event, argument):
    code = frame.f_code
    is_function = code.co_flags & 1  # not the body of a module or class, which runs when it is imported
    if event == "call" and is_function and code.co_filename.startswith(_project):
        _seen.add((code.co_filename[len(_project) + 1 :], code.co_firstlineno))


def run(main):
    if "TRACES" not in os.environ:
        return _untraced(main)
    sys.setprofile(_note)
    try:
        _untraced(main)
    finally:
        sys.setprofile(None)
        name = "-".join([Path(sys.argv[0]).stem, *sys.argv[2::2]])
        (Path(os.environ["TRACES"]) / f"{name}.json").write_text(_json.dumps(sorted(_seen)))
"""


class Repository:
    """A study in a git and DVC repository of its own, with a copy of this project's code."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.traces = home / "traces"
        proxies = dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
        )
        self.environ = {
            **os.environ,
            **proxies,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(home / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(home / "system"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(home / "gitconfig"),
            **{
                f"GIT_{who}_{what}": "nobody@example.org"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }

    def start(self, *command: str, **environ: str) -> "subprocess.Popen[str]":
        """A command in the study's folder, both its streams in one."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, succeeds: bool = True, **environ: str) -> str:
        """Output of a command that must succeed, or must fail."""
        process = self.start(*command, **environ)
        output, _ = process.communicate()
        assert (process.returncode == 0) == succeeds, f"{' '.join(command)}: {process.returncode}\n{output}"
        return output

    def repro(self, *options: str, **environ: str) -> set[str]:
        """Names of the stages that `dvc repro` ran."""
        return ran(self.run("dvc", "repro", *options, succeeds=True, **environ))

    def stage(self, name: str, *options: str, succeeds: bool = True) -> str:
        return self.run("python", f"stages/{name}.py", *options, succeeds=succeeds)

    def changes(self) -> list[str]:
        """What git sees as changed or new."""
        return self.run("git", "status", "--porcelain").splitlines()

    def read(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())

    def hashes(self, *folders: str) -> dict[str, str]:
        paths = [path for folder in folders for path in (self.folder / folder).rglob("*") if path.is_file()]
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        }

    @contextmanager
    def changed(self, path: str, change: Callable[[Any], None]) -> Iterator[None]:
        """A YAML or JSON file with a change made to its data, for as long as the block lasts."""
        file = self.folder / path
        text = file.read_text()
        data = yaml.safe_load(text)
        change(data)
        file.write_text(json.dumps(data) if file.suffix == ".json" else yaml.safe_dump(data, sort_keys=False))
        try:
            yield
        finally:
            file.write_text(text)


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def cells_of(*methods: str) -> set[str]:
    found = set()
    for method in methods:
        suffix = SUFFIX.get(method, "")
        train = "adapt" if suffix == "_adapted" else f"train{suffix}"
        found |= {f"{name}@shop-{method}" for name in (train, f"evaluate{suffix}", f"robustness{suffix}")}
    return found


EVERY_STAGE = {
    "fingerprint", "fitted", "report", "pool@sources", "pretrain@shared",
    *(f"{name}@{place}" for name in ("fetch", "preprocess") for place in ("shop", "mall")),
    *(f"features@{place}-{modality}" for place in ("shop", "mall") for modality in ("text", "image")),
    *cells_of(*METHODS),
}  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The toy study, made once by a plain `dvc repro` and committed."""
    folder, home = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("home")
    for name in ("ballast", "stages", ".dvc/plots"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    with (folder / "stages/study.py").open("a") as study:
        study.write(TRACER)
    training = folder / "ballast/models/training.py"
    text = training.read_text()
    assert "CHECKPOINT_SECONDS = 20.0" in text
    training.write_text(text.replace("CHECKPOINT_SECONDS = 20.0", "CHECKPOINT_SECONDS = 0.0"))
    made = Repository(folder, home)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    made.traces.mkdir()
    assert made.repro(TRACES=str(made.traces)) == EVERY_STAGE
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message", "The toy study")
    return made


@pytest.fixture(autouse=True)
def as_it_was_found(repository: Repository) -> Iterator[None]:
    """Seconds and memory differ from run to run: what a test made anew goes back to what was committed."""
    yield
    if repository.changes():
        repository.run("git", "checkout", "--", ".")
        repository.run("git", "clean", "--force", "--quiet", "-d")
        repository.run("dvc", "checkout", "--force")


# End to end


def test_every_cell_of_the_grid_is_in_the_metrics(repository: Repository) -> None:
    metrics = repository.read("reports/metrics.json")
    assert set(metrics) == {"shop"}
    assert set(metrics["shop"]) == set(METHODS)
    for values in metrics["shop"].values():
        assert 0 < values["ndcg@10"] < values["hr@10"] <= 1
        assert {"robustness_area-insert", "robustness_area-shuffle", "coverage@10"} <= set(values)
    for method in METHODS:
        seeds = repository.read(f"reports/cells/train/shop--{method}.json")["seeds"]
        states = {path.name for path in (repository.folder / f"data/models/shop/{method}").iterdir()}
        assert {f"seed-{seed}.safetensors" for seed in seeds} <= states
        assert set(seeds) == ({"0"} if method in ("popularity", "item-knn", "feature-knn") else {"0", "1"})
    assert "<html" in (repository.folder / "reports/index.html").read_text()


def test_what_is_up_to_date_is_not_run_again(repository: Repository) -> None:
    assert "Data and pipelines are up to date." in repository.run("dvc", "repro")


def test_real_data_and_models_are_not_in_git(repository: Repository) -> None:
    tracked = repository.run("git", "ls-files").splitlines()
    assert not [path for path in tracked if path.startswith(("data/", ".scratch/"))]
    for table in [path for path in tracked if path.endswith(".parquet")]:
        assert table.startswith(("reports/ranks/", "reports/robustness/"))


def test_the_method_that_is_judged_is_the_one_that_was_chosen(repository: Repository) -> None:
    account = repository.read("reports/cells/train/shop--item-knn.json")["seeds"]["0"]
    chosen = account["chosen"]
    assert chosen["history_decay"] in (0.1, 0.2)
    frame = schemas.read("interactions", repository.folder / "data/prepared/shop/interactions.parquet")
    items = schemas.read("items", repository.folder / "data/prepared/shop/items.parquet")
    info = DatasetInfo(
        len(frame["user_id"].unique()), len(items), torch.zeros(len(items) + 1, dtype=torch.int64)
    )
    method = registry.build("item_knn", registry.configure("item_knn", chosen, "chosen"), info)
    train = SequenceStore.from_interactions(frame, ["train"])
    method.fit_sequences(train.items, train.offsets)
    test = frame[frame["split"] == "test"]
    store = SequenceStore.from_interactions(frame, ["train", "valid"], test["user_id"].to_numpy())
    ours = rank_targets(method.eval(), store, torch.from_numpy(test["item_id"].to_numpy("int64")))
    ranks = schemas.read("ranks", repository.folder / "reports/ranks/shop--item-knn.parquet")
    assert ranks["rank"].tolist() == ours.rank.tolist()


def test_no_stage_runs_code_that_its_fingerprint_leaves_out(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tracer saw is covered; stages/study.py, and what only it uses, changes no result."""
    starts: list[list[str]] = []
    (tmp_path / "params.yaml").write_text((repository.folder / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)

    def note(root: Path, modules: list[str]) -> int:
        starts.append(list(modules))
        return len(starts)

    monkeypatch.setattr(fingerprint, "fingerprint", note)
    fingerprint.main()
    code = json.loads((tmp_path / "reports/code.json").read_text())
    always = statements(repository.folder, ["stages.study"])
    assert len(list(repository.traces.iterdir())) == len(EVERY_STAGE)
    missed = set()
    for stage, found in code.items():
        for method, number in found.items() if isinstance(found, dict) else [("", found)]:
            covered = statements(repository.folder, starts[number - 1]) | always
            for trace in repository.traces.glob(f"{stage}*{method}.json"):
                missed |= {f"{stage}: {place}" for place in executed(repository.folder, trace) - covered}
    assert missed == set()


def statements(root: Path, modules: list[str]) -> set[str]:
    """The top-level statements that these modules use, as "module: line"."""
    used = definitions_used(root, modules)
    return {f"{module.removeprefix('stages.')}: {statement.lineno}" for module, statement in used}


def executed(root: Path, trace: Path) -> set[str]:
    """The top-level statements whose functions ran."""
    found = set()
    for name, line in json.loads(trace.read_text()):
        path = Path(name)
        if path.suffix != ".py" or path.as_posix() == "stages/study.py":
            continue  # templates run too; see test_provenance.py
        module = ".".join(path.with_suffix("").parts).removeprefix("stages.").removesuffix(".__init__")
        for statement in ast.parse((root / path).read_text()).body:
            first = min(
                [statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))]
            )
            if first <= line <= (statement.end_lineno or first):
                found.add(f"{module}: {statement.lineno}")
    return found


# What reruns


def flat(tree: Mapping[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and not {"old", "new"} & set(value):
            yield from (f"{key}.{rest}" for rest in flat(value))
        else:
            yield key


def test_a_setting_of_one_method_reruns_its_cells_alone(repository: Repository) -> None:
    """Also a setting that only scoring reads: the counts are the same as before."""

    def tune_otherwise(params: Any) -> None:
        params["methods"]["item-knn"]["model"]["tune"]["history_decay"] = [0.9]

    metrics = repository.read("reports/metrics.json")["shop"]
    with repository.changed("params.yaml", tune_otherwise):
        assert repository.repro() == {"fingerprint", "report", *cells_of("item-knn")}
        after = repository.read("reports/metrics.json")["shop"]
        assert {method for method in METHODS if after[method] != metrics[method]} == {"item-knn"}
        difference = json.loads(repository.run("dvc", "metrics", "diff", "--json"))
        moved = list(
            flat(difference["reports/metrics.json"] if "diff" not in difference else difference["diff"])
        )
        assert moved
        assert all("shop.item-knn." in name for name in moved)


def test_a_setting_of_an_adaptation_does_not_pretrain_anew(repository: Repository) -> None:
    def adapt_longer(params: Any) -> None:
        params["cells"]["shop"]["transfer"] = {"training": {"max_epochs": 3}}

    with repository.changed("params.yaml", adapt_longer):
        assert repository.repro() == {"fingerprint", "report", *cells_of("transfer")}


def test_a_setting_of_a_pretraining_reruns_it_and_what_starts_from_it(repository: Repository) -> None:
    def pretrain_longer(params: Any) -> None:
        params["transfer"]["pretraining"]["shared"]["training"]["max_epochs"] = 3

    with repository.changed("params.yaml", pretrain_longer):
        assert repository.repro() == {"fingerprint", "report", "pretrain@shared", *cells_of("transfer")}


def test_the_report_tells_what_pretraining_gained(repository: Repository) -> None:
    table = pd.read_csv(repository.folder / "reports/tables/transfer.csv")
    assert table["method"].tolist() == ["transfer"]
    metrics = repository.read("reports/metrics.json")["shop"]
    gain = metrics["transfer"]["ndcg@10"] / metrics["sasrec"]["ndcg@10"] - 1
    assert table["gain"][0] == pytest.approx(gain, abs=1e-3)
    assert table["low"][0] <= table["gain"][0] <= table["high"][0]
    assert (repository.folder / "reports/figures/transfer.png").is_file()
    curves = pd.read_csv(repository.folder / "reports/figures/pretraining.csv")
    assert curves["epoch"].tolist() == [1, 2]


OUTSIDERS = '''"""Every item's vector moves by the budget along the first axis."""

import torch

from ballast.robustness.ascent import Found
from ballast.robustness.attacks import Attack


class Adversary(Attack):
    def search(self, objective, ball, rng):
        delta = torch.zeros_like(objective.surface.values)
        delta[:, 0] = 1.0
        return Found(ball.projected(delta * ball.radius), 0.0)
'''


def test_an_outsiders_attack_is_one_file_and_one_block(repository: Repository) -> None:
    def attack(params: Any) -> None:
        params["robustness"]["attacks"] = {"mine": {"attack": {"name": "sideways"}, "budgets": [0.5]}}

    path = repository.folder / "ballast/robustness/attacks/sideways.py"
    try:
        path.write_text(OUTSIDERS)
        with repository.changed("params.yaml", attack):
            tested = {stage for stage in EVERY_STAGE if stage.startswith("robustness")}
            assert repository.repro() == {"fingerprint", "report"} | tested
            table = schemas.read("robustness", repository.folder / "reports/robustness/shop--sasrec.parquet")
            mine = table[table["condition"] == "mine"]
            assert set(mine["surface"]) == {"items"}
            assert mine["size"].to_numpy() == pytest.approx(0.5)
            path.write_text(OUTSIDERS.replace("delta[:, 0] = 1.0", "delta[:, 1] = 1.0"))
            assert repository.repro() == {"fingerprint", "report"} | tested
    finally:
        path.unlink()


def test_a_comment_reruns_nothing_but_the_fingerprint(repository: Repository) -> None:
    path = repository.folder / "ballast/models/sequential.py"
    text = path.read_text()
    path.write_text(f"# A remark.\n{text}")
    assert repository.repro() == {"fingerprint"}


# Side by side


def test_two_stages_train_at_once(repository: Repository) -> None:
    before = repository.hashes("data/models")
    command = ("dvc", "--wait-for-lock", "repro", "--single-item", "--force")
    with (
        repository.start(*command, "train@shop-popularity") as one,
        repository.start(*command, "train@shop-item-knn") as other,
    ):
        for process in (one, other):
            output, _ = process.communicate()
            assert process.returncode == 0, output
    assert repository.hashes("data/models") == before


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_killed_training_is_guarded_and_resumed(repository: Repository) -> None:
    """DVC is killed, its child lives on and keeps its lock; when it dies too, the next run goes on."""
    folder, name = repository.folder, "train@shop-sasrec"
    models = repository.hashes("data/models/shop/sasrec")
    untouched = repository.hashes("data/prepared", "reports/ranks")
    account = repository.read("reports/cells/train/shop--sasrec.json")
    scratch = folder / ".scratch/train"
    with repository.start("dvc", "repro", "--single-item", "--force", name) as process:
        wait_for(lambda: list(scratch.glob("*/seed-1.ckpt")), process)
        child = int((folder / ".scratch/train-shop--sasrec.pid").read_text())
        os.kill(child, signal.SIGSTOP)  # in the middle of the second seed
        process.kill()
    try:
        refused = repository.stage("train", "--dataset", "shop", "--method", "sasrec", succeeds=False)
    finally:
        os.kill(child, signal.SIGKILL)
    assert refused == (
        f"error: train-shop--sasrec: another run of this stage (process {child}) is at work; "
        "wait for it or end it\n"
    )
    assert not (folder / "data/models/shop/sasrec").exists()  # DVC takes outputs away before a run
    (checkpoint,) = scratch.glob("*/seed-1.ckpt")
    done = torch.load(checkpoint, weights_only=True)["progress"]["history"]
    assert 0 < len(done) < 30
    assert repository.repro("--single-item", "--force", name) == {name}
    assert repository.hashes("data/models/shop/sasrec") == models
    resumed = repository.read("reports/cells/train/shop--sasrec.json")
    assert resumed["seeds"]["1"]["history"][: len(done)] == done  # to the very millisecond: not run again
    for seed in "01":
        assert curve(resumed, seed) == curve(account, seed)
    assert repository.hashes("data/prepared", "reports/ranks") == untouched
    assert not list(scratch.iterdir())
    sweep(folder / "data/models/shop")


def curve(cell: Any, seed: str) -> list[tuple[float, float]]:
    return [(epoch["loss"], epoch["valid_ndcg@10"]) for epoch in cell["seeds"][seed]["history"]]


def sweep(folder: Path) -> None:
    """Take away what a kill left in a folder: hidden names only."""
    for path in folder.glob(".*"):
        shutil.rmtree(path)


def test_what_a_kill_leaves_is_no_change(repository: Repository) -> None:
    """The half-written output of a killed stage lies beside the real one, where others depend on."""
    script = (
        "import os, signal, sys; from pathlib import Path; from ballast.reproducibility import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    outputs = ["data/features/shop/text", "data/prepared/mall", "reports/ranks/shop--sasrec.parquet"]
    for output in outputs:
        repository.run("python", "-c", script, output, succeeds=False)
    try:
        assert repository.changes() == []
        assert "up to date" in repository.run("dvc", "status")
    finally:
        for output in outputs:
            sweep((repository.folder / output).parent)


# Mistakes


def only_error(output: str) -> str:
    """The one line that starts with "error:"; DVC adds its own below."""
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, output
    assert "Traceback" not in output
    return lines[0]


def mistype_key(params: Any) -> None:
    params["methods"]["sasrec"]["training"]["batchsize"] = 8


def name_unknown_method(params: Any) -> None:
    params["cells"]["shop"]["sasrek"] = {}


def leave_cell_out(params: Any) -> None:
    del params["cells"]["shop"]["sasrec"]


MISTAKES = {
    "a mistyped key": (
        mistype_key,
        "params.yaml: methods.sasrec.training.batchsize: unknown key; did you mean 'batch_size'?",
    ),
    "an unknown method": (
        name_unknown_method,
        "params.yaml: cells.shop.sasrek: unknown method; "
        "known: popularity, item-knn, sasrec, feature-knn, transfer",
    ),
    "a missing cell": (
        leave_cell_out,
        "params.yaml: cells.shop.sasrec is missing: write `sasrec: {}` under cells.shop",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_params_stops_the_pipeline_with_one_line(name: str, repository: Repository) -> None:
    change, message = MISTAKES[name]
    before = repository.hashes("data/models", "reports")
    with repository.changed("params.yaml", change):
        assert repository.stage("train", "--dataset", "shop", "--method", "sasrec", succeeds=False) == (
            f"error: {message}\n"
        )
    assert repository.hashes("data/models", "reports") == before


def test_dvc_stops_at_the_first_stage_and_loses_nothing(repository: Repository) -> None:
    before = repository.hashes("data/models", "reports")
    with repository.changed("params.yaml", mistype_key):
        output = repository.run("dvc", "repro", succeeds=False)
        assert ran(output) == {"fingerprint"}
        assert only_error(output).startswith(
            "error: params.yaml: methods.sasrec.training.batchsize: unknown key"
        )
        after = repository.hashes("data/models", "reports")
        assert {path for path in before if before[path] != after.get(path)} <= {"reports/code.json"}
    assert repository.repro() == {"fingerprint"}
    assert repository.changes() == []


def name_unknown_file(params: Any) -> None:
    params["methods"]["sasrec"]["method"] = "next_itm"


def name_unknown_loss(params: Any) -> None:
    params["methods"]["sasrec"]["model"]["loss"] = {"name": "crossentropy"}


def mistype_setting_of_loss(params: Any) -> None:
    params["methods"]["sasrec"]["model"]["loss"] = {"name": "bce", "negative": 2}


def choose_heads_that_do_not_fit(params: Any) -> None:
    params["methods"]["sasrec"]["model"]["backbone"] = {"name": "sasrec", "heads": 3}


def choose_heads_of_features_that_do_not_fit(params: Any) -> None:
    params["transfer_methods"]["transfer"]["model"]["backbone"] = {"name": "sasrec", "heads": 3}


def tune_what_is_not_there(params: Any) -> None:
    params["methods"]["item-knn"]["model"]["tune"] = {"history_dcay": [0.5]}


def name_unknown_reader(params: Any) -> None:
    params["datasets"]["shop"]["reader"] = {"name": "tabuler"}


def mistype_setting_of_features(params: Any) -> None:
    params["features"]["text"]["dims"] = 8


UNKNOWN_PARTS = {
    "method": (name_unknown_file, "params.yaml: methods.sasrec.method: unknown method 'next_itm'; known: "),
    "loss": (
        name_unknown_loss,
        "params.yaml: methods.sasrec.model.loss: unknown loss 'crossentropy'; known: bce, cross_entropy",
    ),
    "setting": (
        mistype_setting_of_loss,
        "params.yaml: methods.sasrec.model.loss.negative: unknown key; did you mean 'negatives'?",
    ),
    "heads": (
        choose_heads_that_do_not_fit,
        "params.yaml: methods.sasrec: backbone sasrec: dim 8 is not a multiple of heads 3",
    ),
    "heads of features": (
        choose_heads_of_features_that_do_not_fit,
        "params.yaml: transfer_methods.transfer: backbone sasrec: dim 8 is not a multiple of heads 3",
    ),
    "tuned": (
        tune_what_is_not_there,
        "params.yaml: methods.item-knn.model.tune.history_dcay: not a number that item_knn can tune",
    ),
    "reader": (
        name_unknown_reader,
        "params.yaml: datasets.shop.reader.name: unknown reader 'tabuler'; did you mean 'tabular'?",
    ),
    "features": (
        mistype_setting_of_features,
        "params.yaml: features.text.dims: unknown key; did you mean 'dim'?",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN_PARTS)
def test_a_part_that_does_not_exist_is_told_before_anything_is_trained(
    name: str, repository: Repository
) -> None:
    change, message = UNKNOWN_PARTS[name]
    with repository.changed("params.yaml", change):
        error = repository.stage("fingerprint", succeeds=False)
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def drop_seed(cell: Any) -> None:
    del cell["seeds"]["1"]


def spoil(cell: Any) -> None:
    cell["seeds"]["0"]["coverage@10"] = float("nan")


def test_the_report_refuses_what_is_incomplete(repository: Repository) -> None:
    kept = repository.hashes("data/models", "reports")
    cell = "reports/cells/evaluate/shop--sasrec.json"
    with repository.changed(cell, drop_seed):
        output = repository.run("dvc", "repro", "--single-item", "report", succeeds=False)
        assert ran(output) == {"report"}
        assert only_error(output) == (
            "error: cell shop--sasrec: its evaluate cell has the seeds 0, params.yaml asks for 0, 1; "
            "run `dvc repro`"
        )
    ranks = repository.folder / "reports/ranks/shop--item-knn.parquet"
    aside = ranks.rename(repository.folder / ".scratch/ranks.parquet")
    output = repository.stage("report", succeeds=False)
    aside.rename(ranks)
    assert only_error(output).startswith(
        "error: cell shop--item-knn: reports/ranks/shop--item-knn.parquet is missing; run `dvc repro`"
    )
    lost = {path for path in kept if not (repository.folder / path).exists()}
    assert lost == set()
    repository.repro("--single-item", "report")
    assert repository.hashes("data/models", "reports") == kept


# A fresh clone


def test_a_clone_without_data_is_up_to_date_and_redoes_its_report(
    repository: Repository, tmp_path: Path
) -> None:
    clone = Repository(tmp_path / "clone", tmp_path / "home")
    repository.run("git", "clone", "--quiet", str(repository.folder), str(clone.folder))
    assert not (clone.folder / "data/prepared").exists()
    assert ran(clone.run("dvc", "repro", "--allow-missing", "--dry")) == set()
    before = clone.hashes("reports")
    assert "shop.item-knn" not in clone.run("dvc", "metrics", "diff")
    assert ran(clone.run("dvc", "repro", "--single-item", "--force", "report")) == {"report"}
    assert clone.changes() == []
    assert clone.hashes("reports") == before


def test_a_clone_asks_for_what_it_needs(repository: Repository, tmp_path: Path) -> None:
    clone = Repository(tmp_path / "clone", tmp_path / "home")
    repository.run("git", "clone", "--quiet", str(repository.folder), str(clone.folder))
    output = clone.stage("evaluate", "--dataset", "shop", "--method", "sasrec", succeeds=False)
    assert output == (
        "error: data/prepared/shop/interactions.parquet: not found; "
        "run the stage that makes it, or `dvc pull` it\n"
    )
