"""What the study says about each dataset: the first thing on the page, made from the tests.

A headline and points in words, boards that name whom to pick for which threat, the verdicts on the declared
claims, and the sentences with the evidence behind the boards. Better and worse are said only where a test
holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import MIN_SEEDS
from ballast.params import Params, RobustnessParams
from ballast.reporting import threats, variants
from ballast.reporting.claims import Claim, declared_text
from ballast.reporting.pairs import find
from ballast.reporting.results import Results
from ballast.reporting.tables import best_first

# The share of its NDCG@10 that a method must keep to be said to stand.
STANDS = 0.2

# Pairs or methods that a sentence lists; of more it gives their number.
LISTED = 6

# What a method does beside the other of its pair, by the verdict.
KEEPS = {"better": "keeps more", "worse": "keeps less"}
GAINS = {"more": "lets it gain more", "less": "lets it gain less"}


@dataclass(frozen=True)
class Place:
    """A method in a board, and its figure there; without a method, words alone."""

    method: str
    figure: str


# The second place of a board on which one method stands alone.
ALONE = Place("", "no other attacked")


@dataclass(frozen=True)
class Pick:
    """One line of a board: a threat, two places, what the tests say in short; and the sentence behind it."""

    threat: str
    first: Place
    second: Place
    tested: str
    evidence: str


@dataclass(frozen=True)
class Board:
    """Whom to pick for which threat: what its lines are about, the columns' names, the lines."""

    title: str
    columns: tuple[str, str, str, str]
    picks: list[Pick]


@dataclass(frozen=True)
class Answer:
    """What the study says about one dataset.

    headline: who ranks best. points: the rest about accuracy. boards: whom to pick for which threat. claims:
    the declared ones, with their verdicts. evidence: what is behind the boards, a sentence a line of theirs.
    """

    dataset: str
    is_simulated: bool
    headline: str
    points: list[str] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)
    claims: list[tuple[str, str]] = field(default_factory=list)

    @property
    def evidence(self) -> list[str]:
        """The sentences behind the boards."""
        return [pick.evidence for board in self.boards for pick in board.picks]


