"""What attacks and missing content do to each method, as frames of results; corrupted histories stay apart.

A threat is a condition on a surface: PGD on pictures is another threat than PGD on texts. Budgets and users
are the same for every method, so that rows of one threat can be compared, and rows of two cannot.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd

from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import Scores, bootstrap_means, compare, judge, percentile_interval
from ballast.models.registry import method_class
from ballast.params import Params, RobustnessParams
from ballast.reporting.evidence import Cell
from ballast.robustness.summary import exposure
from ballast.robustness.summary import frontier as unbeaten

KEYS = ["dataset", "method"]
CURVE = ["condition", "surface", "norm", "budget"]
Key = tuple[str, str, str, float]  # CURVE
HISTORY = "history"
MISSING = "missing"
PIXELS = "pixels"
RANDOM = "random"
WHOLE = " as one table"


def promotions(settings: RobustnessParams) -> dict[str, str]:
    """Condition in the table to the attack's key, for attacks that push items; each pushes several."""
    names = [name for name, block in settings.attacks.items() if block.attack.get("goal") == "promote"]
    return {f"{name}-{place + 1}": name for name in names for place in range(settings.pushed)}


def deaf(params: Params) -> set[str]:
    """Methods that rank by a user's own vector, or alike for all: histories change nothing for them."""
    return {
        name
        for name, block in params.all_methods().items()
        if block.method == "popularity" or method_class(block.method).learns_users
    }


def attack_name(condition: str, settings: RobustnessParams) -> str:
    """The attack behind a condition, whatever params.yaml calls it; of what is no attack, its own name."""
    block = settings.attacks.get(condition)
    return condition if block is None else str(block.attack["name"])


def threat(condition: str, surface: str, norm: str, settings: RobustnessParams) -> str:
    """What a reader calls it; attacks that a budget bounds alike on one surface share the name."""
    if condition == MISSING:
        return f"{surface} missing"
    if surface == HISTORY:
        change, _, place = condition.partition("-")
        return f"history: {change}" + (f", {place}" if place else "")
    attack = settings.attacks[condition].attack
    if attack["name"] == PIXELS:
        return "pixels attacked"
    if attack.get("scope") == "table":
        return f"{surface} attacked{WHOLE}"
    return f"{surface} attacked" + (" (linf)" if norm == "linf" else "")


def named(frame: pd.DataFrame, settings: RobustnessParams) -> pd.DataFrame:
    """`frame` with the threat of each row."""
    keys = zip(frame["condition"], frame["surface"], frame["norm"], strict=True)
    names = [threat(condition, surface, norm, settings) for condition, surface, norm in keys]
    return frame.assign(threat=pd.Series(names, frame.index, dtype=object))


def tables(cells: Sequence[Cell], settings: RobustnessParams) -> dict[str, dict[str, pd.DataFrame]]:
    """Rows of the cells' tables by group (history, missing, attack, promotion) and method.

    Within a group every method has the same users, in the same order; methods without rows are left out, and
    so are surfaces without content: a catalogue without prices loses none, and withstands nothing by that.
    """
    pushed = promotions(settings)
    groups: dict[str, dict[str, pd.DataFrame]] = {
        name: {} for name in (HISTORY, MISSING, "attack", "promotion")
    }
    for cell in cells:
        table = cell.robustness.astype(dict.fromkeys((*KEYS, "condition", "surface", "norm"), object))
        table = table.assign(
            noisy=metrics.ndcg(table["rank"], 10),
            clean=metrics.ndcg(table["clean_rank"], 10),
            budget=table["budget"].astype(np.float64).round(6),
        ).sort_values([*CURVE, "seed", "user_id"])
        is_missing = table["condition"] == MISSING
        lost = table[is_missing].groupby("surface")["size"].max()
        table = table[~table["surface"].isin(lost.index[lost == 0])]
        group = np.select(
            [table["surface"] == HISTORY, table["condition"] == MISSING, table["condition"].isin(pushed)],
            [HISTORY, MISSING, "promotion"],
            "attack",
        )
        for name, rows in table.groupby(group):
            groups[str(name)][cell.method] = rows
    return groups


