"""Every study of this project: one pipeline, settings that hold, nothing of the machine it was made on."""

import re
import subprocess
from pathlib import Path

import inputs
import pytest
import torch
import yaml

from ballast.content.settings import parse_settings
from ballast.data import readers, simulated
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.params import Params, load
from ballast.robustness.corruption import KINDS
from ballast.strict import parse

ROOT = Path(__file__).resolve().parents[1]
STUDIES = [ROOT, *sorted(path.parent for path in (ROOT / "studies").glob("*/params.yaml"))]
PLACES = (b"work", b"root", b"home", b"Users", b"mnt", b"tmp")
SHARED = ("study.py", "inputs.py")  # imported by the stages, no stages themselves
COMMANDS = ("adopt.py", "overview.py")  # run by a person, between two runs of the pipeline

each_study = pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)


def params_of(study: Path) -> Params:
    return load(study / "params.yaml")


def test_every_folder_below_studies_is_one() -> None:
    folders = [
        path for path in (ROOT / "studies").iterdir() if path.is_dir() and not path.name.startswith(".")
    ]
    assert set(folders) == set(STUDIES) - {ROOT}


@each_study
def test_the_pipeline_is_the_same_text(study: Path) -> None:
    own = study / "dvc.yaml"
    assert not own.is_symlink()  # `dvc metrics diff` reads git's trees, where a link is its target's name
    assert own.read_bytes() == (ROOT / "dvc.yaml").read_bytes()


@each_study
def test_root_names_the_code(study: Path) -> None:
    root = params_of(study).root
    assert not Path(root).is_absolute()
    assert (study / root).resolve() == ROOT


def test_every_stage_has_its_script_and_every_script_its_stage() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    scripts = {re.findall(r"\$\{root\}/stages/(\w+\.py)", block["cmd"])[0] for block in stages.values()}
    assert scripts == {path.name for path in (ROOT / "stages").glob("*.py")} - {*SHARED, *COMMANDS}


@each_study
def test_every_cell_builds(study: Path) -> None:
    """On a catalogue with the features that the study extracts for the cell's dataset."""
    params = params_of(study)
    for dataset, method in params.grid():
        features = params.features if dataset in params.content_datasets else {}
        vectors = {modality: torch.randn(7, 32) for modality in features}
        missing = dict.fromkeys(vectors, torch.arange(7) == 0)
        info = DatasetInfo(3, 6, torch.tensor([0, 3, 2, 2, 1, 1, 1]), vectors, missing)
        cell = params.cell(dataset, method)
        config = inputs.config(cell, f"{study.name}: {dataset}: {method}")
        for candidate in config.candidates() if hasattr(config, "candidates") else [config]:
            assert registry.build(cell.method, candidate, info).max_len >= 1
        if method in params.methods:
            assert not registry.needed_modalities(config), f"{method} belongs under content_methods"


@each_study
def test_every_setting_of_the_data_holds(study: Path) -> None:
    params = params_of(study)
    for modality, block in params.features.items():
        config = parse_settings(modality, block, f"{study.name}: features.{modality}")
        assert set(getattr(config, "fit_on", [])) <= set(params.datasets)
    for name, dataset in params.datasets.items():
        where = f"{study.name}: datasets.{name}"
        parse(readers.load(dataset.reader["name"]).Config, dataset.reader, where)
        if dataset.source.simulated is not None:
            parse(simulated.ShopConfig, dataset.source.simulated, where)
            assert dataset.is_simulated, f"{where} must be marked as simulated"
        else:
            assert dataset.source.files or dataset.source.path, f"{where} comes from nowhere"
            assert dataset.terms.strip(), f"{where} has no terms of use"


@each_study
def test_what_the_report_names_is_there(study: Path) -> None:
    params = params_of(study)
    assert params.report.baseline in params.all_methods()
    for entry in params.report.calibration:
        assert (entry["dataset"], entry["method"]) in params.grid()
    assert set(params.robustness.kinds) <= set(KINDS)
    blocks = [*params.methods, *params.content_methods, *params.transfer_methods]
    assert len(blocks) == len(set(blocks)), "a method is named twice"
    labels = [block.label for block in params.all_methods().values()]
    assert len(labels) == len(set(labels)), "two methods have the same label"
    for name, pool in params.transfer.pools.items():
        sources = set(pool.sources)
        assert sources <= set(params.content_datasets), f"pool {name} needs features of its domains"
        assert not sources & set(params.transfer.targets), f"pool {name} holds a target domain"


def test_no_file_names_a_place_on_a_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    place = re.compile(
        rb"(?<![\w.:/}])/(?:" + b"|".join([b"work", b"root", b"home", b"Users", b"mnt"]) + rb")/\w"
    )
    found = []
    for name in listing.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            match = place.search(path.read_bytes())
            if match:
                found.append(f"{name}: {match.group().decode()}")
    assert found == []