def answers(results: Results, params: Params, claims: list[Claim]) -> list[Answer]:
    """One a dataset, in the order of params.yaml."""
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
        headline, *others = _best(rows, results.pairs, labels)
        points = [
            *others,
            *_baseline(rows, results.pairs, labels, params.report.baseline),
            *_added(results.differences[results.differences["dataset"] == name], labels),
            *_transferred(results.transfer[results.transfer["dataset"] == name], labels),
            *_cold(results.popularity[results.popularity["dataset"] == name], labels, claims, name),
        ]
        histories = results.robustness[results.robustness["dataset"] == name]
        boards = [
            Board(
                "What it withstands",
                ("Threat, budget", "Most accuracy left", "Largest share kept", "Declared pairs, tested"),
                [
                    *_robust(histories, _of_histories(results.kept_tests, name), readers, labels),
                    *_threatened(results, params.robustness, name, labels),
                ],
            ),
            Board(
                "How far an attacker pushes an item",
                ("Through, budget", "Furthest with", "Least with", "Declared pairs, tested"),
                [
                    *_pushed(
                        results.promotions[results.promotions["dataset"] == name],
                        results.promotion_tests,
                        labels,
                        params.robustness,
                    ),
                    *_poisoned(fakes, results.poisoning_tests, labels),
                ],
            ),
        ]
        found.append(
            Answer(
                block.label,
                block.is_simulated,
                headline,
                points,
                [board for board in boards if board.picks],
                _declared(claims, name, block.label, params),
            )
        )
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
    tests = {other: find(pairs, top["dataset"], top["method"], other) for other in others}
    open_ = [labels[name] for name, test in tests.items() if test["verdict"] != "better"]
    few = _too_few(pd.Series([test["seeds"] for test in tests.values()]))
    if not open_:
        sentences.append(f"It is better than {_all(len(others))}, after Holm's correction over all pairs.")
    elif len(open_) == len(others):
        sentences.append(f"No test sets it apart from any other method: undecided{few}.")
    else:
        against = "; ".join(open_) if len(open_) <= LISTED else f"the {len(open_)} others"
        sentences.append(
            f"It is better than {len(others) - len(open_)} of the {len(others)} other methods after Holm's "
            f"correction; undecided against {against}{few}."
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
        f"{len(names)} {verdict}" + (f" ({'; '.join(names)})" if 0 < len(names) <= LISTED else "")
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


def _robust(
    frame: pd.DataFrame, tests: pd.DataFrame, readers: set[str], labels: dict[str, str]
) -> list[Pick]:
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
    sentence = " ".join([sentence, *_kept_of_histories(tests, labels)])
    return [
        Pick(
            "corrupted histories",
            Place(labels[str(most)], f"{means[HEADLINE].max():.4f}"),
            Place(labels[str(steady)], f"{100 * means['relative'].max():.0f} %"),
            _decided(tests),
            sentence,
        )
    ]


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
) -> list[Pick]:
    """Which method to pick for which threat: who has most left under the worst attack, and what is tested.

    Told at the largest budget at which anybody stands: beyond it, who has a little more left is chance.
    """
    frame = threats.worst(results.attacks[results.attacks["dataset"] == dataset])
    flags = results.flags[results.flags["dataset"] == dataset]
    picks = []
    for threat, rows in frame.groupby("threat", sort=False):
        if rows["method"].nunique() < 2:
            continue
        best = rows.groupby("budget")["relative"].max()
        told = best[best >= STANDS].index.max()
        if pd.isna(told):
            count, share = rows["method"].nunique(), f"{100 * STANDS:.0f} %"
            least = f"from budget {best.index.min():g} on"
            sentence = f"With {threat}, none of {count} methods keeps {share} of its NDCG@10, {least}."
            nobody = Place("", f"nobody keeps {share}")
            picks.append(Pick(f"{threat}, {best.index.min():g}", nobody, Place("", ""), "", sentence))
            continue
        there = rows[rows["budget"] == told]
        most, steady = there.loc[there[HEADLINE].idxmax()], there.loc[there["relative"].idxmax()]
        tests = results.kept_tests if most["condition"] == threats.MISSING else results.loss_tests
        there_tested = _throughout(tests, dataset, str(threat), float(told), settings)
        tested = _tested(there_tested, labels, KEEPS)
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
        warning = " (checks warn)" if named else ""
        if named:
            sentence += f"; the checks warn about this attack on {' and '.join(labels[m] for m in named)}"
        first = Place(
            labels[most["method"]], f"{most[HEADLINE]:.4f} of {most[f'clean_{HEADLINE}']:.4f}" + warning
        )
        second = Place(labels[steady["method"]], f"{100 * steady['relative']:.0f} %")
        picks.append(Pick(f"{threat}, {told:g}", first, second, _decided(there_tested), sentence + "."))
    return picks


def _at(tests: pd.DataFrame, at: pd.Series, by: Sequence[str]) -> pd.DataFrame:
    """The tests of declared pairs in the condition of `at`, told by the columns `by`."""
    if tests.empty:
        return tests
    keys = ["dataset", *by]
    return tests[(tests[keys] == at[keys]).all(axis=1)]


def _throughout(
    tests: pd.DataFrame, dataset: str, threat: str, budget: float, settings: RobustnessParams
) -> pd.DataFrame:
    """Declared pairs under a threat at a budget, with what all attacks that the budget bounds alike agree on.

    Who has most left is told under each method's own worst attack, which need not be the same for two: a pair
    is decided where every one of them decides it, and in one sense.
    """
    pair = ["method_a", "method_b"]
    if tests.empty:
        return pd.DataFrame(columns=[*pair, "verdict"])
    named = threats.named(tests[tests["dataset"] == dataset], settings)
    there = named[(named["threat"] == threat) & (named["budget"] == budget)]
    verdicts = there.groupby(pair, sort=False)["verdict"]
    return verdicts.agg(lambda all_: all_.iloc[0] if all_.nunique() == 1 else "undecided").reset_index()


