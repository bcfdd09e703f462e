"""README's numbers are those of the tables they cite."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = re.compile(r"^From \[`([^`]+metrics\.json)`\]", re.MULTILINE)


def rows() -> list[tuple[str, str, str, str, str]]:
    """(source, dataset, method, metric, printed number) of every result table in README.md."""
    parts = SOURCE.split((ROOT / "README.md").read_text(encoding="utf-8"))
    found = []
    for source, text in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
        header = [cell.strip() for cell in lines[0].strip("|").split("|")]
        for line in lines[2:]:
            cells = [cell.strip().strip("`*") for cell in line.strip("|").split("|")]
            for name, value in zip(header[2:], cells[2:], strict=True):
                found.append((source, cells[0], cells[1], name.strip("`"), value))
    return found


def test_readme_has_results() -> None:
    assert len(rows()) >= 10


@pytest.mark.parametrize(("source", "dataset", "method", "metric", "printed"), rows())
def test_number_is_the_tables(source: str, dataset: str, method: str, metric: str, printed: str) -> None:
    metrics = json.loads((ROOT / source).read_text(encoding="utf-8"))
    digits = len(printed.partition(".")[2])
    assert float(printed) == pytest.approx(metrics[dataset][method][metric], abs=0.51 * 10**-digits)
