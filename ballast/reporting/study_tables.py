"""The report's tables, built from its results."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from ballast.evaluation.metrics import ACTIVITY_BINS, COLD_BIN, HEADLINE, METRICS, POPULARITY_BINS
from ballast.params import Params
from ballast.reporting import chains, differences, factorial, poisoning, threat_tables, transfer
from ballast.reporting.calibration import calibration
from ballast.reporting.claims import Claim, as_frame
from ballast.reporting.pairs import find
from ballast.reporting.results import Results
from ballast.reporting.tables import (
    NOTHING,
    Column,
    Row,
    Table,
    best_first,
    heading,
    interval,
    labelled,
    number,
    p_value,
    percent,
    text,
    verdict,
)


def build(results: Results, params: Params, claims: list[Claim]) -> dict[str, Table]:
    """All tables by name, in the order of the page."""
    labels = {name: block.label for name, block in params.all_methods().items()}
    headings = dataset_headings(results.accuracy, params)
    sampled = dataset_headings(results.robustness, params)
    tables = [
        calibration(results.accuracy, params),
        accuracy(results, labels, headings),
        cutoffs(results, labels, headings),
        *([factorial.table(results.crossed, headings)] if len(results.crossed) else []),
        *([differences.table(results.differences, labels, headings)] if len(results.differences) else []),
        tests(results, params, labels),
        popularity(results, labels, headings),
        activity(results, labels, headings),
        robustness(results, params, labels, sampled),
        *threat_tables.build(results, params, labels, headings),
        budgets(results, sampled),
        degeneration(results, labels, headings),
        *([sampled_protocols(results, labels, headings)] if len(results.sampled) else []),
        *([noise(results, labels, headings)] if len(results.noise) else []),
        *([transfer.table(results.transfer, labels, headings)] if len(results.transfer) else []),
        *([chains.table(results.draws, labels, headings)] if len(results.draws) else []),
        *([poisoning.table(results.poisoning, params, labels)] if len(results.poisoning) else []),
        *(
            [poisoning.tests_table(results.poisoning_tests, params, labels)]
            if len(results.poisoning_tests)
            else []
        ),
        *([tuning(results, labels, headings)] if len(results.tuning) else []),
        cost(results, labels, headings),
        datasets(results, params),
        claims_table(claims, headings),
    ]
    return {table.name: table for table in tables}


def dataset_headings(frame: pd.DataFrame, params: Params) -> dict[str, str]:
    """Dataset id to its label with the number of users and seeds, marked where it is simulated."""
    headings = {}
    for dataset, rows in frame.groupby("dataset", sort=False):
        block = params.datasets[str(dataset)]
        mark = " · SIMULATED" if block.is_simulated else ""
        count = f"{rows['users'].iloc[0]:,} users, {len(block.seeds)} seed{'s'[: len(block.seeds) > 1]}"
        headings[str(dataset)] = f"{block.label}{mark} · {count}"
    return headings


def accuracy(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """Headline metrics with their spread."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("NDCG@10", number(HEADLINE), best=HEADLINE),
        Column("95 % interval", interval("low", "high")),
        Column("sd", number(f"{HEADLINE}_sd")),
        Column("HR@10", number("hr@10"), best="hr@10"),
        Column("MRR", number("mrr"), best="mrr"),
        Column("NDCG@10 unmasked", number(f"{HEADLINE}-unmasked"), best=f"{HEADLINE}-unmasked"),
        Column("HR@10 unmasked", number("hr@10-unmasked"), best="hr@10-unmasked"),
        Column("Tail HR@10", number("tail_hr@10"), best="tail_hr@10"),
        Column("Coverage@10", number("coverage@10", 3), best="coverage@10"),
        Column("Popularity@10", number("mean_popularity@10", 1)),
        Column("Ties", percent("tie_share")),
        Column("Seeds", number("seeds", 0)),
        Column("Trials", number("trials", 0)),
    ]
    note = (
        "Mean over seeds; interval: bootstrap over users; sd: over seeds. History masked; unmasked leaves it "
        "among the candidates. Tail: targets with fewer than 10 training interactions, before any noise, "
        "fake users or sampling of this study. Popularity@10: mean training count of the top 10. Ties: users "
        "whose target ties with another (and is ranked below it). Trials: settings that the pipeline tried "
        "on validation; 1: as written in params.yaml."
    )
    trials = results.cost[["dataset", "method", "trials"]]
    frame = best_first(results.accuracy.merge(trials, on=["dataset", "method"]))
    return Table("accuracy", "Accuracy of each method", frame, columns, note, headings=headings)


