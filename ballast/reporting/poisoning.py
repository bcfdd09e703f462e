"""What fake users do to methods trained with them: exposure of what they push, and collateral damage."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.statistics import bootstrap_means, judge, percentile_interval, seed_interval
from ballast.params import Params, PoisonParams
from ballast.reporting import variants
from ballast.reporting.differences import shares
from ballast.reporting.evidence import Cell, Evidence
from ballast.reporting.tables import (
    Column,
    Table,
    in_pairs,
    interval,
    labelled,
    number,
    p_value,
    percent,
    text,
    verdict,
)

COLUMNS = (
    "dataset",
    "method",
    "condition",
    "share",
    "variant",
    "fake_users",
    "users",
    "seeds",
    "clean_exposure",
    "exposure",
    "exposure_low",
    "exposure_high",
    "control",
    HEADLINE,
    "change",
    "low",
    "high",
)


def effects(evidence: Evidence, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """A row a poisoned dataset and method, beside the control of its base: the same without fake users.

    condition: the attack; share: fake users over real ones. exposure: share of the users new to a pushed item
    who get it in their top 10, mean over items and seeds, lowest and highest seed. control and `ndcg@10`:
    accuracy for real users; change: the relative difference, with its 95 % interval over users.
    """
    params, rows = evidence.params, []
    for (dataset, method), cell in evidence.cells.items():
        block = params.datasets[dataset].poison
        if block is None:
            continue
        control = _control(params, dataset)
        if control is None or (control, method) not in evidence.cells:
            continue
        clean = evidence.cells[control, method]
        before, after = _per_user(clean), _per_user(cell)  # (U,)
        low, high = percentile_interval(bootstrap_means((after - before)[None], draws, rng))
        exposures, scale = _exposures(cell), before.mean() or float("nan")
        row: dict[str, Any] = {
            "dataset": variants.base(params, dataset),
            "method": method,
            "condition": _name(block),
            "share": block.share,
            "variant": dataset,
            "fake_users": evidence.datasets[dataset]["fake_users"],
            "users": len(after),
            "seeds": len(exposures),
            "clean_exposure": np.mean(_exposures(clean)),
            "exposure": np.mean(exposures),
            "exposure_low": min(exposures),
            "exposure_high": max(exposures),
            "control": before.mean(),
            HEADLINE: after.mean(),
            "change": (after.mean() - before.mean()) / scale,
            "low": low[0] / scale,
            "high": high[0] / scale,
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def tests(evidence: Evidence, frame: pd.DataFrame) -> pd.DataFrame:
    """Paired t tests over seeds of the exposure that fake users gain, of the declared pairs of methods.

    A row a pair, attack and share of `frame` (`effects`), one family a dataset. Gained is what is above the
    exposure without fake users, of the same seed. The fake users and what they push are the same in every
    seed, so that the tests speak of other runs, not of other items. "more": with method_a they gain more.
    """
    rows = []
    for variant, own in frame[frame["share"] > 0].groupby("variant", sort=False):
        control = _control(evidence.params, str(variant))
        for a, b in evidence.params.report.declared_pairs():
            if not {a, b} <= set(own["method"]) or {a, b} <= evidence.deterministic:
                continue
            gained = [
                np.array(_exposures(evidence.cells[str(variant), name]))
                - _exposures(evidence.cells[str(control), name])
                for name in (a, b)
            ]  # (S,) each, or (1,)
            difference = gained[0] - gained[1]
            low, high = seed_interval(difference)
            # Runs that differ all alike have no t: no difference is sure to be none.
            p = float(stats.ttest_1samp(difference, 0).pvalue) if np.ptp(difference) else float(low == 0)
            rows.append(
                {
                    **own.iloc[0][["dataset", "condition", "share", "users"]],
                    "method_a": a,
                    "method_b": b,
                    "seeds": len(difference),
                    "mean_a": gained[0].mean(),
                    "mean_b": gained[1].mean(),
                    "difference": difference.mean(),
                    "relative": np.nan,
                    "seed_low": low,
                    "seed_high": high,
                    "p": p,
                }
            )
    if not rows:
        return pd.DataFrame(columns=["dataset"])
    judged = [judge(own) for _, own in pd.DataFrame(rows).groupby("dataset", sort=False)]
    judgement = pd.concat(judged, ignore_index=True).drop(columns=["relative", "is_noise"])
    return judgement.replace({"verdict": {"better": "more", "worse": "less"}})


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `effects` with `low` and `high` of exposure, and the control as share 0 of every attack."""
    poisoned = frame[frame["share"] > 0]
    start = poisoned.drop_duplicates(["dataset", "method", "condition"]).assign(
        share=0.0, exposure=lambda rows: rows["clean_exposure"]
    )
    poisoned = poisoned.assign(low=poisoned["exposure_low"], high=poisoned["exposure_high"])
    start = start.assign(low=start["exposure"], high=start["exposure"])
    return pd.concat([start, poisoned], ignore_index=True)


