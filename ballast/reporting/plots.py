"""Figures as functions of frames. A method looks the same in every figure, and each line is named at its end.

Single-column figures, five inches wide, so that the same drawing reads on a phone and in a paper.
"""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from scipy.optimize import isotonic_regression

from ballast.evaluation.metrics import HEADLINE

# Okabe & Ito (2008) without black and yellow, which vanish on a dark and on a white page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
GREY = "#888888"  # methods without training: the ground everything else stands on
INK = "#1f2328"  # text and axes; becomes the page's own text colour in the SVG
WIDTH = 5.0  # inches
NAME_WIDTH = 44  # characters of a line beside a row
END_WIDTH = 24  # characters of a name beside a curve's end that leave the panel room enough
CROWD = 12  # curves that can be told apart in one panel
NAMED = 8  # of more than those, the ones that are named

# Where each method's curve ends, if it has a finite point.
Ends = Mapping[str, tuple[float, float] | None]

# A long title or label widens the picture instead of being cut at its edge.
_WHOLE: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.08}
_RC: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.color": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "ballast",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn."""

    label: str
    colour: str
    line: str
    marker: str


def looks(labels: Mapping[str, str], deterministic: frozenset[str]) -> dict[str, Look]:
    """A look for each method id, in the order of params.yaml: six colours, then other lines and markers."""
    result = {}
    counts = {True: 0, False: 0}
    for name, label in labels.items():
        is_fixed = name in deterministic
        index = counts[is_fixed]
        counts[is_fixed] += 1
        round_ = index if is_fixed else index // len(COLOURS)
        colour = GREY if is_fixed else COLOURS[index % len(COLOURS)]
        result[name] = Look(label, colour, LINES[round_ % len(LINES)], MARKERS[round_ % len(MARKERS)])
    return result


