"""Everything the report says, as long frames: tables, figures, claims and metrics.json are views of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ballast import tuning
from ballast.evaluation import metrics
from ballast.evaluation.metrics import HEADLINE
from ballast.evaluation.sampled import METRICS as SAMPLED
from ballast.evaluation.statistics import (
    Scores,
    bootstrap_means,
    compare,
    judge,
    percentile_interval,
    seed_interval,
)
from ballast.reporting import chains, factorial, poisoning, threats, transfer
from ballast.reporting.differences import differences, user_scores
from ballast.reporting.evidence import Cell, Evidence
from ballast.reporting.threats import KEYS

DIVERSITY = ("coverage@10", "mean_popularity@10")
COLLAPSE = (
    "effective_rank",
    "spectrum_area",
    "cosine",
    "cosine_centred",
    "alignment",
    "uniformity_items",
    "uniformity_users",
)

NOISE = (
    "noise_share",
    "noisy_sequence_share",
    "auc",
    "auc_replaced",
    *(f"auc_by_{name}_{third}" for name in ("length", "popularity") for third in (1, 2, 3)),
    *(f"correlation_{name}{of}" for name in ("length", "popularity") for of in ("", "_clean")),
    "mean_weight_clean",
    "mean_weight_noisy",
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """Long frames, all with `dataset` and most with `method`.

    seeds: a row a seed, every metric. accuracy: a row a method, means, sd, intervals. pairs: all paired
    tests. popularity: by bin of the target's training count; activity: of the user's history. robustness: a
    row a condition and budget.
    area: a row a condition. training: a row an epoch. cost, datasets: one row each. degeneration: a row a
    method that has item vectors, means over seeds. collapse: a row a fifth of its items, rarest first.
    spectra: a row a singular value. tuning: a row a search.
    crossed: a row a method, in a study that crosses backbones and losses (factorial.py). sampled: a row a
    method and sampled protocol. noise: a row a method that weighs its training sequences where the noise is
    known, `users` being those with a sequence. Both are means over seeds. attacks, promotions, loss_tests,
    promotion_tests, flags, withstands: see threats.py; empty where no attack is asked for, but for
    withstands, which has corrupted histories too. kept_tests: like loss_tests, of histories and missing
    content. transfer: a row an adapted method, and pretraining a row an epoch of what it started from
    (transfer.py). poisoning: a row a method trained with fake users, poisoning_tests a row a pair of them
    (poisoning.py). differences: a row a pair that `report.versus` declares (differences.py). draws, chains,
    schedules: of diffusion models (chains.py).
    """

    seeds: pd.DataFrame
    accuracy: pd.DataFrame
    pairs: pd.DataFrame
    popularity: pd.DataFrame
    robustness: pd.DataFrame
    area: pd.DataFrame
    training: pd.DataFrame
    cost: pd.DataFrame
    datasets: pd.DataFrame
    degeneration: pd.DataFrame
    collapse: pd.DataFrame
    spectra: pd.DataFrame
    tuning: pd.DataFrame
    crossed: pd.DataFrame
    sampled: pd.DataFrame
    noise: pd.DataFrame
    attacks: pd.DataFrame
    promotions: pd.DataFrame
    loss_tests: pd.DataFrame
    promotion_tests: pd.DataFrame
    flags: pd.DataFrame
    withstands: pd.DataFrame
    kept_tests: pd.DataFrame
    transfer: pd.DataFrame
    pretraining: pd.DataFrame
    poisoning: pd.DataFrame
    poisoning_tests: pd.DataFrame
    differences: pd.DataFrame
    draws: pd.DataFrame
    chains: pd.DataFrame
    schedules: pd.DataFrame
    activity: pd.DataFrame


def compute(evidence: Evidence, rng: np.random.Generator) -> Results:
    """All frames of a checked study."""
    seeds = pd.concat([_seed_rows(cell) for cell in evidence.cells.values()], ignore_index=True)
    draws = evidence.params.report.bootstrap_draws
    settings = evidence.params.robustness
    groups = {name: threats.tables(evidence.of(name), settings) for name in evidence.names()}
    per_dataset = [
        _dataset_frames(evidence, name, groups[name][threats.HISTORY], draws, rng) for name in groups
    ]
    intervals, pairs, popularity, robustness = (
        pd.concat(parts, ignore_index=True) for parts in zip(*per_dataset, strict=True)
    )
    accuracy, area = _accuracy(seeds).merge(intervals, on=KEYS), threats.area(robustness, ["condition"])
    effects = poisoning.effects(evidence, draws, rng)
    threatened = _threats(evidence, groups, draws, rng)
    return Results(
        seeds=seeds,
        accuracy=accuracy,
        pairs=pairs,
        popularity=popularity,
        robustness=robustness,
        area=area,
        training=_training(evidence),
        cost=pd.DataFrame(
            [
                _cost_row(cell, len(evidence.tuning[key]["trials"]) if key in evidence.tuning else 1)
                for key, cell in evidence.cells.items()
            ]
        ),
        datasets=pd.DataFrame(
            [{"dataset": name, **_plain(evidence.datasets[name])} for name in evidence.names()]
        ),
        degeneration=_degeneration(evidence, accuracy, area),
        collapse=_collapse_bins(evidence),
        spectra=_spectra(evidence),
        tuning=_tuning(evidence),
        crossed=factorial.combinations(accuracy, evidence.params),
        sampled=_sampled(evidence),
        noise=_noise(evidence),
        transfer=transfer.gains(evidence, pairs),
        pretraining=transfer.curves(evidence),
        poisoning=effects,
        poisoning_tests=poisoning.tests(evidence, effects),
        **threatened,
        withstands=threats.withstands(robustness, threatened["attacks"], settings),
        differences=differences(evidence, draws, rng),
        kept_tests=_kept_tests(evidence, groups, draws, rng),
        draws=chains.draws(evidence, accuracy),
        chains=chains.by_steps(evidence),
        schedules=chains.schedules(evidence),
        activity=_activity(evidence, draws, rng),
        promotion_tests=_joined(
            [
                threats.promotion_tests(own["promotion"], evidence.params, evidence.deterministic, draws, rng)
                for own in groups.values()
            ]
        ),
    )


def as_metrics(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """{dataset: {method: {metric: mean over seeds}}}, 5 decimals; what is undefined is left out."""
    names = [*metrics.METRICS, *DIVERSITY, "tail_hr@10", "tie_share"]
    areas = results.area.set_index(KEYS)
    attacked = threats.area(results.attacks, ["condition", "surface"])
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row in results.accuracy.to_dict("records"):
        key = (row["dataset"], row["method"])
        values = {name: row[name] for name in names}
        if key in areas.index:
            own = areas.loc[[key]]
            values |= {f"robustness_area-{c}": a for c, a in zip(own["condition"], own["area"], strict=True)}
        own = attacked[(attacked["dataset"] == key[0]) & (attacked["method"] == key[1])]
        values |= {
            f"robustness_area-{row['condition']}-{row['surface']}": row["area"]
            for row in own.to_dict("records")
        }
        finite = {str(name): round(float(value), 5) for name, value in values.items() if np.isfinite(value)}
        table.setdefault(str(key[0]), {})[str(key[1])] = finite
    return table


def _threats(
    evidence: Evidence,
    groups: dict[str, dict[str, dict[str, pd.DataFrame]]],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, pd.DataFrame]:
    """Frames of what is no corrupted history, by their names in Results; groups: of each dataset."""
    found: dict[str, list[pd.DataFrame]] = {"attacks": [], "promotions": [], "loss_tests": [], "flags": []}
    settings = evidence.params.robustness
    for dataset, own in groups.items():
        for name in ("attack", threats.MISSING):
            found["attacks"].append(threats.named(threats.withstood(own[name], draws, rng), settings))
        found["promotions"].append(threats.exposures(own["promotion"], settings))
        found["loss_tests"].append(
            threats.loss_tests(own["attack"], evidence.params, evidence.deterministic, draws, rng)
        )
        found["flags"].append(threats.flags(evidence.of(dataset)))
    frames = {name: _joined(parts) for name, parts in found.items()}
    if len(frames["loss_tests"]):
        frames["loss_tests"]["flagged"] = threats.flagged(frames["loss_tests"], frames["flags"], settings)
    return frames


def _kept_tests(
    evidence: Evidence,
    groups: dict[str, dict[str, dict[str, pd.DataFrame]]],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Tests of what declared pairs keep of corrupted histories, and without content: a family each.

    Attacks have theirs apart: they are on fewer users.
    """
    deaf, frames = threats.deaf(evidence.params), []
    for own in groups.values():
        readers = {name: rows for name, rows in own[threats.HISTORY].items() if name not in deaf}
        for parts in (readers, own[threats.MISSING]):
            frames.append(threats.loss_tests(parts, evidence.params, evidence.deterministic, draws, rng))
    return _joined(frames)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _seed_rows(cell: Cell) -> pd.DataFrame:
    frame = metrics.summarise(_named(cell))
    for name in DIVERSITY:
        frame[name] = [float(cell.evaluate["seeds"][str(seed)][name]) for seed in frame["seed"]]
    return frame