def cutoffs(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """Every metric at every cutoff, both masks."""
    frame = best_first(results.accuracy)[["dataset", "method", *METRICS]]
    columns = [Column("Method", labelled(labels), is_number=False)]
    columns += [Column(heading(name), number(name), best=name) for name in METRICS]
    return Table("cutoffs", "Accuracy at every cutoff", frame, columns, headings=headings)


def tests(results: Results, params: Params, labels: Mapping[str, str]) -> Table:
    """Paired tests; all pairs in the CSV, against the baseline and the best method in print."""
    shown = []
    for dataset, rows in best_first(results.accuracy).groupby("dataset", sort=False):
        methods = list(rows["method"])
        for reference, role in [(methods[0], "the best"), (params.report.baseline, "the baseline")]:
            for method in methods if reference in methods else []:
                if method != reference:
                    test = find(results.pairs, str(dataset), method, reference)
                    block = params.datasets[str(dataset)]
                    place = block.label + (" (SIMULATED)" if block.is_simulated else "")
                    shown.append({**test, "block": f"{place}: against {role}, {labels[reference]}"})
    columns = [
        Column("Method", labelled(labels, "method_a"), is_number=False),
        Column("Difference", lambda row: f"{row['difference']:+.4f}"),
        Column("Relative", percent("relative", "+")),
        Column("95 % over users and seeds", interval("low", "high", spec="+")),
        Column("over seeds alone", interval("seed_low", "seed_high", spec="+")),
        Column("Adjusted p", p_value("p_holm")),
        Column(
            "Verdict",
            lambda row: f"{row['verdict']} (noise)" if row["is_noise"] else verdict(row),
            is_number=False,
        ),
    ]
    note = (
        "NDCG@10; p over users (paired bootstrap) and seeds, adjusted by Holm over all pairs of a dataset. "
        "Better or worse only where the adjusted p is below 0.05, the seeds alone agree as well and there "
        "are 3 of them (two methods without seeds: users alone). Noise: a single-seed difference below 6 %."
    )
    frame = pd.DataFrame(shown, columns=[*results.pairs.columns, "block"])
    return Table(
        "tests",
        "Paired tests against the best and the baseline",
        results.pairs,
        columns,
        note,
        "block",
        shown=frame,
    )


def popularity(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """NDCG@10 by how often the target was seen in training."""
    note = "NDCG@10 by the target item's number of training interactions."
    names = {name: f"{name} (cold)" if name == COLD_BIN else name for name in POPULARITY_BINS}
    shown, columns, full = _by_bin(results, results.popularity, names, labels, headings)
    return Table(
        "popularity", "By item popularity", results.popularity, columns, note, headings=full, shown=shown
    )


def activity(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """NDCG@10 by how much is known of the user."""
    note = "NDCG@10 by the number of different items in the user's history, which the ranking leaves out."
    names = {name: name for name in ACTIVITY_BINS if name in set(results.activity["bin"])}
    shown, columns, full = _by_bin(results, results.activity, names, labels, headings)
    return Table("activity", "By user activity", results.activity, columns, note, headings=full, shown=shown)


def _by_bin(
    results: Results,
    frame: pd.DataFrame,
    names: Mapping[str, str],
    labels: Mapping[str, str],
    headings: Mapping[str, str],
) -> tuple[pd.DataFrame, list[Column], dict[str, str]]:
    """Rows, columns and headings of a table with a column a bin, from each bin to how it is called."""
    shown = frame.pivot(index=["dataset", "method"], columns="bin", values=HEADLINE).reset_index()
    shown = _in_order_of(shown, best_first(results.accuracy))
    counts = frame.drop_duplicates(["dataset", "bin"])
    full = {
        name: f"{heading} · users by bin: "
        + ", ".join(f"{row.bin}: {row.users:,}" for row in rows.itertuples())
        for name, heading in headings.items()
        for rows in [counts[counts["dataset"] == name]]
    }
    columns = [Column("Method", labelled(labels), is_number=False)]
    columns += [Column(label, number(name), best=name) for name, label in names.items()]
    return shown, columns, full


def _in_order_of(frame: pd.DataFrame, model: pd.DataFrame) -> pd.DataFrame:
    return model[["dataset", "method"]].merge(frame, on=["dataset", "method"])


def robustness(
    results: Results, params: Params, labels: Mapping[str, str], headings: Mapping[str, str]
) -> Table:
    """What is kept of NDCG@10 at the largest budget of each corruption; all budgets in the CSV."""
    frame = results.robustness
    largest = frame[frame["budget"] == frame.groupby(["dataset", "condition"])["budget"].transform("max")]
    shown = largest[["dataset", "method", "clean_ndcg@10"]].drop_duplicates(["dataset", "method"])
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Clean NDCG@10", number("clean_ndcg@10"), best="clean_ndcg@10"),
    ]
    for kind in params.robustness.kinds:
        own = largest[largest["condition"] == kind][["dataset", "method", "relative", "low", "high"]]
        shown = shown.merge(own.rename(columns={name: f"{kind} {name}" for name in own.columns[2:]}))
        budget = max(params.robustness.budgets)
        columns.append(
            Column(f"{kind} {budget:.0%}".replace("%", " %"), _kept(kind), best=f"{kind} relative")
        )
    area = results.area.groupby(["dataset", "method"], sort=False)["area"].mean().rename("area").reset_index()
    shown = _in_order_of(shown.merge(area), best_first(results.accuracy))
    columns.append(Column("Mean share", percent("area"), best="area"))
    note = (
        "Share of the clean NDCG@10 that is left at the largest budget, with its 95 % bootstrap interval "
        "over users; mean share: over all kinds and budgets. Same users and same noise "
        "for every method. Candidates are what neither history has, clean ones what the clean history has "
        "not: a share may pass 100 % where added items would have ranked above the target."
    )
    return Table(
        "robustness",
        "Robustness to corrupted histories",
        frame,
        columns,
        note,
        headings=headings,
        shown=shown,
    )


def _kept(kind: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value, low, high = (row[f"{kind} {name}"] for name in ("relative", "low", "high"))
        return NOTHING if np.isnan(value) else f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"

    return show


def budgets(results: Results, headings: Mapping[str, str]) -> Table:
    """What each nominal budget came to, mean over methods: only what they can see of it differs."""
    keys = ["dataset", "condition", "surface", "norm", "budget"]
    both = pd.concat([frame for frame in (results.robustness, results.attacks) if len(frame)])
    frame = both.groupby(keys, sort=False)[["size", "truncated", "users"]].mean().reset_index()
    frame = frame.sort_values("dataset", key=lambda names: names.map(list(headings).index), kind="stable")
    columns = [
        Column("Condition", text("condition"), is_number=False),
        Column("Surface", text("surface"), is_number=False),
        Column("Norm", text("norm"), is_number=False),
        Column("Budget", _size("budget")),
        Column("Realised", _size("size")),
        Column("Truncated histories", percent("truncated")),
        Column("Users", number("users", 0)),
    ]
    return Table("budgets", "Budgets asked for and realised", frame, columns, headings=headings)


def _size(key: str) -> Callable[[Row], str]:
    """Shares as such, other budgets as they are given."""
    return lambda row: f"{100 * row[key]:.1f} %" if row["norm"] == "share" else f"{row[key]:.3g}"


def degeneration(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """How far the vectors have collapsed, beside accuracy."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("NDCG@10", number(HEADLINE), best=HEADLINE),
        Column("D", number("dim", 0)),
        Column("Effective rank", number("effective_rank", 1)),
        Column("Rank / D", percent("rank_share")),
        Column("Spectrum's area", number("spectrum_area", 3)),
        Column("Cosine", number("cosine", 3)),
        Column("Cosine, centred", number("cosine_centred", 3)),
        Column("Alignment", number("alignment", 3)),
        Column("Uniformity, items", number("uniformity_items", 3)),
        Column("Uniformity, users", number("uniformity_users", 3)),
    ]
    note = (
        "Of the item vectors at the best checkpoint, without padding; mean over seeds. Effective rank: "
        "exp of the entropy of the normalised singular values. Area: under sigma_k / sigma_1. Cosine: "
        "mean over pairs of items, raw and after taking the mean vector off. Alignment (less is "
        "closer): of test states and their targets. Uniformity (less is more even): of items, and of "
        "test states. Methods without item vectors are left out."
    )
    frame = best_first(results.degeneration)
    return Table("degeneration", "Collapse of the vectors", frame, columns, note, headings=headings)


def sampled_protocols(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """The target among sampled negatives, by protocol."""
    frame = results.sampled
    shown = pd.concat([best_first(rows) for _, rows in frame.groupby(["dataset", "protocol"], sort=False)])
    places = zip(shown["dataset"], shown["protocol"], strict=True)
    shown = shown.assign(block=[f"{headings[name]} · {_protocol(protocol)}" for name, protocol in places])
    names = {"auc": "AUC", "hr@5": "HR@5", "ndcg@5": "NDCG@5", "hr@10": "HR@10", "ndcg@10": "NDCG@10"}
    columns = [Column("Method", labelled(labels), is_number=False)]
    columns += [Column(label, number(name), best=name) for name, label in names.items()]
    note = (
        "The target among negatives outside the user's items, the same for every method and seed; means over "
        "users and seeds. AUC: mean over users of the share of negatives that score below the target, ties "
        "half; elsewhere ties count against the method. Not comparable with the full ranking."
    )
    return Table("sampled", "Against sampled negatives", frame, columns, note, "block", shown=shown)


def _protocol(name: str) -> str:
    negatives, power = name.split("@")
    how = "uniformly" if float(power) == 0 else f"by popularity to the {power}"
    return f"{negatives} negatives drawn {how}"


def noise(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """Whether weights of training sequences know the noise, or follow taste."""
    title, method = "Do the weights know the noise?", Column("Method", labelled(labels), is_number=False)
    replaced = Column("AUC, items replaced", number("auc_replaced", 3), best="auc_replaced")
    about_replaced = (
        "Items replaced: AUC of telling training sequences from copies of them with items replaced, which a "
        "noise model is trained to tell apart, on other users; 0.5 is chance. Means over seeds."
    )
    if results.noise["noise_share"].isna().all():
        frame = best_first(results.noise, "auc_replaced")
        return Table("noise", title, frame, [method, replaced], about_replaced, headings=headings)
    columns = [
        method,
        Column("Noise", percent("noise_share")),
        Column("Noisy sequences", percent("noisy_sequence_share")),
        Column("AUC", number("auc", 3), best="auc"),
        Column("sd", number("auc_sd", 3)),
        replaced,
    ]
    for name, thirds in {
        "length": ("short", "middling", "long"),
        "popularity": ("rare items", "middling items", "popular items"),
    }.items():
        columns += [
            Column(f"AUC, {third}", number(f"auc_by_{name}_{i}", 3)) for i, third in enumerate(thirds, 1)
        ]
    for name in ("popularity", "length"):
        columns.append(Column(f"Correlation with {name}", _signed(f"correlation_{name}")))
        columns.append(Column("clean alone", _signed(f"correlation_{name}_clean")))
    columns += [
        Column("Weight, clean", number("mean_weight_clean", 3)),
        Column("Weight, noisy", number("mean_weight_noisy", 3)),
    ]
    note = (
        "Weights that training gives its sequences, against the truth; means over seeds, sd over seeds. "
        "Noise: share of the training interactions. AUC: of telling sequences without a noisy item from "
        f"those with one, among the items that the method sees; 0.5 is chance. {about_replaced} By thirds of "
        "the users: by number of training interactions, and by mean popularity of the items. Correlation: "
        "Spearman's, of the weight; over all sequences, and over those without noise alone, where it is "
        "about taste."
    )
    return Table("noise", title, best_first(results.noise, "auc"), columns, note, headings=headings)


def _signed(key: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if np.isnan(row[key]) else f"{row[key]:+.3f}"


def tuning(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """How the settings of each row were chosen: the same number of trials for all, on validation."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Trials", number("trials", 0)),
        Column("Seconds", number("seconds", 0)),
        Column("Validation NDCG@10 as written", number("valid_as_written")),
        Column("Chosen", number("valid_chosen"), best="valid_chosen"),
        Column("Settings chosen", text("chosen"), is_number=False),
    ]
    note = "One seed; the best epoch of the best trial. No settings: those written in params.yaml won."
    return Table("tuning", "Tuning", results.tuning, columns, note, headings=headings)


def cost(results: Results, labels: Mapping[str, str], headings: Mapping[str, str]) -> Table:
    """What a method costs, mean over seeds."""
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Training (s)", number("seconds", 1)),
        Column("Epochs", number("epochs", 1)),
        Column("Best epoch", number("best_epoch", 1)),
        Column("Parameters", number("parameters", 0)),
        Column("Peak memory (MB)", number("peak_memory_mb", 0)),
        Column("Targets/s trained", number("targets_per_second", 0)),
        Column("Users/s ranked", number("users_per_second", 0)),
        Column("Threads", number("threads", 0)),
        Column("Device", text("device"), is_number=False),
    ]
    return Table(
        "cost", "Cost", results.cost, columns, "Mean over seeds, a seed at a time.", headings=headings
    )


def datasets(results: Results, params: Params) -> Table:
    """Sizes and terms of use."""
    frame = results.datasets
    columns = [Column("Dataset", lambda row: params.datasets[row["dataset"]].label, is_number=False)]
    for key, label, digits in [
        ("users", "Users", 0),
        ("items", "Items", 0),
        ("interactions", "Interactions", 0),
        ("mean_length", "Mean length", 1),
        ("density", "Density", 5),
        ("cold_item_share", "Cold items", 3),
    ]:
        if key in frame:
            columns.append(Column(label, number(key, digits)))
    for kind, label in [("text", "Texts"), ("image", "Pictures"), ("price", "Prices")]:
        if f"{kind}_coverage" in frame:
            columns.append(Column(label, percent(f"{kind}_coverage", digits=0)))
    columns += [
        Column(
            "Split", lambda row: params.datasets[row["dataset"]].split.kind.replace("_", " "), is_number=False
        ),
        Column(
            "Data",
            lambda row: "SIMULATED" if params.datasets[row["dataset"]].is_simulated else "real",
            is_number=False,
        ),
        Column("Terms of use", lambda row: params.datasets[row["dataset"]].terms, is_number=False),
    ]
    note = "Texts, pictures, prices: share of the items that have one, read or not."
    return Table("datasets", "Datasets", frame, columns, note, group=None)


def claims_table(claims: list[Claim], headings: Mapping[str, str]) -> Table:
    """Each claim with its verdict and evidence."""
    columns = [
        Column("Claim", text("text"), is_number=False),
        Column("Verdict", text("verdict"), is_number=False),
        Column("Evidence", text("evidence"), is_number=False),
    ]
    return Table("claims", "Claims", as_frame(claims), columns, headings=headings)
