"""The report as one static page: the answer first, then what it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ballast.evaluation.metrics import HEADLINE
from ballast.params import Params, RobustnessParams
from ballast.reporting import threats, variants
from ballast.reporting.claims import Claim, declared_text
from ballast.reporting.pairs import find
from ballast.reporting.plots import Look
from ballast.reporting.results import Results
from ballast.reporting.tables import Table, best_first

# Where pairs of methods are declared whose losses are tested.
_PAIRS = ("report.versus", "report.claims", "report.scratch")

# The share of its NDCG@10 that a method must keep to be said to stand.
STANDS = 0.2

# Pairs that a sentence lists; of more it gives their number.
LISTED = 6

# What a method does beside the other of its pair, by the verdict.
KEEPS = {"better": "keeps more", "worse": "keeps less"}
GAINS = {"more": "lets it gain more", "less": "lets it gain less"}


@dataclass(frozen=True)
class Drawing:
    """A figure on the page: its file stem, a sentence for its caption, an SVG a dataset."""

    name: str
    caption: str
    panels: list[str]


@dataclass(frozen=True)
class Section:
    """One block of the page and where its numbers come from.

    stages: files below stages/ that made the numbers. keys: what in params.yaml drives them.
    """

    anchor: str
    title: str
    lead: str
    stages: Sequence[str]
    keys: Sequence[str]
    tables: Sequence[Table] = ()
    figures: Sequence[Drawing] = ()
    folded: Sequence[Table] = ()


@dataclass(frozen=True)
class Answer:
    """What the study says about one dataset, in sentences."""

    dataset: str
    is_simulated: bool
    sentences: list[str] = field(default_factory=list)


def sections(tables: dict[str, Table], figures: dict[str, Drawing]) -> list[Section]:
    """The page's blocks in reading order; a block without content is left out."""
    corrupted = [drawing for name, drawing in figures.items() if name.startswith("robustness")]
    calibrated = [tables["calibration"]] if len(tables["calibration"].frame) else []
    blocks = [
        Section(
            "calibration",
            "Does the harness reproduce known numbers?",
            "Ours beside published results under the same protocol.",
            ["evaluate", "report"],
            ["report.calibration"],
            calibrated,
        ),
        Section(
            "accuracy",
            "Accuracy",
            "Full ranking of the whole catalogue; one held-out target a user.",
            ["train", "evaluate", "report"],
            ["methods", "cells", "datasets.*.seeds", "report.bootstrap_draws"],
            [tables["accuracy"]],
            [figures["accuracy"], *(figures[n] for kind in variants.KINDS if (n := f"by-{kind}") in figures)],
            [tables["tests"], tables["claims"], tables["cutoffs"]],
        ),
        Section(
            "differences",
            "What does each part add?",
            "Pairs that params.yaml names, not picked by their score.",
            ["train", "evaluate", "report"],
            ["report.versus"],
            [tables["differences"]] if "differences" in tables else [],
            [figures["differences"]] if "differences" in figures else [],
        ),
        Section(
            "backbone-loss",
            "The encoder or the loss?",
            "Every encoder under every loss, and which of the two the differences are due to.",
            ["train", "evaluate", "report"],
            ["methods"],
            [tables["backbone_loss"]] if "backbone_loss" in tables else [],
            [figures["backbone-loss"]] if "backbone-loss" in figures else [],
        ),
        Section(
            "transfer",
            "Does pre-training help?",
            "Adapted from other domains, beside the same from scratch: below zero, transfer is negative.",
            ["pool", "pretrain", "train", "evaluate", "report"],
            ["transfer", "transfer_methods", "report.scratch"],
            [tables[name] for name in ("transfer", "pretraining") if name in tables],
            [
                figures[name]
                for name in (
                    "transfer",
                    "transfer-learning",
                    "similarity",
                    *(f"transfer-by-{kind}" for kind in variants.KINDS),
                    "pretraining",
                )
                if name in figures
            ],
        ),
        Section(
            "popularity",
            "By item popularity and user activity; cold items",
            "The same ranks, split by how often the target was seen in training, and by how much is known of "
            "the user.",
            ["evaluate", "report"],
            ["methods"],
            [tables["popularity"], tables["activity"]],
            [figures[name] for name in ("popularity", "activity") if name in figures],
        ),
        Section(
            "sampled",
            "Against sampled negatives",
            "The target among a few negatives, as some papers judge: to compare with them, not to choose by.",
            ["evaluate", "report"],
            ["evaluation.sampled"],
            [tables["sampled"]] if "sampled" in tables else [],
        ),
        Section(
            "withstands",
            "Which method withstands what?",
            "Share of NDCG@10 kept under each threat, the worst attack of each, mean over budgets.",
            ["robustness", "report"],
            ["robustness"],
            [tables["withstands"]] if "withstands" in tables else [],
            folded=[tables["overlap"]] if "overlap" in tables else [],
        ),
        Section(
            "robustness",
            "Robustness to corrupted histories",
            "The test history is corrupted, the model not retrained: what share of NDCG@10 is left.",
            ["robustness", "report"],
            ["robustness.kinds", "robustness.budgets", "robustness.users", *_PAIRS],
            [tables["robustness"]] if corrupted else [],
            corrupted,
            [tables[name] for name in ("kept_tests", "budgets") if name in tables],
        ),
        Section(
            "threats",
            "Attacks and missing content",
            "Item vectors and content are changed within a budget, or taken away: what is left of NDCG@10.",
            ["robustness", "report"],
            ["robustness.attacks", "robustness.missing", "robustness.attack_users", *_PAIRS],
            [
                tables[name]
                for name in ("attacks", "loss_tests", "promotions", "promotion_tests")
                if name in tables
            ],
            [drawing for name, drawing in figures.items() if name.startswith(("threat", "frontier"))],
            [tables["flags"]] if "flags" in tables else [],
        ),
        Section(
            "poisoning",
            "Fake users in training",
            "Fake users push items, methods are trained anew: who is shown them, and what accuracy is lost.",
            ["preprocess", "train", "evaluate", "report"],
            ["datasets.*.poison", "report.versus"],
            [tables[name] for name in ("poisoning", "poisoning_tests") if name in tables],
            [drawing for name, drawing in figures.items() if name.startswith("poisoning")],
        ),
        Section(
            "diffusion",
            "What does sampling do?",
            "Diffusion models draw their scores: how much is chance, and what longer chains gain.",
            ["evaluate", "report"],
            ["methods.*.model"],
            [tables["draws"]] if "draws" in tables else [],
            [figures[name] for name in ("reverse-steps", "schedule") if name in figures],
        ),
        Section(
            "degeneration",
            "Have the vectors collapsed?",
            "Item vectors and user states at the best checkpoint: how many directions they use.",
            ["evaluate", "report"],
            ["methods"],
            [tables["degeneration"]] if "spectra" in figures else [],
            [
                figures[name]
                for name in ("spectra", "degeneration", "degeneration-robustness", "degeneration-popularity")
                if name in figures
            ],
        ),
        Section(
            "noise",
            "Do the weights know the noise?",
            "Where the truth about training is known: is it noisy sequences that weigh less, or niche taste?",
            ["preprocess", "train", "evaluate", "report"],
            ["datasets.*.noise", "methods.*.model"],
            [tables["noise"]] if "noise" in tables else [],
            [figures[name] for name in ("noise", "noise-length", "noise-popularity") if name in figures],
        ),
        Section(
            "tuning",
            "How were the settings chosen?",
            "As many trials for every method, judged on validation; the test set was not touched.",
            ["tune", "adopt"],
            ["tuning"],
            [tables["tuning"]] if "tuning" in tables else [],
        ),
        Section(
            "cost",
            "Cost",
            "What the accuracy was bought with, on the device named.",
            ["train", "evaluate"],
            ["methods.*.training"],
            [tables["cost"]],
            [figures["training"]] if "training" in figures else [],
        ),
        Section(
            "datasets",
            "Datasets",
            "After filtering and splitting, with their terms of use.",
            ["fetch", "preprocess"],
            ["datasets"],
            [tables["datasets"]],
        ),
    ]
    return [block for block in blocks if block.tables]


