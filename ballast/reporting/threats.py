"""What attacks and missing content do to each method, as frames of results; corrupted histories stay apart.

A threat is a condition on a surface: PGD on pictures is another threat than PGD on texts. Budgets and users
are the same for every method, so that rows of one threat can be compared, and rows of two cannot.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import Scores, bootstrap_means, compare, judge, percentile_interval
from ballast.params import Params, RobustnessParams
from ballast.reporting.evidence import Cell
from ballast.robustness.summary import exposure
from ballast.robustness.summary import frontier as unbeaten

KEYS = ["dataset", "method"]
CURVE = ["condition", "surface", "norm", "budget"]
HISTORY = "history"
MISSING = "missing"
PIXELS = "pixels"
WEAKEST = "random"


def promotions(settings: RobustnessParams) -> dict[str, str]:
    """Condition in the table to the attack's key, for attacks that push items; each pushes several."""
    names = [name for name, block in settings.attacks.items() if block.attack.get("goal") == "promote"]
    return {f"{name}-{place + 1}": name for name in names for place in range(settings.pushed)}


def threat(condition: str, surface: str) -> str:
    """What a reader calls it; attacks on one surface share the name."""
    if condition == MISSING:
        return f"{surface} missing"
    return "pixels attacked" if condition == PIXELS else f"{surface} attacked"


def tables(cells: Sequence[Cell], settings: RobustnessParams) -> dict[str, dict[str, pd.DataFrame]]:
    """Rows of the cells' tables by group (history, missing, attack, promotion) and method.

    Within a group every method has the same users, in the same order; methods without rows are left out.
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


def worst(frame: pd.DataFrame, settings: RobustnessParams) -> pd.DataFrame:
    """Of the attacks of each row of a surface, the one that left least, beside missing content, by budget.

    Only what one budget and norm bound alike is compared: neither promotions nor a whole table's budget.
    """
    alike = [
        name
        for name, block in settings.attacks.items()
        if block.attack.get("goal") != "promote" and block.attack.get("scope", "row") == "row"
    ]
    rows = frame[frame["condition"].isin([*alike, MISSING])]
    rows = rows.assign(threat=[threat(c, s) for c, s in zip(rows["condition"], rows["surface"], strict=True)])
    rows = rows[rows["condition"] != WEAKEST].sort_values(HEADLINE, kind="stable")
    return rows.drop_duplicates([*KEYS, "threat", "norm", "budget"]).sort_index()


def concerns(about: str, condition: str, surface: str, budget: float) -> bool:
    """Whether a check's warning bears on the attacks that lower ranks through a surface, at a budget.

    It is about an attack, "pgd on image, l2, row, rank at 0.1", about a surface's gradient, "image, l2, row",
    or about a method's scores, which concerns every attack.

    >>> concerns("pgd on image, l2, row, rank at 8", "pgd", "image", 8), concerns("Vbpr", "pgd", "image", 8)
    (True, True)
    >>> concerns("pgd on image, l2, row, rank, promoting 7 at 8", "pgd", "image", 8)
    False
    """
    attack, of_attack, place = about.partition(" on ")
    if not of_attack:
        return "," not in about or about.partition(",")[0] == surface
    place, _, at = place.rpartition(" at ")
    is_same = place.partition(",")[0] == surface and (attack == PIXELS) == (condition == PIXELS)
    return is_same and "promoting" not in place and bool(np.isclose(float(at), budget))


def area(curves: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Share of NDCG@10 kept, mean over the budgets tested: the area under a curve of evenly spaced budgets.

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
    `users`, the mean number of those users.
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
            }
            for key, own in table.groupby([*KEYS, *CURVE], sort=False)
            for _, ranks in own.groupby("seed")
        ]
        rows += each
    names = ["users", "clean", "attacked"]
    frame = pd.DataFrame(rows, columns=[*KEYS, *CURVE, *names])
    return frame.groupby([*KEYS, *CURVE], sort=False)[names].mean().reset_index()


def loss_tests(
    parts: dict[str, pd.DataFrame],
    params: Params,
    deterministic: frozenset[str],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Paired tests on the share of NDCG@10 that two methods keep, at every budget of every attack both met.

    Shares, since who has less to lose loses less. Pairs are those that `report.versus` declares. One family a
    dataset, so that picking the budget at which a pair looks best is paid for. "better": method_a keeps more.
    """
    wanted = [pair for pair in params.report.versus if set(pair) <= set(parts)]
    kept = {name: _kept(parts[name]) for name in {name for pair in wanted for name in pair}}
    # Under one name for each method and threat, so that all share their resamples.
    scores = {
        f"{name} {key}": Scores(share, name in deterministic)
        for name, found in kept.items()
        for key, share in found.items()
    }
    met = [(a, b, key) for a, b in wanted for key in kept[a] if key in kept[b]]
    if not met:
        return pd.DataFrame(columns=["dataset"])
    tests = judge(compare(scores, [(f"{a} {key}", f"{b} {key}") for a, b, key in met], draws, rng))
    tests["method_a"], tests["method_b"], keys = zip(*met, strict=True)
    tests[CURVE] = pd.DataFrame(list(keys), index=tests.index)
    tests.insert(0, "dataset", str(next(iter(parts.values()))["dataset"].iloc[0]))
    return tests


def _kept(table: pd.DataFrame) -> dict[Hashable, np.ndarray]:
    """(S, U) values whose mean is the share of NDCG@10 kept, by condition, surface, norm and budget.

    A ratio of means is no mean over users: each user's value is the share plus what the user moves it by, to
    first order (the delta method). Of who has nothing to lose there is no share, and no entry.
    """
    seeds = table["seed"].nunique()
    found: dict[Hashable, np.ndarray] = {}
    for key, own in table.groupby(CURVE, sort=False):
        noisy, clean = (own[name].to_numpy().reshape(seeds, -1) for name in ("noisy", "clean"))
        if clean.mean() > 0:
            share = noisy.mean() / clean.mean()
            found[key] = share + (noisy - share * clean) / clean.mean()
    return found


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
