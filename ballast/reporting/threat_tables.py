"""Tables of what attacks and missing content do."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import MIN_DIFFERING
from ballast.params import Params, RobustnessParams
from ballast.reporting import threats
from ballast.reporting.differences import shares
from ballast.reporting.results import Results
from ballast.reporting.tables import (
    NOTHING,
    Column,
    Row,
    Table,
    best_first,
    in_pairs,
    labelled,
    number,
    p_value,
    percent,
    text,
    verdict,
)

Labels = Mapping[str, str]

# Left to the CSV where PGD searches the same balls with more steps.
_SINGLE_STEP = ("fgm", "fgsm")


def build(results: Results, params: Params, labels: Labels, headings: Labels) -> list[Table]:
    """Those that have something to say."""
    settings = params.robustness
    makers: dict[str, Callable[[], Table]] = {
        "withstands": lambda: withstands(results, params, labels, headings),
        "overlap": lambda: overlap(results, params, labels, headings),
        "attacks": lambda: attacks(results, settings, labels, headings),
        "promotions": lambda: promotions(results, labels, headings),
        "promotion_tests": lambda: promotion_tests(results, labels, headings),
        "loss_tests": lambda: loss_tests(results, settings, labels, headings),
        "kept_tests": lambda: kept_tests(results, labels, headings),
    }
    needed = {"overlap": "withstands"}
    found = [make() for name, make in makers.items() if len(getattr(results, needed.get(name, name)))]
    return [*found, flags(results, labels, headings)] if len(results.attacks) else found


def withstands(results: Results, params: Params, labels: Labels, headings: Labels) -> Table:
    """Method by threat; a method that reads no history has nothing to withstand there, or no row at all."""
    note = (
        "Share of the clean NDCG@10 that is left, mean over the budgets tested; where several attacks have a "
        "budget in common, of the worst of them at each. First the changes of histories. Bold: the largest "
        "share, which is no test and may be of little (see NDCG@10); a dash: nothing to attack there, "
        "histories are not read, or nothing was ranked among 10 to begin with. Budgets and users are the "
        "same for every method, and differ between threats: compare within a column."
    )
    title = "What each method keeps under each threat"
    return _by_threat(
        "withstands", title, results.withstands, "area", results, params, labels, headings, note
    )


def overlap(results: Results, params: Params, labels: Labels, headings: Labels) -> Table:
    """How far lists stay what they were, whether or not the target was in them: method by threat."""
    frame = threats.overlap(results.robustness, results.attacks, params.robustness)
    note = (
        "Rank-biased overlap of the first 10 places before and after (persistence 0.9; 100 % is the same "
        "list), mean over users, seeds and budgets; where several attacks have a budget in common, of "
        "the one that leaves least NDCG@10. A method that draws its scores draws them anew: its lists differ "
        "by that, too."
    )
    return _by_threat(
        "overlap", "How much of the lists stays", frame, "rbo", results, params, labels, headings, note
    )


def _by_threat(
    name: str,
    title: str,
    frame: pd.DataFrame,
    value: str,
    results: Results,
    params: Params,
    labels: Labels,
    headings: Labels,
    note: str,
) -> Table:
    is_history = frame["threat"].str.startswith(f"{threats.HISTORY}:")
    read = frame[~(is_history & frame["method"].isin(threats.deaf(params)))]
    wide = read.pivot(index=["dataset", "method"], columns="threat", values=value).reset_index()
    wide = results.accuracy[["dataset", "method", HEADLINE]].merge(wide, on=["dataset", "method"])
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("NDCG@10", number(HEADLINE), best=HEADLINE),
        *(
            Column(threat.removeprefix(f"{threats.HISTORY}: "), percent(threat, digits=0), best=threat)
            for threat in frame["threat"].drop_duplicates()
        ),
    ]
    return Table(name, title, frame, columns, note, headings=headings, shown=best_first(wide))


def attacks(results: Results, settings: RobustnessParams, labels: Labels, headings: Labels) -> Table:
    """What is left of NDCG@10 under random and the worst directions at every budget; the rest in the CSV."""
    frame = results.attacks
    kinds = frame["condition"].map(lambda key: threats.attack_name(key, settings))
    parts = {"random": threats.worst(frame[kinds == threats.RANDOM]), "worst": threats.worst(frame)}
    shown = pd.concat(rows.sort_values("budget").assign(role=role) for role, rows in parts.items())
    records = cast(list[dict[str, Any]], shown.to_dict("records"))
    shown = shown.assign(column=[_column(row) for row in records], kept=[_kept(row) for row in records])
    keys = ["dataset", "threat", "method"]
    wide = shown.pivot(index=keys, columns="column", values="kept").reset_index()
    wide = wide.merge(shown.drop_duplicates(keys)[[*keys, f"clean_{HEADLINE}", "users"]], on=keys)
    places = frame[keys[:2]].drop_duplicates().reset_index(drop=True).reset_index(names="block_place")
    wide = wide.merge(places, on=keys[:2]).merge(_order(results), on=["dataset", "method"])
    wide = wide.sort_values(["block_place", "place"])
    wide["block"] = [f"{headings[d]} · {t}" for d, t in zip(wide["dataset"], wide["threat"], strict=True)]
    in_order = shown.assign(is_missing=shown["condition"] == threats.MISSING)
    in_order = in_order.sort_values(["is_missing", "role", "budget"])  # random, worst, without
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Users", number("users", 0)),
        Column("Clean NDCG@10", number(f"clean_{HEADLINE}")),
        *(Column(name, _or_nothing(name)) for name in in_order["column"].unique()),
    ]
    note = (
        "Share of the clean NDCG@10 left, with its 95 % bootstrap interval over users; the same users "
        "and budgets for every method. Budgets are in units of the mean norm of the surface's rows; of "
        "pixels in levels of 255, of missing content in shares of the items. Random: a direction at "
        "random. Worst: of all attacks the one that leaves least, `transfer` (made on another seed of the "
        "method) among them. (linf): every entry by itself, as far as "
        "would be a row's share if all moved. Warnings about an attack are in the table of checks."
    )
    return Table("attacks", "Attacks and missing content", frame, columns, note, "block", shown=wide)


def _column(row: Row) -> str:
    role = "without" if row["condition"] == threats.MISSING else row["role"]
    return f"{role} {row['budget']:g}"


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
        Column("Median place, clean", number("clean_place", 0)),
        Column("Median place, attacked", number("attacked_place", 0)),
        Column("Users", number("users", 0)),
    ]
    note = (
        "Share of the users who have not met an item and get it into their first 10 places, before and after "
        "its own content or vector was changed to push it, and its median place among them; means over the "
        "items pushed and seeds."
    )
    return Table(
        "promotions", "Items pushed by an attacker", results.promotions, columns, note, "block", shown=shown
    )


def promotion_tests(results: Results, labels: Labels, headings: Labels) -> Table:
    """Whether pushed items gain more with one method of a declared pair than with the other."""
    frame = results.promotion_tests
    note = (
        "Exposure@10 that pushed items gain, a user's mean over those that the user has not met. "
        "Differences and intervals in points of a hundred, over the users attacked and the seeds; p adjusted "
        "by Holm over all pairs, attacks and budgets of a dataset. It speaks of these items: others may be "
        "easier to push."
    )
    columns = [
        Column("Attack", text("condition"), is_number=False),
        *_test_columns("Gain", "With the other"),
    ]
    title = "Paired tests of what pushed items gain"
    shown = in_pairs(frame, labels, headings)
    return Table("promotion_tests", title, frame, columns, note, "block", shown=shown)


def loss_tests(results: Results, settings: RobustnessParams, labels: Labels, headings: Labels) -> Table:
    """Whether one method of a declared pair keeps more under attack than the other; the stronger in print."""
    frame = results.loss_tests
    kinds = frame["condition"].map(lambda key: threats.attack_name(key, settings))
    note = (
        "Share of the clean NDCG@10 kept under attack; better: keeps more. Differences and intervals in "
        "points of a hundred, over the users attacked and the seeds. p adjusted by Holm over all pairs, "
        "attacks and budgets of a dataset. A loss in NDCG@10 itself would favour who has less to lose. FGM "
        "and FGSM are in the CSV alone where PGD stands beside them; `transfer` was made on another seed. "
        f"With fewer than {MIN_DIFFERING} users who differ, those with a hit to lose or to keep, no pair "
        "is decided. Random directions are not tested. Flagged: the checks warn about this attack on one of "
        "the pair."
    )
    is_left_out = kinds.isin(_SINGLE_STEP if "pgd" in set(kinds) else ())
    shown = in_pairs(frame[~is_left_out], labels, headings)
    columns = [Column("Attack", text("condition"), is_number=False), *_test_columns(show=_flagged)]
    return Table(
        "loss_tests", "Paired tests of what is kept under attack", frame, columns, note, "block", shown=shown
    )


def kept_tests(results: Results, labels: Labels, headings: Labels) -> Table:
    """The same of corrupted histories and missing content."""
    frame = results.kept_tests
    note = (
        "Share of the clean NDCG@10 kept; better: keeps more. Differences and intervals in points of a "
        "hundred, over users and seeds. p adjusted by Holm over all pairs, conditions and budgets of a "
        "dataset, those of histories and of missing content apart. The largest budget in print."
    )
    keys = ["dataset", "method_a", "method_b", "condition", "surface"]
    largest = frame[frame["budget"] == frame.groupby(keys)["budget"].transform("max")]
    columns = [Column("Change", text("condition"), is_number=False), *_test_columns()]
    title = "Paired tests of what is kept of corrupted histories and without content"
    shown = in_pairs(largest, labels, headings)
    return Table("kept_tests", title, frame, columns, note, "block", shown=shown)


def _flagged(row: Row) -> str:
    return f"{verdict(row)}, flagged" if row["flagged"] else verdict(row)


def _test_columns(
    own: str = "Keeps", other: str = "The other keeps", show: Callable[[Row], str] = verdict
) -> list[Column]:
    return [
        Column("Surface", text("surface"), is_number=False),
        Column("Budget", number("budget", 2)),
        Column(own, percent("mean_a")),
        Column(other, percent("mean_b")),
        Column("Points more", lambda row: f"{100 * row['difference']:+.1f}"),
        Column("95 % over users and seeds", shares("low", "high")),
        Column("over seeds alone", shares("seed_low", "seed_high")),
        Column("Adjusted p", p_value("p_holm")),
        Column("Verdict", show, is_number=False),
    ]


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
        "a budget of 0 that changes something, an attack that a weaker one, a smaller budget or fewer steps "
        "beat. Compared is what the attacks raise, a smooth stand-in: in NDCG@10 a stronger one may leave a "
        "little more, so that tables take the worst. Who is not named passed; promotion and pixels have no "
        "check but of more steps."
    )
    return Table("flags", "Checks of the attacks", results.flags, columns, note, headings=headings)