def withstood(parts: dict[str, pd.DataFrame], draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """NDCG@10 at each budget of one group, and its ratio to that of the same users' clean state."""
    frames, noisy, clean = [], [], []
    for table in parts.values():
        groups = table.groupby([*KEYS, *CURVE])
        frame = groups[["clean", "noisy", "size", "truncated", "rbo"]].mean().reset_index()
        frame["users"] = table["user_id"].nunique()
        frame["seeds"] = table["seed"].nunique()
        frames.append(frame)
        shape = (len(frame), table["seed"].nunique(), -1)
        noisy.append(table["noisy"].to_numpy().reshape(shape).mean(1))  # (C, U)
        clean.append(table["clean"].to_numpy().reshape(shape).mean(1))
    if not frames:
        names = ["size", "truncated", "rbo", "users", "seeds", "relative", "low", "high"]
        return pd.DataFrame(columns=[*KEYS, *CURVE, f"clean_{HEADLINE}", HEADLINE, *names])
    result = pd.concat(frames, ignore_index=True)
    both = bootstrap_means(np.concatenate([*noisy, *clean]), draws, rng)  # (draws, 2 C)
    numerator, denominator = np.split(both, 2, axis=1)
    # A method that ranks no target in its clean top 10 has nothing to lose: its ratio is undefined.
    ratio = np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
    result["relative"] = result["noisy"] / result["clean"].where(result["clean"] > 0)
    result["low"], result["high"] = percentile_interval(ratio)
    order = {method: index for index, method in enumerate(parts)}
    return result.sort_values(
        ["method", "condition", "budget"],
        key=lambda column: column.map(order) if column.name == "method" else column,
        kind="stable",
    ).rename(columns={"noisy": HEADLINE, "clean": f"clean_{HEADLINE}"})


def worst(frame: pd.DataFrame) -> pd.DataFrame:
    """By threat and budget the condition that left least: attacks that one budget bounds alike.

    Random directions are among them: where one of them does more than a gradient, it is what counts.
    """
    rows = frame.sort_values(HEADLINE, kind="stable")
    return rows.drop_duplicates([*KEYS, "threat", "budget"]).sort_index()


def withstands(histories: pd.DataFrame, attacks: pd.DataFrame, settings: RobustnessParams) -> pd.DataFrame:
    """Share of NDCG@10 that each method keeps under each threat: mean over budgets of the worst condition."""
    both = [named(histories, settings), worst(attacks)]
    return area(pd.concat([frame for frame in both if len(frame)] or both), ["threat"])


def concerns(about: str, attack: str, place: str, budget: float) -> bool:
    """Whether a warning of the checks bears on attacks that lower ranks in a place, "image, l2, row".

    It is about an attack, "pgd on image, l2, row, rank at 0.1", about a surface's gradient, "image, l2, row",
    or about a method's scores, which concerns every attack.

    >>> where = ("pgd", "image, l2, row", 8)
    >>> concerns("pgd on image, l2, row, rank at 8", *where), concerns("Vbpr", *where)
    (True, True)
    >>> concerns("pgd on image, l2, row, rank, promoting 7 at 8", *where)
    False
    >>> concerns("pgd on image, l2, table, rank at 8", *where)
    False
    """
    warned, of_attack, there = about.partition(" on ")
    if not of_attack:  # a gradient serves every norm
        return "," not in about or about.partition(",")[0] == place.partition(",")[0]
    there, _, at = there.rpartition(" at ")
    is_same = there.startswith(f"{place}, ") and (warned == PIXELS) == (attack == PIXELS)
    return is_same and "promoting" not in there and bool(np.isclose(float(at), budget))


def overlap(histories: pd.DataFrame, attacks: pd.DataFrame, settings: RobustnessParams) -> pd.DataFrame:
    """Rank-biased overlap of each method's first 10 before and after: as `withstands`, of whole lists.

    rbo: 1 where the lists are the same, mean over users, seeds and the budgets tested.
    """
    both = [named(histories, settings), worst(attacks)]
    frame = pd.concat([frame for frame in both if len(frame)] or both)
    tested = frame[frame["budget"] > 0].groupby([*KEYS, "threat"], sort=False)
    return tested.agg(rbo=("rbo", "mean"), users=("users", "first")).reset_index()


def warned(flags: pd.DataFrame, at: pd.Series, settings: RobustnessParams) -> set[str]:
    """The methods whose checks warn about the attack `at`, a row of attacks or of tests with its CURVE.

    flags: of the same dataset.
    """
    if at["condition"] not in settings.attacks:
        return set()
    block = settings.attacks[at["condition"]].attack
    place = f"{at['surface']}, {at['norm']}, {block.get('scope', 'row')}"
    where = (str(block["name"]), place, float(at["budget"]))
    return set(flags.loc[[concerns(about, *where) for about in flags["about"]], "method"])


def flagged(tests: pd.DataFrame, flags: pd.DataFrame, settings: RobustnessParams) -> list[str]:
    """Of each test of what is kept under attack, which of its two methods the checks warn about there."""
    found = []
    for row in tests.to_dict("records"):
        own = flags[flags["dataset"] == row["dataset"]]
        named = warned(own, pd.Series(row), settings)
        found.append(" ".join(name for name in (row["method_a"], row["method_b"]) if name in named))
    return found


def area(curves: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Share of NDCG@10 kept, mean over the budgets tested: budgets count alike, however they are spaced.

    Budget 0, where nothing is lost by definition, is no part of it: what keeps nothing at all has 0.
    by: the columns that, beside dataset and method, tell curves apart.
    """
    tested = curves[curves["budget"] > 0].groupby([*KEYS, *by], sort=False)
    kept = tested["relative"].agg(lambda shares: shares.mean(skipna=False))
    return pd.DataFrame({"area": kept, "users": tested["users"].first()}).reset_index()


def frontier(accuracy: pd.DataFrame, areas: pd.DataFrame) -> pd.DataFrame:
    """Accuracy beside the share kept under a threat: dataset, method, NDCG@10, users attacked, area, is_best.

    `is_best` where no other method of the dataset is at least as good in both and better in one.
    """
    kept = areas.groupby(KEYS, sort=False).agg({"area": "mean", "users": "first"}).reset_index()
    frame = accuracy[[*KEYS, HEADLINE]].merge(kept, on=KEYS)
    frame["is_best"] = False
    for _, rows in frame.groupby("dataset", sort=False):
        frame.loc[rows.index, "is_best"] = unbeaten(rows[HEADLINE].to_numpy(), rows["area"].to_numpy())
    return frame


def exposures(parts: dict[str, pd.DataFrame], settings: RobustnessParams) -> pd.DataFrame:
    """Share of the users who have not met a pushed item and get it into their first 10 places.

    A row a method, attack, surface and budget: means over pushed items and seeds, clean and attacked, and
    `users`, the mean number of those users. `clean_place`, `attacked_place`: the item's median place among
    them, which says what the attack gained where the first 10 are out of reach.
    """
    pushed, rows = promotions(settings), []
    for table in parts.values():
        each = [
            {
                **dict(zip([*KEYS, *CURVE], key, strict=True)),
                "condition": pushed[str(key[2])],
                "users": len(ranks),
                "clean": exposure(ranks["clean_rank"].to_numpy()),
                "attacked": exposure(ranks["rank"].to_numpy()),
                "clean_place": ranks["clean_rank"].median(),
                "attacked_place": ranks["rank"].median(),
            }
            for key, own in table.groupby([*KEYS, *CURVE], sort=False)
            for _, ranks in own.groupby("seed")
        ]
        rows += each
    names = ["users", "clean", "attacked", "clean_place", "attacked_place"]
    frame = pd.DataFrame(rows, columns=[*KEYS, *CURVE, *names])
    return frame.groupby([*KEYS, *CURVE], sort=False)[names].mean().reset_index()


def promotion_tests(
    parts: dict[str, pd.DataFrame],
    params: Params,
    deterministic: frozenset[str],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """As `loss_tests`, of the exposure@10 that pushed items gain. "more": with method_a they gain more."""
    gained = {name: _gained(table, params.robustness) for name, table in parts.items()}
    tests = _tests(gained, parts, params, deterministic, draws, rng)
    return tests.replace({"verdict": {"better": "more", "worse": "less"}}) if len(tests) else tests


def loss_tests(
    parts: dict[str, pd.DataFrame],
    params: Params,
    deterministic: frozenset[str],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Paired tests on the share of NDCG@10 that two methods keep, at every budget of what both met.

    Shares, since who has less to lose loses less. Pairs are those that params.yaml declares. One family a
    dataset, so that picking the budget at which a pair looks best is paid for. Random directions are no
    attack, and no part of it. "better": method_a keeps more.
    """
    kept = {name: _kept(table) for name, table in parts.items()}
    return _tests(kept, parts, params, deterministic, draws, rng)


def _tests(
    found: dict[str, dict[Key, np.ndarray]],
    parts: dict[str, pd.DataFrame],
    params: Params,
    deterministic: frozenset[str],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Tests of the declared pairs wherever both have values; found: by method, (S, U) by condition."""
    wanted = [pair for pair in params.report.declared_pairs() if set(pair) <= set(parts)]
    tested = {name for pair in wanted for name in pair}
    # Under one name for each method and threat, so that all share their resamples.
    scores = {
        f"{name} {key}": Scores(values, name in deterministic)
        for name in found
        if name in tested
        for key, values in found[name].items()
    }
    met = [
        (a, b, key)
        for a, b in wanted
        for key in found[a]
        if key in found[b] and attack_name(key[0], params.robustness) != RANDOM
    ]
    if not met:
        return pd.DataFrame(columns=["dataset"])
    tests = judge(compare(scores, [(f"{a} {key}", f"{b} {key}") for a, b, key in met], draws, rng))
    tests["method_a"], tests["method_b"], keys = zip(*met, strict=True)
    tests[CURVE] = pd.DataFrame(list(keys), index=tests.index)
    tests.insert(0, "dataset", str(next(iter(parts.values()))["dataset"].iloc[0]))
    return tests


def _kept(table: pd.DataFrame) -> dict[Key, np.ndarray]:
    """(S, U) values whose mean is the share of NDCG@10 kept, by condition, surface, norm and budget.

    A ratio of means is no mean over users: each user's value is the share plus what the user moves it by, to
    first order (the delta method). Of who has nothing to lose there is no share, and no entry.
    """
    seeds = table["seed"].nunique()
    found: dict[Key, np.ndarray] = {}
    for key, own in table.groupby(CURVE, sort=False):
        noisy, clean = (own[name].to_numpy().reshape(seeds, -1) for name in ("noisy", "clean"))
        if clean.mean() > 0:
            share = noisy.mean() / clean.mean()
            found[cast(Key, key)] = share + (noisy - share * clean) / clean.mean()
    return found


def _gained(table: pd.DataFrame, settings: RobustnessParams) -> dict[Key, np.ndarray]:
    """(S, U) exposure@10 gained by pushed items, mean over those that a user has not met.

    By condition, surface, norm and budget. Who has met them all is no part of it.
    """
    rows = table.assign(
        condition=table["condition"].map(promotions(settings)),
        gained=(table["rank"] <= 10).astype(float) - (table["clean_rank"] <= 10),
    )
    return {
        cast(Key, key): own.groupby(["seed", "user_id"])["gained"].mean().unstack("user_id").to_numpy()
        for key, own in rows.groupby(CURVE, sort=False)
    }


def flags(cells: Sequence[Cell]) -> pd.DataFrame:
    """What the checks said of each method: a row a warning, with the number of seeds that it holds for."""
    rows = [
        {"dataset": cell.dataset, "method": cell.method, "flag": flag["name"], "about": flag["about"],
         "detail": flag["detail"], "seed": seed}
        for cell in cells
        for seed, found in cell.robustness_record.get("flags", {}).items()
        for flag in found
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=[*KEYS, "flag", "about", "detail", "seed"])
    groups = frame.groupby([*KEYS, "flag", "about"], sort=False)
    return groups.agg(seeds=("seed", "nunique"), detail=("detail", "first")).reset_index()