def answers(results: Results, params: Params, claims: list[Claim]) -> list[Answer]:
    """Sentences made from the tests: better and worse are said only where a test holds."""
    labels = {name: block.label for name, block in params.all_methods().items()}
    trained = set(results.cost.loc[results.cost["epochs"] > 0, "method"])
    readers = trained - threats.deaf(params)
    found, of_fakes = [], results.poisoning
    for dataset, rows in best_first(results.accuracy).groupby("dataset", sort=False):
        name = str(dataset)
        block = params.datasets[name]
        # Told once, where the first of the datasets is told of that differ in their fake users alone.
        is_own = of_fakes["dataset"] == variants.base(params, name)
        fakes, of_fakes = of_fakes[is_own], of_fakes[~is_own]
        sentences = [
            *_best(rows, results.pairs, labels),
            *_baseline(rows, results.pairs, labels, params.report.baseline),
            *_cold(results.popularity[results.popularity["dataset"] == name], labels, claims, name),
            *_robust(
                results.robustness[results.robustness["dataset"] == name],
                _of_histories(results.kept_tests, name),
                readers,
                labels,
            ),
            *_threatened(results, params.robustness, name, labels),
            *_pushed(
                results.promotions[results.promotions["dataset"] == name], results.promotion_tests, labels
            ),
            *_poisoned(fakes, results.poisoning_tests, labels),
            *_transferred(results.transfer[results.transfer["dataset"] == name], labels),
            *_added(results.differences[results.differences["dataset"] == name], labels),
            *_declared(claims, name, block.label, params),
        ]
        found.append(Answer(block.label, block.is_simulated, sentences))
    return found