def _decided(tests: pd.DataFrame) -> str:
    """How many of the tests are decided, in a few characters."""
    return f"{(tests['verdict'] != 'undecided').sum()} of {len(tests)} decided" if len(tests) else "none"


def _tested(there: pd.DataFrame, labels: dict[str, str], says: dict[str, str]) -> str:
    """What the tests say; says: what a method does beside the other, by verdict."""
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


def _pushed(
    rows: pd.DataFrame, tests: pd.DataFrame, labels: dict[str, str], settings: RobustnessParams
) -> list[Pick]:
    """Through which surface an attacker brings an item furthest, and with whom."""
    picks = []
    for (condition, surface), own in rows.groupby(["condition", "surface"], sort=False):
        if threats.attack_name(str(condition), settings) == threats.PIXELS:
            surface = threats.PIXELS
        there = own[own["budget"] == own["budget"].max()]
        most, least = there.loc[there["attacked"].idxmax()], there.loc[there["attacked"].idxmin()]
        budget = f"{there['budget'].iloc[0]:g}"
        tests_there = _at(tests, most, threats.CURVE)
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
            tested = _tested(tests_there, labels, GAINS)
            sentence += f" ({len(there)} method{'s' if len(there) > 1 else ''}; {tested})."
        furthest, least_far = (_exposed(row, row["attacked"], labels) for row in (most, least))
        least_far = least_far if len(there) > 1 else ALONE
        through = "its vector" if surface == "items" else f"its {surface}"
        picks.append(Pick(f"{through}, {budget}", furthest, least_far, _decided(tests_there), sentence))
    return picks


def _exposed(row: pd.Series, share: float, labels: dict[str, str]) -> Place:
    """Share of the users new to a pushed item who get it into their first 10."""
    return Place(labels[row["method"]], f"{100 * share:.1f} %") if share > 0 else Place("", "nobody's lists")


def _poisoned(rows: pd.DataFrame, tests: pd.DataFrame, labels: dict[str, str]) -> list[Pick]:
    """Whom fake users bring to show what they push, at the largest share of them."""
    picks = []
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
        tests_there = _at(tests, most, ["condition", "share"])
        fakes = f"{100 * there['share'].iloc[0]:g} % fake users"
        sentence = (
            f"With {fakes} ({condition}), a pushed item enters the first 10 of {', of '.join(said)}; over "
            f"seeds, {_tested(tests_there, labels, GAINS)}."
        )
        furthest, least_far = (_exposed(row, row["exposure"], labels) for row in (most, least))
        least_far = least_far if len(there) > 1 else ALONE
        picks.append(Pick(f"{fakes}, {condition}", furthest, least_far, _decided(tests_there), sentence))
    return picks


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
    count = f"{len(sure)} of {len(rows)}" + (": " if said else "") + "; ".join(said)
    return [f"Among the declared pairs alone, tests set apart {count}{_too_few(rows['seeds'])}."]


def _declared(claims: list[Claim], dataset: str, place: str, params: Params) -> list[tuple[str, str]]:
    """The claims of params.yaml and their verdicts."""
    texts = {declared_text(declared, place): declared.text for declared in params.report.claims}
    own = [claim for claim in claims if claim.dataset == dataset and claim.text in texts]
    return [(texts[claim.text], claim.verdict) for claim in own]


def _too_few(seeds: pd.Series) -> str:
    """Why tests over `seeds` decide nothing, where these are too few; 0 stands for pairs that need none."""
    trained = seeds[seeds > 0]
    if trained.empty or trained.max() >= MIN_SEEDS:
        return ""
    return f"; with {_seeds(int(trained.max()))} no test of trained methods decides, {MIN_SEEDS} are needed"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _all(count: int) -> str:
    return "the one other method" if count == 1 else f"all {count} other methods"
