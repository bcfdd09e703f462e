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


def area(curves: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean height of each relative curve from budget 0 (where it is 1 by definition) to the largest.

    by: the columns that, beside dataset and method, tell curves apart.
    """
    rows = []
    keys = [*KEYS, *by]
    for key, curve in curves.groupby(keys, sort=False):
        above = curve[curve["budget"] > 0].sort_values("budget")
        x = np.concatenate([[0.0], above["budget"]])
        y = np.concatenate([[1.0], above["relative"]])
        height = float(np.trapezoid(y, x) / x[-1]) if len(x) > 1 else float("nan")
        rows.append({**dict(zip(keys, key, strict=True)), "area": height})
    return pd.DataFrame(rows, columns=[*keys, "area"])


def frontier(accuracy: pd.DataFrame, areas: pd.DataFrame) -> pd.DataFrame:
    """Accuracy beside the mean area under a threat: dataset, method, NDCG@10, users, area, is_best.

    `is_best` where no other method of the dataset is at least as good in both and better in one.
    """
    kept = areas.groupby(KEYS, sort=False)["area"].mean().reset_index()
    frame = accuracy[[*KEYS, HEADLINE, "users"]].merge(kept, on=KEYS)
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
    """Paired tests on what two methods lose of NDCG@10, at every budget of every attack that both met.

    Pairs are those that `report.versus` declares. One family a dataset, so that picking the budget at which a
    pair looks best is paid for. "better" means that method_a loses less.
    """
    wanted = [pair for pair in params.report.versus if set(pair) <= set(parts)]
    losses = {name: _losses(parts[name]) for name in {name for pair in wanted for name in pair}}
    # Under one name for each method and threat, so that all share their resamples.
    scores = {
        f"{name} {key}": Scores(-loss, name in deterministic)  # higher is better, as elsewhere
        for name, found in losses.items()
        for key, loss in found.items()
    }
    met = [(a, b, key) for a, b in wanted for key in losses[a] if key in losses[b]]
    if not met:
        return pd.DataFrame(columns=["dataset"])
    tests = judge(compare(scores, [(f"{a} {key}", f"{b} {key}") for a, b, key in met], draws, rng))
    tests["method_a"], tests["method_b"], keys = zip(*met, strict=True)
    tests[CURVE] = pd.DataFrame(list(keys), index=tests.index)
    tests.insert(0, "dataset", str(next(iter(parts.values()))["dataset"].iloc[0]))
    return tests


def _losses(table: pd.DataFrame) -> dict[Hashable, np.ndarray]:
    """(S, U) NDCG@10 lost, by condition, surface, norm and budget."""
    seeds = table["seed"].nunique()
    return {
        key: (own["clean"] - own["noisy"]).to_numpy().reshape(seeds, -1)
        for key, own in table.groupby(CURVE, sort=False)
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