def _best(rows: pd.DataFrame, pairs: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    top = rows.iloc[0]
    interval = (
        f"95 % interval {top['low']:.4f} to {top['high']:.4f}; {top['users']:,} users, {_seeds(top['seeds'])}"
    )
    sentences = [f"{labels[top['method']]} has the highest NDCG@10: {top[HEADLINE]:.4f} ({interval})."]
    others = list(rows["method"].iloc[1:])
    if not others:
        return sentences
    verdicts = {other: find(pairs, top["dataset"], top["method"], other)["verdict"] for other in others}
    open_ = [labels[name] for name, verdict in verdicts.items() if verdict != "better"]
    if not open_:
        sentences.append(f"It is better than {_all(len(others))}, after Holm's correction over all pairs.")
    elif len(open_) == len(others):
        sentences.append("No test sets it apart from any other method: undecided.")
    else:
        sentences.append(
            f"It is better than {len(others) - len(open_)} of the {len(others)} other methods after Holm's "
            f"correction; undecided against {'; '.join(open_)}."
        )
    return sentences


def _baseline(rows: pd.DataFrame, pairs: pd.DataFrame, labels: dict[str, str], baseline: str) -> list[str]:
    methods = list(rows["method"])
    if baseline not in methods or len(methods) < 2:
        return []
    groups: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for method in methods:
        if method != baseline:
            test = find(pairs, rows["dataset"].iloc[0], method, baseline)
            groups[test["verdict"]].append(labels[method])
    said = [
        f"{len(names)} {verdict}" + (f" ({'; '.join(names)})" if names else "")
        for verdict, names in groups.items()
    ]
    return [f"Against the baseline {labels[baseline]}: {', '.join(said)}."]


def _cold(rows: pd.DataFrame, labels: dict[str, str], claims: list[Claim], dataset: str) -> list[str]:
    cold = rows[(rows["bin"] == "0-2") & (rows["users"] > 0)].sort_values(
        HEADLINE, ascending=False, kind="stable"
    )
    if cold.empty or not cold[HEADLINE].iloc[0] > 0:
        return []
    top = cold.iloc[0]
    sentence = (
        f"On cold targets (0-2 training interactions, {top['users']:,} users) {labels[top['method']]} "
        f"scores highest, {top[HEADLINE]:.4f}"
    )
    verdicts = [c.verdict for c in claims if c.dataset == dataset and "cold items" in c.text]
    if not verdicts or top["method"] != "feature-knn":
        sentence += "; not tested"
    elif verdicts[0] == "holds":
        sentence += ", better than every other method"
    else:
        sentence += "; the tests do not set it apart from all others"
    return [sentence + "."]


def _robust(frame: pd.DataFrame, tests: pd.DataFrame, readers: set[str], labels: dict[str, str]) -> list[str]:
    """Who keeps what under corrupted histories, of trained methods that read them."""
    frame = frame[frame["method"].isin(readers) & (frame["budget"] > 0)]
    means = frame.groupby("method", sort=False)[[HEADLINE, "relative"]].mean().dropna()
    if len(means) < 2:
        return []
    most, steady = means[HEADLINE].idxmax(), means["relative"].idxmax()
    sentence = (
        f"Under corrupted histories, mean of all kinds and budgets, {labels[str(most)]} has the highest "
        f"NDCG@10 left of {len(means)} trained methods that read them, {means[HEADLINE].max():.4f}; "
        f"{labels[str(steady)]} keeps the largest share, {100 * means['relative'].max():.0f} %, "
        f"{labels[str(means['relative'].idxmin())]} the smallest, {100 * means['relative'].min():.0f} %; "
        f"{frame['users'].iloc[0]:,} users, means not tested."
    )
    return [sentence, *_kept_of_histories(tests, labels)]


def _of_histories(tests: pd.DataFrame, dataset: str) -> pd.DataFrame:
    if tests.empty:
        return tests
    return tests[(tests["dataset"] == dataset) & (tests["surface"] == threats.HISTORY)]


def _kept_of_histories(tests: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """What the tests of the declared pairs establish, kinds of one pair together."""
    if tests.empty:
        return []
    sure = tests[tests["verdict"] != "undecided"]
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in sure.to_dict("records"):
        names = (row["method_a"], row["method_b"])
        keeps, other = names if row["verdict"] == "better" else names[::-1]
        found.setdefault((keeps, other), {})[row["condition"]] = None
    said = [f"{labels[a]} more than {labels[b]} ({', '.join(kinds)})" for (a, b), kinds in found.items()]
    listed = f": {'; '.join(said)}" if 0 < len(said) <= LISTED else ""
    return [
        f"Of {len(tests)} tests of what declared pairs keep of them, {len(sure)} are decided{listed}; "
        "all are in the table of tests."
    ]


def _threatened(
    results: Results, settings: RobustnessParams, dataset: str, labels: dict[str, str]
) -> list[str]:
    """Which method to pick for which threat: who has most left under the worst attack, and what is tested.

    Told at the largest budget at which anybody stands: beyond it, who has a little more left is chance.
    """
    frame = threats.worst(results.attacks[results.attacks["dataset"] == dataset])
    flags = results.flags[results.flags["dataset"] == dataset]
    sentences = []
    for threat, rows in frame.groupby("threat", sort=False):
        if rows["method"].nunique() < 2:
            continue
        best = rows.groupby("budget")["relative"].max()
        told = best[best >= STANDS].index.max()
        if pd.isna(told):
            count, share = rows["method"].nunique(), f"{100 * STANDS:.0f} %"
            least = f"from budget {best.index.min():g} on"
            sentences.append(f"With {threat}, none of {count} methods keeps {share} of its NDCG@10, {least}.")
            continue
        there = rows[rows["budget"] == told]
        most, steady = there.loc[there[HEADLINE].idxmax()], there.loc[there["relative"].idxmax()]
        tests = results.kept_tests if most["condition"] == threats.MISSING else results.loss_tests
        tested = _tested(tests, most, threats.CURVE, labels, KEEPS)
        sentence = (
            f"With {threat} at budget {told:g}, {labels[most['method']]} has the highest NDCG@10 left of "
            f"{len(there)} methods, {most[HEADLINE]:.4f} of {most[f'clean_{HEADLINE}']:.4f} clean; "
            f"{labels[steady['method']]} keeps the largest share, {100 * steady['relative']:.0f} % "
            f"({most['users']:,} users; {tested})"
        )
        if told < best.index.max():
            sentence += f"; at more than that, nobody keeps {100 * STANDS:.0f} %"
        warned = threats.warned(flags, most, settings)
        named = dict.fromkeys(row["method"] for row in (most, steady) if row["method"] in warned)
        if named:
            sentence += f"; the checks warn about this attack on {' and '.join(labels[m] for m in named)}"
        sentences.append(sentence + ".")
    return sentences


def _tested(
    tests: pd.DataFrame, at: pd.Series, by: Sequence[str], labels: dict[str, str], says: dict[str, str]
) -> str:
    """What the tests of declared pairs say of the condition of `at`, told by the columns `by`.

    says: what a method does beside the other, by verdict.
    """
    if tests.empty:
        return "no pair tested"
    keys = ["dataset", *by]
    there = tests[(tests[keys] == at[keys]).all(axis=1)]
    if there.empty:
        return "no pair tested"
    sure = there[there["verdict"] != "undecided"]
    said = [
        f"{labels[a]} {says[verdict]} than {labels[b]}"
        for a, b, verdict in zip(sure["method_a"], sure["method_b"], sure["verdict"], strict=True)
    ]
    if not said:
        return f"of {len(there)} declared pairs a test sets none apart"
    listed = f": {'; '.join(said)}" if len(said) <= LISTED else ""
    return f"of {len(there)} declared pairs tests set apart {len(said)}{listed}"


def _pushed(rows: pd.DataFrame, tests: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """Through which surface an attacker brings an item furthest, and with whom."""
    sentences = []
    for (_, surface), own in rows.groupby(["condition", "surface"], sort=False):
        there = own[own["budget"] == own["budget"].max()]
        most, least = there.loc[there["attacked"].idxmax()], there.loc[there["attacked"].idxmin()]
        budget = f"{there['budget'].iloc[0]:g}"
        if not most["attacked"] > 0:
            sentence = f"Pushed by its {surface} at budget {budget}, an item enters nobody's first 10."
        else:
            sentence = (
                f"Pushed by its {surface} at budget {budget}, an item enters the first 10 of "
                f"{100 * most['attacked']:.1f} % of the users new to it with {labels[most['method']]} "
                f"({100 * most['clean']:.1f} % before)"
            )
            if len(there) > 1:
                sentence += f", of {100 * least['attacked']:.1f} % with {labels[least['method']]}"
            tested = _tested(tests, most, threats.CURVE, labels, GAINS)
            sentence += f" ({len(there)} method{'s' if len(there) > 1 else ''}; {tested})."
        sentences.append(sentence)
    return sentences


def _poisoned(rows: pd.DataFrame, tests: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """Whom fake users bring to show what they push, at the largest share of them."""
    sentences = []
    for condition, own in rows[rows["share"] > 0].groupby("condition", sort=False):
        there = own[own["share"] == own["share"].max()]
        most, least = there.loc[there["exposure"].idxmax()], there.loc[there["exposure"].idxmin()]
        said = [
            f"{100 * row['exposure']:.1f} % of real users new to it with {labels[row['method']]}"
            + (
                f" (seeds {100 * row['exposure_low']:.1f} to {100 * row['exposure_high']:.1f})"
                if row["seeds"] > 1
                else ""
            )
            for row in ([most, least] if len(there) > 1 else [most])
        ]
        tested = _tested(tests, most, ["condition", "share"], labels, GAINS)
        sentences.append(
            f"With {100 * there['share'].iloc[0]:g} % fake users ({condition}), a pushed item enters the "
            f"first 10 of {', of '.join(said)}; over seeds, {tested}."
        )
    return sentences


def _transferred(rows: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """What pre-training gained or cost each adapted method."""
    if rows.empty:
        return []
    said = [
        f"{labels[row['method']]} {100 * row['gain']:+.1f} % ({row['verdict']})"
        for row in rows.sort_values("gain", ascending=False, kind="stable").to_dict("records")
    ]
    return [f"Pre-trained against the same from scratch: {'; '.join(said)}."]


def _added(rows: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """What the tests of the declared pairs establish."""
    if rows.empty:
        return []
    sure = rows[(rows["verdict"] != "undecided") & rows["gain"].notna()]
    sure = sure.sort_values("gain", ascending=False, kind="stable")
    said = [
        f"{labels[row['method']]} over {labels[row['reference']]} {100 * row['gain']:+.1f} %"
        for row in sure.to_dict("records")
    ]
    count = f"{len(sure)} of {len(rows)}"
    return [
        f"Among the declared pairs alone, tests set apart {count}{': ' if said else ''}{'; '.join(said)}."
    ]


def _declared(claims: list[Claim], dataset: str, place: str, params: Params) -> list[str]:
    """The verdicts on the claims of params.yaml."""
    texts = {declared_text(declared, place): declared.text for declared in params.report.claims}
    own = [claim for claim in claims if claim.dataset == dataset and claim.text in texts]
    return [f"Claim “{texts[claim.text]}”: {claim.verdict}." for claim in own]


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _all(count: int) -> str:
    return "the one other method" if count == 1 else f"all {count} other methods"


def render(params: Params, blocks: Sequence[Section], told: Sequence[Answer], style: dict[str, Look]) -> str:
    """The page's HTML; it loads nothing."""
    environment = Environment(
        loader=PackageLoader("ballast.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        study=params.study,
        is_simulated=params.study.is_simulated or any(answer.is_simulated for answer in told),
        root=params.root,
        answers=told,
        sections=blocks,
        looks={look.label: look for look in style.values()},
    )