def _accuracy(seeds: pd.DataFrame) -> pd.DataFrame:
    groups = seeds.drop(columns="seed").groupby(KEYS, sort=False)
    frame = groups.mean()
    frame["users"] = groups["users"].first()
    frame["seeds"] = groups.size()
    for name in (HEADLINE, "hr@10"):
        frame[f"{name}_sd"] = groups[name].std(ddof=1)
    bounds = [seed_interval(values) for _, values in groups[HEADLINE]]
    frame["seed_low"], frame["seed_high"] = zip(*bounds, strict=True)
    return frame.reset_index()


def _dataset_frames(
    evidence: Evidence,
    dataset: str,
    histories: dict[str, pd.DataFrame],
    draws: int,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    cells = evidence.of(dataset)
    ordered = {cell.method: cell.ranks.sort_values(["seed", "user_id"]) for cell in cells}
    scores = {m: user_scores(HEADLINE, frame, m in evidence.deterministic) for m, frame in ordered.items()}
    by_seed = pd.concat([metrics.by_popularity(_named(cell)) for cell in cells])
    names = list(scores)
    low, high = percentile_interval(bootstrap_means(_user_means(scores), draws, rng))
    keys = {"dataset": dataset, "method": names}
    intervals = pd.DataFrame({**keys, "low": low, "high": high})
    first = next(iter(ordered.values()))
    in_seed = (first["seed"] == first["seed"].iloc[0]).to_numpy()
    bins = metrics.popularity_bin(first.loc[in_seed, "target_n_train"].to_numpy())
    return (
        intervals,
        _pairs(dataset, scores, bins == 0, draws, rng),
        _binned(by_seed, scores, bins, metrics.POPULARITY_BINS, draws, rng),
        threats.withstood(histories, draws, rng),
    )


def _user_means(scores: dict[str, Scores]) -> Array:
    return np.stack([score.values.mean(axis=0) for score in scores.values()])  # (M, U)


def _pairs(
    dataset: str, scores: dict[str, Scores], is_cold: NDArray[np.bool_], draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """All pairs of methods, and the content row against all others on cold items: one family.

    All pairs, since "the best" is picked after seeing the scores, which a smaller family would ignore.
    """
    parts = [compare(scores, list(combinations(scores, 2)), draws, rng).assign(users_with="all targets")]
    if "feature-knn" in scores and is_cold.any():
        cold = {
            name: Scores(score.values[:, is_cold], score.is_deterministic) for name, score in scores.items()
        }
        against = [("feature-knn", name) for name in scores if name != "feature-knn"]
        parts.append(compare(cold, against, draws, rng).assign(users_with="cold targets"))
    tests = judge(pd.concat(parts, ignore_index=True))
    tests.insert(0, "dataset", dataset)
    tests.insert(1, "metric", HEADLINE)
    return tests


def _activity(evidence: Evidence, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """By how many items the user's history holds; bins without users are left out."""
    parts = []
    for dataset in evidence.names():
        cells, items = evidence.of(dataset), int(evidence.datasets[dataset]["items"])
        ordered = {cell.method: cell.ranks.sort_values(["seed", "user_id"]) for cell in cells}
        scores = {
            m: user_scores(HEADLINE, frame, m in evidence.deterministic) for m, frame in ordered.items()
        }
        first = next(iter(ordered.values()))
        in_seed = first["seed"] == first["seed"].iloc[0]
        bins = metrics.activity_bin(items - first.loc[in_seed, "n_candidates"].to_numpy(np.int64))
        by_seed = pd.concat([metrics.by_activity(_named(cell), items) for cell in cells])
        parts.append(_binned(by_seed, scores, bins, metrics.ACTIVITY_BINS, draws, rng))
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["users"] > 0].reset_index(drop=True)


def _named(cell: Cell) -> pd.DataFrame:
    return cell.ranks.astype({"dataset": object, "method": object})


def _binned(
    by_seed: pd.DataFrame,
    scores: dict[str, Scores],
    bins: NDArray[np.int64],
    bin_names: Sequence[str],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Means over seeds of a dataset's rows by bin, with intervals over users. bins: (U,)."""
    groups = by_seed.groupby([*KEYS, "bin"], sort=False)
    frame = groups[["users", "hr@10", HEADLINE]].mean().astype({"users": int}).reset_index()
    means = _user_means(scores)
    frame[["low", "high"]] = np.nan
    for index, name in enumerate(bin_names):
        if (bins == index).any():
            low, high = percentile_interval(bootstrap_means(means[:, bins == index], draws, rng))
            for method, lower, upper in zip(scores, low, high, strict=True):
                row = (frame["method"] == method) & (frame["bin"] == name)
                frame.loc[row, ["low", "high"]] = lower, upper
    return frame


def _training(evidence: Evidence) -> pd.DataFrame:
    rows = [
        {"dataset": cell.dataset, "method": cell.method, "seed": int(seed), **epoch}
        for cell in evidence.cells.values()
        for seed, record in cell.train["seeds"].items()
        for epoch in record.get("history") or []
    ]
    return pd.DataFrame(
        rows, columns=["dataset", "method", "seed", "epoch", "loss", "valid_ndcg@10", "seconds"]
    )


def best_so_far(training: pd.DataFrame) -> pd.DataFrame:
    """Best validation NDCG@10 up to each epoch, mean over seeds: what early stopping would keep.

    A seed that has stopped counts with what it kept, else the mean would jump when seeds drop out.
    Columns: dataset, method, epoch, best_valid_ndcg@10; all curves of a dataset are equally long.
    """
    parts = []
    for dataset, rows in training.groupby("dataset", sort=False):
        epochs = pd.RangeIndex(rows["epoch"].min(), rows["epoch"].max() + 1, name="epoch")
        for method, own in rows.groupby("method", sort=False):
            table = own.pivot(index="epoch", columns="seed", values="valid_ndcg@10").reindex(epochs)
            best = table.ffill().cummax().mean(axis=1)
            parts.append(pd.DataFrame({"dataset": dataset, "method": method, "best_valid_ndcg@10": best}))
    names = ["dataset", "method", "epoch", "best_valid_ndcg@10"]
    return pd.concat(parts).reset_index()[names] if parts else pd.DataFrame(columns=names)


def _cost_row(cell: Cell, trials: int) -> dict[str, Any]:
    train = list(cell.train["seeds"].values())
    evaluate = list(cell.evaluate["seeds"].values())
    row: dict[str, Any] = {"dataset": cell.dataset, "method": cell.method, "seeds": len(train)}
    for name in ("seconds", "epochs", "best_epoch", "parameters", "peak_memory_mb", "targets_per_second"):
        row[name] = _mean(train, name)
    row["users_per_second"] = _mean(evaluate, "users_per_second")
    # Its own search on validation, or that of the tuning stage.
    row["trials"] = max(trials, *(account.get("trials", 1) for account in train))
    environment = cell.train.get("environment", {})
    return {**row, "device": str(environment.get("device", "")), "threads": environment.get("threads")}


def _tuning(evidence: Evidence) -> pd.DataFrame:
    """How many trials each search had, what they cost and what they gained on validation."""
    rows = []
    for (dataset, method), record in evidence.tuning.items():
        trials, best = record["trials"], tuning.best(record)
        rows.append({
            "dataset": dataset,
            "method": method,
            "trials": len(trials),
            "seconds": sum(trial["seconds"] for trial in trials),
            "valid_as_written": trials[0]["valid_ndcg@10"],
            "valid_chosen": best["valid_ndcg@10"],
            "chosen": ", ".join(f"{key} {value}" for key, value in best["change"].items()),
        })  # fmt: skip
    columns = ["dataset", "method", "trials", "seconds", "valid_as_written", "valid_chosen", "chosen"]
    return pd.DataFrame(rows, columns=columns)


def _collapse(cell: Cell) -> list[dict[str, Any]]:
    """The measures of each seed; none of a method without item vectors."""
    return [seed["degeneration"] for seed in cell.evaluate["seeds"].values() if "degeneration" in seed]


def _degeneration(evidence: Evidence, accuracy: pd.DataFrame, area: pd.DataFrame) -> pd.DataFrame:
    """Measures of collapse beside accuracy and robustness; `dim` is the number of singular values."""
    rows = []
    for cell in evidence.cells.values():
        records = _collapse(cell)
        if records:
            row = {"dataset": cell.dataset, "method": cell.method, "dim": len(records[0]["spectrum"])}
            rows.append({**row, **{name: _mean(records, name) for name in COLLAPSE}})
    frame = pd.DataFrame(rows, columns=[*KEYS, "dim", *COLLAPSE])
    frame["rank_share"] = frame["effective_rank"] / frame["dim"]
    kept = area.groupby(KEYS, sort=False)["area"].mean().rename("robustness_area").reset_index()
    return frame.merge(accuracy[[*KEYS, HEADLINE, "users"]], on=KEYS).merge(kept, on=KEYS, how="left")


def _collapse_bins(evidence: Evidence) -> pd.DataFrame:
    """Cosines and norms of the item vectors by popularity, mean over seeds with their range."""
    names = ("mean_count", "cosine", "cosine_centred", "norm")
    parts = []
    for cell in evidence.cells.values():
        records = _collapse(cell)
        if records:
            seeds = {
                name: np.array([record[f"{name}_by_popularity"] for record in records]) for name in names
            }
            columns = {name: values.mean(axis=0) for name, values in seeds.items()}  # (B,)
            cosine = np.vstack([seeds["cosine_centred"], columns["cosine_centred"]])  # rounding moves a mean
            spread = {"low": cosine.min(axis=0), "high": cosine.max(axis=0)}
            keys = {"dataset": cell.dataset, "method": cell.method, "fifth": np.arange(len(columns["norm"]))}
            items = evidence.datasets[cell.dataset]["items"]
            parts.append(pd.DataFrame({**keys, "items": items, **columns, **spread}))
    empty = pd.DataFrame(columns=[*KEYS, "fifth", "items", *names, "low", "high"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def _spectra(evidence: Evidence) -> pd.DataFrame:
    """sigma_k / sigma_1 over k / D, mean over seeds."""
    parts = []
    for cell in evidence.cells.values():
        curves = [record["spectrum"] for record in _collapse(cell)]
        if curves:
            place = np.arange(1, len(curves[0]) + 1)
            columns = {"k": place, "share": place / len(place), "sigma": np.mean(curves, axis=0)}
            parts.append(pd.DataFrame({"dataset": cell.dataset, "method": cell.method, **columns}))
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*KEYS, "k", "share", "sigma"])
    )


def _sampled(evidence: Evidence) -> pd.DataFrame:
    """Sampled metrics of each protocol."""
    rows = []
    for cell in evidence.cells.values():
        seeds = list(cell.evaluate["seeds"].values())
        for protocol in cell.evaluate.get("sampled_hashes", {}):
            records = [seed["sampled"][protocol] for seed in seeds]
            row = {"dataset": cell.dataset, "method": cell.method, "protocol": protocol}
            row |= {"users": seeds[0]["users"], "seeds": len(seeds)}
            rows.append({**row, **{name: _mean(records, name) for name in SAMPLED}})
    return pd.DataFrame(rows, columns=[*KEYS, "protocol", "users", "seeds", *SAMPLED])


def _noise(evidence: Evidence) -> pd.DataFrame:
    """What weights of training sequences know of the noise; thirds are numbered from the lowest."""
    rows = []
    for cell in evidence.cells.values():
        records = [seed["noise"] for seed in cell.evaluate["seeds"].values() if "noise" in seed]
        flat = [
            record
            | {
                f"{key}_{third}": value
                for key in ("auc_by_length", "auc_by_popularity")
                for third, value in enumerate(record.get(key, ()), 1)
            }
            for record in records
        ]
        if flat:
            row = {"dataset": cell.dataset, "method": cell.method, "users": records[0]["sequences"]}
            known = [record["auc"] for record in records if record.get("auc") is not None]
            row |= {"seeds": len(records), "auc_sd": np.std(known, ddof=1) if len(known) > 1 else np.nan}
            rows.append({**row, **{name: _mean(flat, name) for name in NOISE}})
    return pd.DataFrame(rows, columns=[*KEYS, "users", "seeds", *NOISE, "auc_sd"])


def _mean(records: list[dict[str, Any]], name: str) -> float:
    values = [record[name] for record in records if record.get(name) is not None]
    return float(np.mean(values)) if values else float("nan")


def _plain(stats: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in stats.items()
        if isinstance(value, int | float | str) and key != "dataset"
    }