def table(frame: pd.DataFrame, params: Params, labels: Mapping[str, str]) -> Table:
    """Exposure and collateral damage at each share of fake users."""
    rows = frame[frame["share"] > 0]
    columns = [
        Column("Method", labelled(labels), is_number=False),
        Column("Attack", text("condition"), is_number=False),
        Column("Fake users", percent("share")),
        Column("Exposure@10, clean", number("clean_exposure")),
        Column("Exposure@10", number("exposure")),
        Column("Over seeds", interval("exposure_low", "exposure_high")),
        Column("NDCG@10, clean", number("control")),
        Column("NDCG@10", number(HEADLINE)),
        Column("Change", percent("change", "+")),
        Column("95 % over users", _change),
    ]
    headings = {
        str(name): f"{params.datasets[str(name)].label} · {own['users'].iloc[0]:,} users"
        for name, own in rows.groupby("dataset", sort=False)
    }
    note = (
        "Methods are trained anew with the fake users. Exposure@10: share of the real users new to a pushed "
        "item who get it in their top 10, mean over items and seeds; over seeds: lowest and highest. Change: "
        "collateral damage, the accuracy for real users relative to the same without fake users."
    )
    return Table("poisoning", "Fake users in training", rows, columns, note, headings=headings)


def tests_table(frame: pd.DataFrame, params: Params, labels: Mapping[str, str]) -> Table:
    """Whether with one method of a declared pair fake users gain more exposure than with the other."""
    headings = {name: block.label for name, block in params.datasets.items()}
    shown = in_pairs(frame, labels, headings)
    shown = shown.sort_values(["block", "condition", "share"], kind="stable")
    columns = [
        Column("Attack", text("condition"), is_number=False),
        Column("Fake users", percent("share")),
        Column("Gained", percent("mean_a")),
        Column("By the other", percent("mean_b")),
        Column("Points more", lambda row: f"{100 * row['difference']:+.1f}"),
        Column("95 % over seeds", shares("seed_low", "seed_high")),
        Column("Adjusted p", p_value("p_holm")),
        Column("Verdict", verdict, is_number=False),
    ]
    note = (
        "Exposure@10 of pushed items above that without fake users. Differences and intervals in points of a "
        "hundred, seed by seed (paired t test); p adjusted by Holm over all pairs, attacks and shares of a "
        "dataset. Every seed meets the same fake users and items: this speaks of other runs, not of others."
    )
    title = "Paired tests of what fake users gain"
    return Table("poisoning_tests", title, frame, columns, note, "block", shown=shown)


def _change(row: Mapping[Any, Any]) -> str:
    return interval("low", "high", digits=1, spec="+")({key: 100 * row[key] for key in ("low", "high")})


def _name(block: PoisonParams) -> str:
    """The attack with the settings that params.yaml gives it."""
    given = {key: value for key, value in block.attack.items() if key != "name"}
    given |= {"seed": block.seed} if block.seed else {}
    return " ".join([str(block.attack["name"]), *(f"{key} {value}" for key, value in given.items())])


def _control(params: Params, dataset: str) -> str | None:
    """The dataset that is the same in all but its fake users, of whom it has none."""
    wanted = params.datasets[dataset]
    assert wanted.poison is not None
    for name, block in params.datasets.items():
        if block.poison is not None and block.poison.share == 0:
            poison = replace(wanted.poison, attack=block.poison.attack, share=0)
            if replace(wanted, label=block.label, poison=poison) == block:
                return name
    return None


def _exposures(cell: Cell) -> list[float]:
    return [seed["pushed_exposure@10"] for seed in cell.evaluate["seeds"].values()]


def _per_user(cell: Cell) -> np.ndarray:
    """(U,) NDCG@10 of each user, mean over seeds."""
    ordered = cell.ranks.sort_values(["seed", "user_id"])
    return metrics.per_user(HEADLINE, ordered).reshape(ordered["seed"].nunique(), -1).mean(axis=0)