def _panels(titles: Sequence[str], heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """One panel above the other, each `heights` inches tall without its labels."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.85 * len(heights)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(titles), 1, squeeze=False, gridspec_kw={"height_ratios": list(heights)})[:, 0]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return figure, list(axes)


def accuracy(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """Bars of NDCG@10, the best on top, with 95 % intervals over users. Columns of Results.accuracy."""
    with mpl.rc_context(_RC):
        groups = [
            (str(name), rows.sort_values(HEADLINE)) for name, rows in frame.groupby("dataset", sort=False)
        ]
        heights = [0.22 * len(rows) + 0.1 for _, rows in groups]
        figure, axes = _panels([titles[name] for name, _ in groups], heights)
        for axis, (_, rows) in zip(axes, groups, strict=True):
            colours = [style[method].colour for method in rows["method"]]
            bars = axis.barh(range(len(rows)), rows[HEADLINE], color=colours, height=0.62)
            axis.set_yticks(range(len(rows)), [style[method].label for method in rows["method"]])
            for bar, method in zip(bars, rows["method"], strict=True):
                # Methods that share a colour are told apart by strength, as by line style in curves.
                bar.set_alpha(1 - 0.2 * LINES.index(style[method].line))
            error = [rows[HEADLINE] - rows["low"], rows["high"] - rows[HEADLINE]]
            axis.errorbar(
                rows[HEADLINE], range(len(rows)), xerr=error, fmt="none", ecolor=INK, elinewidth=0.9
            )
            reach = float(rows["high"].max())
            for position, (value, high) in enumerate(zip(rows[HEADLINE], rows["high"], strict=True)):
                axis.text(high + 0.012 * reach, position, f"{value:.4f}", va="center", fontsize=8)
            axis.set_xlim(0, 1.16 * reach)
            axis.set_ylim(-0.6, len(rows) - 0.4)
            axis.set_xlabel("NDCG@10, history masked (95 % interval over users)")
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x")
        figure.set_layout_engine("constrained", hspace=0.04)
    return figure


def robustness(
    frame: pd.DataFrame, kind: str, style: Mapping[str, Look], titles: Mapping[str, str]
) -> Figure:
    """NDCG@10 under one corruption relative to clean, a panel a dataset. Columns of Results.robustness."""
    frame = frame[frame["condition"] == kind]
    norm = str(frame["norm"].iloc[0])

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        for method, curve in rows.groupby("method", sort=False):
            curve = curve[curve["budget"] > 0].sort_values("budget")
            x = np.concatenate([[0.0], curve["budget"]])
            y = np.concatenate([[1.0], curve["relative"]])
            ends[str(method)] = _draw(axis, x, y, style[str(method)], has_markers=True)
        axis.set_xlabel(f"{kind}: budget ({norm} of the history)")
        axis.set_ylabel("NDCG@10 / clean")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return ends

    return _curves(frame, style, titles, draw)


def threat(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """NDCG@10 relative to clean by budget, random directions dotted, a panel a dataset.

    frame: rows of Results.attacks of one threat and norm, one a budget, and `is_random` where it is that of
    random directions.
    """

    def unit(rows: pd.DataFrame) -> str:
        if rows["norm"].iloc[0] == "share":
            return "share of the items"
        return "levels of 255" if "pixels" in str(rows["threat"].iloc[0]) else "of the mean norm"

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        for (method, is_random), curve in rows.groupby(["method", "is_random"], sort=False):
            curve = curve.sort_values("budget")
            x, y = np.concatenate([[0.0], curve["budget"]]), np.concatenate([[1.0], curve["relative"]])
            if is_random:
                look = style[str(method)]
                axis.plot(x, y, color=look.colour, linestyle=":", linewidth=0.8, label=f"_{look.label}")
            else:
                ends[str(method)] = _draw(axis, x, y, style[str(method)], has_markers=True)
        axis.set_xticks(*_spaced([0.0, *sorted(rows["budget"].unique())]))
        has_random = rows["is_random"].any()
        axis.set_xlabel(f"budget ({unit(rows)})" + (", dotted: random" if has_random else ""))
        axis.set_ylabel("NDCG@10 / clean")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return ends

    return _curves(frame, style, titles, draw)


def _spaced(places: list[float]) -> tuple[list[float], list[str]]:
    """Ticks and what is written at them: nothing where it would run into the one before."""
    labels: list[str] = []
    last = -np.inf
    for place in places:
        is_clear = place - last >= 0.12 * max(places)
        labels.append(f"{place:g}" if is_clear else "")
        last = place if is_clear else last
    return places, labels


def frontier(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """Accuracy against what is left of it, a panel a dataset: up and right is better.

    frame: dataset, method, clean NDCG@10, `area` and `is_best`: no other method is better in both.
    """

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        edge = rows[rows["is_best"]].sort_values(HEADLINE)
        axis.step(edge[HEADLINE], edge["area"], where="pre", color=GREY, linewidth=0.8, linestyle="--")
        ends = {}
        for row in rows.to_dict("records"):
            point = (np.array([row[HEADLINE]]), np.array([row["area"]]))
            end = _draw(axis, *point, style[str(row["method"])], has_markers=True)
            if row["is_best"] or len(rows) <= CROWD:
                ends[str(row["method"])] = end
        axis.set_xlabel("NDCG@10, clean, all users (dashed: nobody is better in both)")
        axis.set_ylabel("mean share kept")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        axis.margins(0.12, 0.15)
        return ends

    return _curves(frame, style, titles, draw)


def binned(
    frame: pd.DataFrame,
    style: Mapping[str, Look],
    titles: Mapping[str, str],
    bins: Sequence[str],
    of: str,
) -> Figure:
    """NDCG@10 by bins of something, a panel a dataset. Columns of Results.popularity and Results.activity."""

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends, shown = {}, [name for name in bins if name in set(rows["bin"])]
        for method, curve in rows.groupby("method", sort=False):
            y = curve.set_index("bin")[HEADLINE].reindex(shown).to_numpy()
            ends[str(method)] = _draw(axis, np.arange(len(y)), y, style[str(method)], has_markers=True)
        counts = rows.drop_duplicates("bin").set_index("bin")["users"].reindex(shown)
        ticks = [f"{name}\n{count:,}" for name, count in counts.items()]
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlabel(f"{of}; below, how many users")
        axis.set_ylabel("NDCG@10")
        axis.set_ylim(bottom=0)
        return ends

    return _curves(frame, style, titles, draw)


def training(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """Best validation NDCG@10 so far by epoch, a panel a dataset. Columns of results.best_so_far."""

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        for method, curve in rows.groupby("method", sort=False):
            x, y = curve["epoch"].to_numpy(), curve["best_valid_ndcg@10"].to_numpy()
            ends[str(method)] = _draw(axis, x, y, style[str(method)])
        axis.set_xlabel("epoch (flat once a method has stopped)")
        axis.set_ylabel("best validation NDCG@10")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return ends

    return _curves(frame, style, titles, draw)


def pretraining(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """Validation NDCG@10 of pre-training by epoch, a panel a pool. Columns of Results.pretraining."""

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        for name, curve in rows.groupby("method", sort=False):
            x, y = curve["epoch"].to_numpy(), curve[f"valid_{HEADLINE}"].to_numpy()
            ends[str(name)] = _draw(axis, x, y, style[str(name)])
        axis.set_xlabel("epoch")
        axis.set_ylabel("validation NDCG@10")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return ends

    return _curves(frame, style, titles, draw)


def trend(
    frame: pd.DataFrame,
    style: Mapping[str, Look],
    titles: Mapping[str, str],
    x: str,
    x_label: str,
    y: str = HEADLINE,
    y_label: str = "NDCG@10",
    x_names: Sequence[str] = (),
    doubles: bool = False,
) -> Figure:
    """A curve a method of column `y` by column `x`, with the interval `low` to `high` at each point.

    Gains (`y` is "gain") are drawn in percent about a line at zero. x_names: what x = 0, 1, ... are.
    doubles: x grows by factors, such as 1, 2, 4.
    """
    scale = 100 if y == "gain" else 1

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        if y == "gain":
            axis.axhline(0, color=INK, linewidth=0.8)
        for method, curve in rows.sort_values(x).groupby("method", sort=False):
            places, values = curve[x].to_numpy(), scale * curve[y].to_numpy()
            look = style[str(method)]
            error = [values - scale * curve["low"], scale * curve["high"] - values]
            axis.errorbar(places, values, yerr=error, fmt="none", ecolor=look.colour, elinewidth=0.8)
            ends[str(method)] = _draw(axis, places, values, look, has_markers=True)
        if x_names:
            axis.set_xticks(range(len(x_names)), x_names)
        if doubles:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        return ends

    return _curves(frame, style, titles, draw)


def gains(
    frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str], over: str = ""
) -> Figure:
    """Gains over another row in percent, best on top. Columns of Results.transfer or Results.differences.

    `over` says in words what the other row is; without it, it is the one in the column `reference`. What a
    test establishes is filled; a row far from all others stands at the edge, so that these can be read.
    """
    with mpl.rc_context(_RC):
        groups = [
            (str(name), rows.sort_values("gain")) for name, rows in frame.groupby("dataset", sort=False)
        ]
        is_mixed = not over and frame.groupby("dataset")["reference"].nunique().max() > 1
        named = [_gain_names(rows, style, is_mixed) for _, rows in groups]
        lines = max(name.count("\n") + 1 for names in named for name in names)
        row_height = 0.04 + max(0.26, 0.17 * lines)
        figure, axes = _panels(
            [titles[name] for name, _ in groups], [row_height * len(rows) + 0.2 for _, rows in groups]
        )
        for axis, names, (_, rows) in zip(axes, named, groups, strict=True):
            axis.axvline(0, color=INK, linewidth=0.8)
            left, right = _without_outliers(100 * rows["gain"], 100 * rows["low"], 100 * rows["high"])
            for place, row in enumerate(rows.to_dict("records")):
                gain, low, high = (100 * row[key] for key in ("gain", "low", "high"))
                colour = style[row["method"]].colour
                fill = "none" if row["verdict"] == "undecided" else colour
                if left <= gain <= right:
                    axis.plot([max(low, left), min(high, right)], [place, place], color=colour, zorder=1)
                    axis.plot(gain, place, "o", color=colour, markerfacecolor="white", zorder=2)
                    axis.plot(gain, place, "o", color=colour, markerfacecolor=fill, zorder=3)
                else:  # an arrow
                    edge, arrow = (left, "<") if gain < left else (right, ">")
                    axis.plot(edge, place, arrow, color=colour, markerfacecolor=fill)
                beside = axis.get_yaxis_transform()
                axis.text(1.03, place, f"{gain:+.1f} %", fontsize=8, va="center", transform=beside)
            what = over or ("the other" if is_mixed else style[rows["reference"].iloc[0]].label)
            axis.set_yticks(range(len(rows)), names)
            axis.set_ylim(-0.6, len(rows) - 0.4)
            axis.margins(x=0.05)
            axis.set_xlabel(
                f"NDCG@10 over {what}, %\n(95 % interval over users and seeds; filled: established by a test)"
            )
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x")
        figure.set_layout_engine("constrained", hspace=0.04)
    return figure


def _gain_names(rows: pd.DataFrame, style: Mapping[str, Look], is_mixed: bool) -> list[str]:
    """What stands beside each gain, broken where it would take the room of the axis."""
    names = [textwrap.fill(style[method].label, NAME_WIDTH) for method in rows["method"]]
    if not is_mixed:
        return names
    others = [textwrap.fill(f"over {style[name].label}", NAME_WIDTH) for name in rows["reference"]]
    return [f"{name}\n{other}" for name, other in zip(names, others, strict=True)]


def forest(frame: pd.DataFrame, what: str) -> Figure:
    """Gains of several groups on one axis. Columns `group`, `row` (its name), gain, low, high and verdict."""
    groups = list(dict.fromkeys(frame["group"]))
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(WIDTH, 0.17 * (len(frame) + 1.6 * len(groups))))
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        beside, place, places = axis.get_yaxis_transform(), 0.0, []
        axis.axvline(0, color=INK, linewidth=0.8)
        for group, colour in zip(groups, COLOURS, strict=False):
            axis.text(-0.02, place, group, fontweight="bold", va="center", ha="right", transform=beside)
            for row in frame[frame["group"] == group].sort_values("gain", ascending=False).to_dict("records"):
                place += 1
                gain, low, high = (100 * row[key] for key in ("gain", "low", "high"))
                fill = "white" if row["verdict"] == "undecided" else colour
                axis.plot([low, high], [place, place], color=colour, linewidth=1.2, zorder=1)
                axis.plot(gain, place, "o", color=colour, markerfacecolor=fill, zorder=2)
                axis.text(1.02, place, f"{gain:+.1f} %", fontsize=7, va="center", transform=beside)
                places.append((place, row["row"]))
            place += 1.6
        axis.set_yticks([at for at, _ in places], [name for _, name in places], fontsize=7)
        axis.set_ylim(place - 0.8, -0.8)
        axis.set_xlabel(f"{what}, %\n(95 % interval over users and seeds; filled: established by a test)")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
    return figure


def _without_outliers(gain: pd.Series, low: pd.Series, high: pd.Series) -> tuple[float, float]:
    """Limits that hold every interval, or, where some gain is far from the others, those of the others."""
    inner = gain.sort_values().iloc[1:-1] if len(gain) > 4 else gain
    reach = 2 * (inner.max() - inner.min()) or np.inf
    is_near = gain.between(inner.min() - reach, inner.max() + reach)
    return float(low[is_near].min()), float(high[is_near].max())


def spectra(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """Normalised singular values of the item vectors, a panel a dataset. Columns of Results.spectra."""

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        for method, curve in rows.groupby("method", sort=False):
            ends[str(method)] = _draw(
                axis, curve["share"].to_numpy(), curve["sigma"].to_numpy(), style[str(method)]
            )
        axis.set_xlabel("rank of the singular value / dimension")
        axis.set_ylabel("singular value / largest")
        axis.set_ylim(0, 1)
        return ends

    return _curves(frame, style, titles, draw)


def degeneration(
    frame: pd.DataFrame,
    style: Mapping[str, Look],
    titles: Mapping[str, str],
    y: str = HEADLINE,
    y_label: str = "NDCG@10, history masked",
) -> Figure:
    """A column by effective rank over dimension, a panel a dataset. Columns of Results.degeneration."""

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        ends = {}
        for row in rows.to_dict("records"):
            point = (np.array([row["rank_share"]]), np.array([row[y]]))
            ends[str(row["method"])] = _draw(axis, *point, style[str(row["method"])], has_markers=True)
        axis.set_xlabel("effective rank / dimension")
        axis.set_ylabel(y_label)
        axis.margins(0.15, 0.2)
        return ends

    return _curves(frame, style, titles, draw)


def noise(frame: pd.DataFrame, style: Mapping[str, Look], titles: Mapping[str, str]) -> Figure:
    """AUC of weights by share of noise, a panel a base dataset. Columns of Results.noise."""

    def draw(axis: Axes, rows: pd.DataFrame) -> Ends:
        axis.axhline(0.5, color=GREY, linewidth=0.6)
        ends = {}
        for method, curve in rows.groupby("method", sort=False):
            curve = curve.sort_values("noise_share")
            x, y = curve["noise_share"].to_numpy(), curve["auc"].to_numpy()
            ends[str(method)] = _draw(axis, x, y, style[str(method)], has_markers=True)
            sd = curve["auc_sd"].to_numpy()
            axis.vlines(x, y - sd, y + sd, color=style[str(method)].colour, linewidth=0.8)
        axis.set_xlim(0, max(0.05, 1.1 * rows["noise_share"].max()))
        axis.set_xlabel("noise in training (share of the interactions)")
        axis.set_ylabel("AUC of the weights (0.5: chance)")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return ends

    return _curves(frame, style, titles, draw)


def grid(frame: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """NDCG@10 of each backbone under each loss, a panel a dataset. Columns of factorial.combinations."""
    with mpl.rc_context(_RC):
        groups = list(frame.groupby("dataset", sort=False))
        tables = [rows.pivot_table(index="backbone", columns="loss", values=HEADLINE, sort=False)
                  for _, rows in groups]  # fmt: skip
        figure, axes = _panels([titles[str(name)] for name, _ in groups], [0.3 * len(t) for t in tables])
        for axis, table in zip(axes, tables, strict=True):
            values = table.to_numpy(dtype=np.float64)  # (backbones, losses)
            axis.imshow(values, cmap="cividis", aspect="auto")
            axis.set_xticks(range(table.shape[1]), [str(name).replace("_", " ") for name in table.columns])
            axis.set_yticks(range(len(table)), [str(name).replace("_", "-") for name in table.index])
            middle = (values.min() + values.max()) / 2
            for (row, column), value in np.ndenumerate(values):
                colour = "white" if value < middle else "black"
                axis.text(column, row, f"{value:.4f}", ha="center", va="center", fontsize=8, color=colour)
            axis.tick_params(length=0)
            axis.set_xlabel("loss (NDCG@10, history masked)")
            axis.set_ylabel("backbone")
        figure.set_layout_engine("constrained", hspace=0.04)
    return figure


def _curves(
    frame: pd.DataFrame,
    style: Mapping[str, Look],
    titles: Mapping[str, str],
    draw: Callable[[Axes, pd.DataFrame], Ends],
) -> Figure:
    """A panel a dataset: `draw` fills one from its rows and says where each method's curve ends."""
    with mpl.rc_context(_RC):
        groups = list(frame.groupby("dataset", sort=False))
        heights = [max(1.9, 0.155 * min(rows["method"].nunique(), CROWD) + 0.2) for _, rows in groups]
        figure, axes = _panels([titles[str(name)] for name, _ in groups], heights)
        longest = END_WIDTH
        for axis, (_, rows), inches in zip(axes, groups, heights, strict=True):
            ends = _least_crowded(axis, draw(axis, rows), style)
            _pale_others(axis, {style[name].label for name in ends})
            _name_ends(axis, ends, style, inches)
            longest = max(longest, *(len(style[name].label) for name in ends))
        # Longer names widen the figure instead of narrowing its panels: 0.065 inches a character.
        figure.set_figwidth(WIDTH + 0.065 * (longest - END_WIDTH))
        figure.set_layout_engine("constrained", hspace=0.04)
    return figure


def _least_crowded(axis: Axes, ends: Ends, style: Mapping[str, Look]) -> Ends:
    """All curves, or of too many the highest on average: where all end alike, ends tell nothing."""
    if len(ends) <= CROWD:
        return ends
    means = {line.get_label(): np.nanmean(np.asarray(line.get_ydata(), float)) for line in _curves_of(axis)}
    known = [name for name, end in ends.items() if end is not None]
    return {name: ends[name] for name in sorted(known, key=lambda name: -means[style[name].label])[:NAMED]}


def _curves_of(axis: Axes) -> list[Line2D]:
    """The lines that have a method's name, in the order drawn."""
    return [line for line in axis.lines if not str(line.get_label()).startswith("_")]


def _pale_others(axis: Axes, named: set[str]) -> None:
    """Grey what is not named, with its random directions, and say where its names are."""
    others = {str(line.get_label()) for line in _curves_of(axis)} - named
    for line in axis.lines:
        if str(line.get_label()).removeprefix("_") in others:
            line.set(color=GREY, alpha=0.35, zorder=1, linewidth=0.8)
    if others:
        axis.set_xlabel(f"{axis.get_xlabel()}\npale: {len(others)} others, named in the CSV")


def _draw(
    axis: Axes, x: np.ndarray, y: np.ndarray, look: Look, has_markers: bool = False
) -> tuple[float, float] | None:
    """One curve; returns its last finite point, where its name goes."""
    marker = look.marker if has_markers else ""
    axis.plot(x, y, color=look.colour, linestyle=look.line, marker=marker, label=look.label)
    finite = np.flatnonzero(np.isfinite(y))
    return (float(x[finite[-1]]), float(y[finite[-1]])) if len(finite) else None


def _name_ends(axis: Axes, ends: Ends, style: Mapping[str, Look], inches: float) -> None:
    """Each curve's name right of the panel, moved apart where they overlap; of equals the first on top."""
    axis.grid(axis="y")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right)
    known = [(end, name) for name, end in reversed(list(ends.items())) if end is not None]
    known.sort(key=lambda item: item[0][1])
    if not known:
        return
    gap = 0.145 * (high - low) / inches
    heights = _apart(np.array([end[1] for end, _ in known]), gap, low, high)
    across = axis.transAxes + axis.transData.inverted()  # the axis may be logarithmic
    bend, turn, mark, word = across.transform([(place, 0) for place in (1.015, 1.05, 1.06, 1.08)])[:, 0]
    for (end, name), y in zip(known, heights, strict=True):
        look = style[name]
        way = ([end[0], bend, turn], [end[1], y, y])
        axis.plot(*way, color=look.colour, linewidth=0.6, alpha=0.7, clip_on=False)
        axis.plot(mark, y, color=look.colour, marker=look.marker, clip_on=False)
        axis.text(word, y, look.label, va="center", fontsize=8)


