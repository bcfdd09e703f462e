"""Tables of what attacks and missing content do."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.reporting import threats
from ballast.reporting.differences import shares
from ballast.reporting.results import Results
from ballast.reporting.tables import (
    NOTHING,
    Column,
    Row,
    Table,
    best_first,
    labelled,
    number,
    p_value,
    percent,
    text,
)

Labels = Mapping[str, str]

# Conditions that are printed, as their columns are called.
_NAMES = {"random": "random", "pgd": "PGD", threats.PIXELS: "PGD", threats.MISSING: "without"}


def build(results: Results, labels: Labels, headings: Labels) -> list[Table]:
    """Those that have something to say."""
    frames = {attacks: "attacks", promotions: "promotions", loss_tests: "loss_tests", flags: "attacks"}
    return [make(results, labels, headings) for make, name in frames.items() if len(getattr(results, name))]


def attacks(results: Results, labels: Labels, headings: Labels) -> Table:
    """What is left of NDCG@10 under random and worst directions at every budget; the rest in the CSV."""
    frame = results.attacks
    shown = frame[frame["condition"].isin(_NAMES)]
    records = cast(list[dict[str, Any]], shown.to_dict("records"))
    shown = shown.assign(
        threat=[threats.threat(row["condition"], row["surface"]) for row in records],
        column=[f"{_NAMES[row['condition']]} {row['budget']:g}" for row in records],
        kept=[_kept(row) for row in records],
    )
    keys = ["dataset", "threat", "method"]
    wide = shown.pivot(index=keys, columns="column", values="kept").reset_index()
    wide = wide.merge(shown.drop_duplicates(keys)[[*keys, f"clean_{HEADLINE}", "users"]], on=keys)
    places = shown[keys[:2]].drop_duplicates().reset_index(drop=True).reset_index(names="block_place")
    wide = wide.merge(places, on=keys[:2]).merge(_order(results), on=["dataset", "method"])
    wide = wide.sort_values(["block_place", "place"])
    wide["block"] = [f"{headings[d]} · {t}" for d, t in zip(wide["dataset"], wide["threat"], strict=True)]
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Users", number("users", 0)),
        Column("Clean NDCG@10", number(f"clean_{HEADLINE}")),
        *(Column(name, _or_nothing(name)) for name in dict.fromkeys(shown["column"])),
    ]
    note = (
        "Share of the clean NDCG@10 left, with its 95 % bootstrap interval over users; the same users "
        "and budgets for every method. Budgets are in units of the mean norm of the surface's rows; of "
        "pixels in levels of 255, of missing content in shares of the items. Random: a direction at "
        "random. PGD: the worst one found. Warnings about an attack are in the table of checks."
    )
    return Table("attacks", "Attacks and missing content", frame, columns, note, "block", shown=wide)


def _order(results: Results) -> pd.DataFrame:
    ordered = best_first(results.accuracy)[["dataset", "method"]]
    return ordered.assign(place=range(len(ordered)))


def _kept(row: Row) -> str:
    if np.isnan(row["relative"]):
        return NOTHING
    if np.isnan(row["low"]):  # some resamples have no hit to lose
        return f"{100 * row['relative']:.0f} %"
    return f"{100 * row['relative']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})"


def _or_nothing(key: str) -> Callable[[Row], str]:
    return lambda row: row[key] if isinstance(row[key], str) else NOTHING


def promotions(results: Results, labels: Labels, headings: Labels) -> Table:
    """How far an attacker brings an item into lists."""
    shown = results.promotions.merge(_order(results), on=["dataset", "method"])
    order = ["dataset", "condition", "surface", "budget"]
    shown = pd.concat([rows.sort_values("place") for _, rows in shown.groupby(order, sort=False)])
    places = zip(shown["dataset"], shown["condition"], shown["surface"], shown["budget"], strict=True)
    shown["block"] = [f"{headings[d]} · {c}, {s}, budget {b:g}" for d, c, s, b in places]
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Exposure@10, clean", percent("clean")),
        Column("Attacked", percent("attacked")),
        Column("Users", number("users", 0)),
    ]
    note = (
        "Share of the users who have not met an item and get it into their first 10 places, before and after "
        "its own content or vector was changed to push it; mean over the items pushed and seeds."
    )
    return Table(
        "promotions", "Items pushed by an attacker", results.promotions, columns, note, "block", shown=shown
    )


def loss_tests(results: Results, labels: Labels, headings: Labels) -> Table:
    """Whether one method of a declared pair keeps more than the other; PGD and random in print."""
    frame = results.loss_tests
    shown = frame[frame["condition"].isin(_NAMES)]
    pairs = zip(shown["dataset"], shown["method_a"], shown["method_b"], strict=True)
    shown = shown.assign(block=[f"{headings[d]} · {labels[a]} against {labels[b]}" for d, a, b in pairs])
    columns = [
        Column("Attack", text("condition"), is_number=False),
        Column("Surface", text("surface"), is_number=False),
        Column("Budget", number("budget", 2)),
        Column("Keeps", percent("mean_a")),
        Column("The other keeps", percent("mean_b")),
        Column("Points more", lambda row: f"{100 * row['difference']:+.1f}"),
        Column("95 % over users and seeds", shares("low", "high")),
        Column("over seeds alone", shares("seed_low", "seed_high")),
        Column("Adjusted p", p_value("p_holm")),
        Column("Verdict", text("verdict"), is_number=False),
    ]
    note = (
        "Share of the clean NDCG@10 kept under attack; better: keeps more. Differences and intervals in "
        "points of a hundred, over the users attacked and the seeds. p adjusted by Holm over all pairs, "
        "attacks and budgets of a dataset. A loss in NDCG@10 itself would favour who has less to lose."
    )
    return Table(
        "loss_tests", "Paired tests of what is kept under attack", frame, columns, note, "block", shown=shown
    )


def flags(results: Results, labels: Labels, headings: Labels) -> Table:
    """Signs that an attack failed, so that what a method seems to withstand is not shown."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Warning", text("flag"), is_number=False),
        Column("About", text("about"), is_number=False),
        Column("Seeds", number("seeds", 0)),
        Column("Seen, in the first of them", text("detail"), is_number=False),
    ]
    note = (
        "Checked for every method: scores drawn at random, a gradient that is zero or does not fit the loss, "
        "an attack that a weaker one, a smaller budget or fewer steps beat. Who is not named passed."
    )
    return Table("flags", "Checks of the attacks", results.flags, columns, note, headings=headings)
