"""Tables once as frames for machines (CSV) and once as text for readers (LaTeX, the page)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import ALPHA, MIN_SEEDS

Row = Mapping[str, Any]
NOTHING = "—"


@dataclass(frozen=True)
class Column:
    """One printed column: `show` turns a row of the frame into text.

    `best` names the frame's column whose largest value in each group is set bold.
    """

    label: str
    show: Callable[[Row], str]
    is_number: bool = True
    best: str | None = None


@dataclass(frozen=True)
class Cell:
    """Text of one place in a printed table."""

    text: str
    is_number: bool
    is_best: bool = False


@dataclass(frozen=True)
class Group:
    """Rows under one heading, such as a dataset's."""

    heading: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A frame and how it is printed.

    frame goes to `<name>.csv` whole and unrounded. shown (default: frame) holds the rows that are
    printed, grouped by the column `group`, each under its entry in `headings`.
    """

    name: str
    title: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    note: str = ""
    group: str | None = "dataset"
    headings: Mapping[str, str] = field(default_factory=dict)
    shown: pd.DataFrame | None = None

    def groups(self) -> list[Group]:
        """The printed rows, group by group in the order of the frame."""
        frame = self.frame if self.shown is None else self.shown
        if self.group is None:
            return [Group("", self._rows(frame))]
        names = frame[self.group].drop_duplicates()
        return [
            Group(self.headings.get(name, str(name)), self._rows(frame[frame[self.group] == name]))
            for name in names
        ]

    def _rows(self, frame: pd.DataFrame) -> list[list[Cell]]:
        records: list[dict[str, Any]] = [
            dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)
        ]
        marked = [column.best for column in self.columns if column.best and frame[column.best].nunique() > 1]
        best = {name: frame[name].max() for name in marked}
        return [
            [
                Cell(
                    column.show(row),
                    column.is_number,
                    column.best in best and row[column.best] == best[column.best],
                )
                for column in self.columns
            ]
            for row in records
        ]


def number(key: str, digits: int = 4) -> Callable[[Row], str]:
    """Shows a number with thousands separated; a dash where there is none.

    >>> number("x", 2)({"x": 1234.5}), number("x")({"x": float("nan")})
    ('1,234.50', '—')
    """
    return lambda row: NOTHING if _is_none(row[key]) else f"{row[key]:,.{digits}f}"


def heading(metric: str) -> str:
    """A metric's name as a column's title.

    >>> heading("ndcg@10-unmasked"), heading("mrr")
    ('NDCG@10 unmasked', 'MRR')
    """
    name, _, mask = metric.partition("-")
    return f"{name.upper()} {mask}".rstrip()


def text(key: str) -> Callable[[Row], str]:
    """Shows a column as it is."""
    return lambda row: NOTHING if _is_none(row[key]) else str(row[key])


def percent(key: str, spec: str = "", digits: int = 1) -> Callable[[Row], str]:
    """A share as a percentage."""
    return lambda row: NOTHING if np.isnan(row[key]) else f"{100 * row[key]:{spec}.{digits}f} %"


def labelled(labels: Mapping[str, str], key: str = "method") -> Callable[[Row], str]:
    """The label of the method that the row names."""
    return lambda row: labels[row[key]]


def best_first(frame: pd.DataFrame, by: str = HEADLINE) -> pd.DataFrame:
    """Datasets in their order, the methods of each by falling `by`."""
    order = {name: index for index, name in enumerate(frame["dataset"].unique())}
    keys = pd.DataFrame({"dataset": frame["dataset"].map(order), "score": -frame[by]})
    return frame.loc[keys.sort_values(["dataset", "score"], kind="stable").index].reset_index(drop=True)


def in_pairs(frame: pd.DataFrame, labels: Mapping[str, str], headings: Mapping[str, str]) -> pd.DataFrame:
    """Rows of tests with their `block`: the dataset and the pair of methods."""
    pairs = zip(frame["dataset"], frame["method_a"], frame["method_b"], strict=True)
    return frame.assign(block=[f"{headings[d]} · {labels[a]} against {labels[b]}" for d, a, b in pairs])


def interval(low: str, high: str, digits: int = 4, spec: str = "") -> Callable[[Row], str]:
    """Shows "low to high", a dash where the interval is undefined."""

    def show(row: Row) -> str:
        if _is_none(row[low]) or _is_none(row[high]):
            return NOTHING
        return f"{row[low]:{spec}.{digits}f} to {row[high]:{spec}.{digits}f}"

    return show


def p_value(key: str) -> Callable[[Row], str]:
    """Shows a p-value with three decimals."""
    return lambda row: "< 0.001" if row[key] < 0.001 else f"{row[key]:.3f}"


def verdict(row: Row) -> str:
    """The verdict of a test, and why it is none where p alone would be small enough: seeds are missing.

    >>> verdict({"verdict": "undecided", "seeds": 1, "p_holm": 0.0001})
    'undecided (1 of 3 seeds)'
    """
    is_short = row["verdict"] == "undecided" and 0 < row["seeds"] < MIN_SEEDS and row["p_holm"] < ALPHA
    return f"{row['verdict']} ({row['seeds']:.0f} of {MIN_SEEDS} seeds)" if is_short else str(row["verdict"])


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def csv(frame: pd.DataFrame) -> str:
    """CSV with 10 significant digits, so that the last bits of a machine do not show."""
    return frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def latex(table: Table) -> str:
    """A booktabs `table` environment."""
    columns = "".join("r" if column.is_number else "l" for column in table.columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{_escape(' '.join([table.title + '.', table.note]).strip())}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(_escape(column.label) for column in table.columns) + r" \\",
    ]
    for group in table.groups():
        lines.append(r"\midrule")
        if group.heading:
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{_escape(group.heading)}}}}} \\")
        for row in group.rows:
            cells = [
                rf"\textbf{{{_escape(cell.text)}}}" if cell.is_best else _escape(cell.text) for cell in row
            ]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "—": "--",
    }
)


def _escape(plain: str) -> str:
    return plain.translate(_LATEX)
