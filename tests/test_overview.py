"""The table over all studies: current with their tables, one family of tests, clear about what is missing."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "stages"))

import overview  # noqa: E402

from ballast.errors import BallastError  # noqa: E402


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return overview.table(ROOT / overview.CLAIMS)


def test_committed_table_is_that_of_the_studies(table: pd.DataFrame, tmp_path: Path) -> None:
    kept = pd.read_csv(ROOT / "studies/overview.csv", keep_default_na=False)
    assert list(kept.columns) == list(overview.COLUMNS)
    again = table[list(overview.COLUMNS)]
    again.to_csv(tmp_path / "again.csv", index=False, float_format="%.6g")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again.csv", keep_default_na=False), kept, rtol=1e-4)


def test_rows_are_the_studies_tests(table: pd.DataFrame) -> None:
    row = table[(table["study"] == "studies/multimedia") & (table["over"] == "its base")].iloc[0]
    tests = pd.read_csv(ROOT / "studies/multimedia/reports/tables/tests.csv")
    same = tests[(tests["dataset"] == row["dataset"]) & tests["method_a"].isin(["amr", "amr-base"])]
    one = same[same["method_b"].isin(["amr", "amr-base"])].iloc[0]
    assert {one["mean_a"], one["mean_b"]} == {row["ndcg@10"], row["control_mean"]}
    assert row["gain"] == pytest.approx(row["ndcg@10"] / row["control_mean"] - 1)
    assert row["low"] < row["gain"] < row["high"]


def test_one_family_is_stricter_than_each_pair_alone(table: pd.DataFrame) -> None:
    assert (table["p_holm"] >= table["p"]).all()
    least = table.loc[table["p"].idxmin()]
    assert least["p_holm"] == pytest.approx(min(1.0, least["p"] * len(table)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"control": "amr-bsae"}, "no data set has amr and amr-bsae"),
        ({"datasets": ["hm-tights"]}, "hm-tights has no test of"),
        ({"study": "studies/nowhere"}, "tests.csv: not found"),
        ({"methods": "amr"}, "claim 1: missing or unknown: methods"),
    ],
)
def test_wrong_claim_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    claim = {"paper": "AMR", "study": "studies/multimedia", "method": "amr", "control": "amr-base"}
    claim["over"] = "its base"
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "multimedia").symlink_to(ROOT / "studies/multimedia")
    (folder / "overview.yaml").write_text(yaml.safe_dump({"claims": [claim | change]}), encoding="utf-8")
    with pytest.raises(BallastError, match=said):
        overview.table(folder / "overview.yaml")


def test_command_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "stages/overview.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: studies/overview.yaml: no list of claims")
    assert done.stderr.count("\n") == 1


def test_readme_counts_what_the_table_has(table: pd.DataFrame) -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    established = int((table["verdict"] != "undecided").sum())
    assert f"Of {len(table)} comparisons tested as one family, {established} are established" in text