def _apart(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Sorted positions moved as little as can be (least squares) to be `gap` apart, in bounds if they fit.

    With `gap` taken off per step, being apart becomes being sorted, which isotonic regression solves.
    """
    steps = gap * np.arange(len(wanted))
    sorted_ = isotonic_regression(wanted - steps).x
    return np.clip(sorted_, low, max(low, high - steps[-1])) + steps


def save(figure: Figure, frame_csv: str, folder: Path, name: str) -> None:
    """Write `<name>.png`, `.pdf` and `.csv` into `folder`, the same bytes for the same figure.

    Dates and versions are left out of the files; 128 colours are plenty for lines on white.
    """
    with mpl.rc_context(_RC):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", **_WHOLE)
        image = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        image.save(folder / f"{name}.png", optimize=True, dpi=(160, 160))
        figure.savefig(
            folder / f"{name}.pdf",
            metadata={"CreationDate": None, "Creator": None, "Producer": None},
            **_WHOLE,
        )
    (folder / f"{name}.csv").write_text(frame_csv, encoding="utf-8")


def as_svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page, in the page's text colour and font; `name` keeps its ids apart."""
    with mpl.rc_context(_RC):
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}, **_WHOLE
        )
    svg = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body)  # a page knows them
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    return body.replace(INK, "currentColor")
