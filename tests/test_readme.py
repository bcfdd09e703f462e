"""The numbers of README.md, and of each study's, are those of the tables they cite."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", *sorted(ROOT.glob("studies/*/README.md"))]
LINK = re.compile(r"\]\(([^)]+)\)")
SOURCE = re.compile(r"^From \[`([^`]+metrics\.json)`\]", re.MULTILINE)


def rows() -> list[tuple[str, str, str, str, str]]:
    """(source, dataset, method, metric, printed number) of every result table in a README."""
    found = []
    for readme in READMES:
        parts = SOURCE.split(readme.read_text(encoding="utf-8"))
        for cited, text in zip(parts[1::2], parts[2::2], strict=True):
            source = str((readme.parent / cited).relative_to(ROOT))
            lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
            header = [cell.strip() for cell in lines[0].strip("|").split("|")]
            for line in lines[2:]:
                cells = [cell.strip().strip("`*") for cell in line.strip("|").split("|")]
                for name, value in zip(header[2:], cells[2:], strict=True):
                    found.append((source, cells[0], cells[1], name.strip("`"), value))
    return found


def test_readmes_have_results() -> None:
    sources = {source for source, *_ in rows()}
    assert sources >= {"reports/metrics.json", "studies/sequences/reports/metrics.json"}


@pytest.mark.parametrize("study", sorted(path.parent.name for path in ROOT.glob("studies/*/params.yaml")))
def test_every_study_has_a_readme_and_is_listed(study: str) -> None:
    assert ROOT / "studies" / study / "README.md" in READMES
    assert f"(studies/{study}/)" in READMES[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    for link in LINK.findall(readme.read_text(encoding="utf-8")):
        if "://" not in link:
            target = readme.parent / link.partition("#")[0] if not link.startswith("#") else readme
            assert target.exists(), link


@pytest.mark.parametrize(("source", "dataset", "method", "metric", "printed"), rows())
def test_number_is_the_tables(source: str, dataset: str, method: str, metric: str, printed: str) -> None:
    metrics = json.loads((ROOT / source).read_text(encoding="utf-8"))
    digits = len(printed.partition(".")[2])
    assert float(printed) == pytest.approx(metrics[dataset][method][metric], abs=0.51 * 10**-digits)
