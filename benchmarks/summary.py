"""From the runs' records to a table, a figure and the ratios."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from protocol import Task, read_sequences

from ballast.reproducibility import atomic_path, environment

Run = dict[str, Any]

LABELS = {
    "ballast": "Ballast",
    "ballast-bf16": "Ballast, bfloat16",
    "recbole": "RecBole",
    "recbole-anomaly": "RecBole, anomaly mode",
    "rectools": "RecTools",
    "pmixer": "pmixer-style BCE",
    "probe": "plain probe",
}
# Okabe and Ito's colours, told apart by the colour-blind; the line styles tell them apart in grey.
STYLES = {
    "ballast": ("#0072B2", "-"),
    "ballast-bf16": ("#56B4E9", "-"),
    "recbole": ("#D55E00", "--"),
    "recbole-anomaly": ("#000000", "--"),
    "rectools": ("#E69F00", "-."),
    "pmixer": ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    "probe": ("#009E73", ":"),
}
OURS = ("ballast", "ballast-bf16")


def targets_per_second(run: Run) -> float:
    """Losses a second of training, validation not counted."""
    return _total(run, "targets") / _total(run, "train_seconds")


def ranked_users_per_second(run: Run) -> list[float]:
    """Users ranked against the full catalogue a second, in each repeat."""
    return [run["users"] / seconds for seconds in run["ranking_seconds"]]


def epochs_to_target(run: Run) -> int | None:
    """The first epoch whose validation NDCG@10 reached the target, counted from 1."""
    reached = (
        number for number, row in enumerate(run["epochs"], 1) if row["ndcg@10"] >= run["task"]["target"]
    )
    return next(reached, None)


def training_seconds(run: Run) -> float:
    """Seconds of training in all, to the target or to where the run was ended."""
    return _total(run, "train_seconds")


def wall_seconds(run: Run) -> float:
    """Seconds of training and validation together."""
    return float(run["epochs"][-1]["wall_seconds"])


def _total(run: Run, column: str) -> float:
    return float(sum(row[column] for row in run["epochs"]))


def flops_per_target(task: Task, notes: dict[str, Any]) -> float:
    """Floating-point operations that one target needs, forward and backward, without any padding.

    Each real position costs 2 I D for the logits, and in a layer 2 (4 D^2 + 2 D W) for its products, W the
    inner size, and 4 t D for attending to t positions; the backward pass costs twice the forward one. I is
    the catalogue and W the task's unless the run notes its own. The same whatever the precision.
    """
    sequences = read_sequences(task)
    lengths = [min(len(items) - 3, task.max_len) for items in sequences]
    attended = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    logits = 2 * notes.get("scored_items", max(map(max, sequences))) * task.hidden_size
    inner = notes.get("inner_size", task.inner_size)
    layer = task.hidden_size * (8 * task.hidden_size + 4 * inner + 4 * attended)
    return float(3 * (logits + task.layers * layer))


def table(runs: list[Run], rates: list[dict[str, float]], task: Task) -> pd.DataFrame:
    """One row a system; seconds to the target are empty where a run did not reach it."""
    names = dict.fromkeys(run["system"] for run in runs)
    return pd.DataFrame(_row([run for run in runs if run["system"] == name], rates, task) for name in names)


def _row(own: list[Run], rates: list[dict[str, float]], task: Task) -> dict[str, Any]:
    first = own[0]
    square = statistics.median(rate["square_2048"] for rate in rates)
    cost = flops_per_target(task, first["notes"]) / 1e9
    reached = [run for run in own if epochs_to_target(run) is not None]
    shares = [targets_per_second(run) * cost / square for run in own]
    return {
        "system": first["system"],
        "version": first["version"],
        "precision": first["task"]["precision"],
        "batch": first["notes"]["batch"],
        "runs": len(own),
        **_spread("targets_per_second", [targets_per_second(run) for run in own], 0),
        **_spread("matmul_share", shares, 4),
        "runs_reaching_target": len(reached),
        **_spread("seconds_to_target", [training_seconds(run) for run in reached], 1),
        **_spread("wall_seconds_to_target", [wall_seconds(run) for run in reached], 1),
        "training_seconds_median": round(statistics.median(training_seconds(run) for run in own), 1),
        "epochs_median": statistics.median(len(run["epochs"]) for run in own),
        "best_ndcg@10": round(max(row["ndcg@10"] for run in own for row in run["epochs"]), 4),
        **_spread("ranked_users_per_second", [x for run in own for x in ranked_users_per_second(run)], 0),
        "peak_memory_mb": round(max(run["peak_memory_mb"] for run in own)),
        "parameters": first["parameters"],
        "threads": first["threads"],
        "matmul_gflops_2048": round(square, 1),
        "matmul_gflops_2048_bf16": round(statistics.median(r["square_2048_bfloat16"] for r in rates), 1),
        "cpu": environment()["device"],
        "torch": first["torch"],
        "python": first["python"],
    }


def _spread(name: str, values: list[float], digits: int) -> dict[str, float]:
    three = (min(values), statistics.median(values), max(values)) if values else (float("nan"),) * 3
    return {
        f"{name}_{key}": round(value, digits)
        for key, value in zip(("min", "median", "max"), three, strict=True)
    }


def ratios(runs: list[Run]) -> pd.DataFrame:
    """Each of ours against each other system, run by run of the same round; one row a measure."""
    by_key = {(run["system"], run["repeat"]): run for run in runs}
    systems = list(dict.fromkeys(run["system"] for run in runs))
    compared = [(OURS[0], name) for name in systems if name not in OURS]
    compared += [(OURS[1], name) for name in systems if name != OURS[1]]
    if {"recbole", "recbole-anomaly"} <= set(systems):
        compared.append(("recbole", "recbole-anomaly"))
    rows = []
    for one, other in compared:
        rounds = sorted(repeat for name, repeat in by_key if name == other and (one, repeat) in by_key)
        pairs = [(by_key[one, repeat], by_key[other, repeat]) for repeat in rounds]
        rows += [{"system": one, "peer": other, **row} for row in _compared(pairs)] if pairs else []
    return pd.DataFrame(rows)


def _compared(pairs: list[tuple[Run, Run]]) -> list[dict[str, Any]]:
    """The measures of each pair (ours, theirs), ours over theirs but for the seconds."""
    measures: dict[str, Callable[[Run], float]] = {
        "training targets per second": targets_per_second,
        "users ranked per second": lambda run: statistics.median(ranked_users_per_second(run)),
        "peak memory": lambda run: run["peak_memory_mb"],
    }
    rows = [_ratio(name, [of(mine) / of(theirs) for mine, theirs in pairs]) for name, of in measures.items()]
    target = pairs[0][0]["task"]["target"]
    sooner = _ratio(
        f"seconds to NDCG@10 {target}, theirs over ours",
        [training_seconds(theirs) / training_seconds(mine) for mine, theirs in pairs],
    )
    if any(epochs_to_target(mine) is None for mine, _ in pairs):
        sooner |= {"min": None, "median": None, "max": None, "note": "ours did not reach it"}
    elif not all(epochs_to_target(theirs) for _, theirs in pairs):
        # A peer that was stopped short of the target needs at least the seconds that it had.
        sooner["note"] = "more than this: theirs did not reach it"
    return [*rows, sooner]


def _ratio(measure: str, values: list[float]) -> dict[str, Any]:
    three = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    rounded = {key: float(f"{value:.4g}") for key, value in three.items()}
    return {"measure": measure, **rounded, "pairs": len(values), "note": ""}


def figure(runs: list[Run], task: Task) -> Figure:
    """Validation NDCG@10 over training seconds, and targets per second."""
    drawing = Figure(figsize=(9, 3.8), layout="constrained")
    curves, bars = drawing.subplots(1, 2, width_ratios=(3, 2))
    for run in runs:
        colour, line = STYLES[run["system"]]
        seconds = pd.Series([row["train_seconds"] for row in run["epochs"]]).cumsum()
        scores = [row["ndcg@10"] for row in run["epochs"]]
        label = LABELS[run["system"]] if run["repeat"] == 0 else None
        curves.plot(seconds, scores, linestyle=line, marker=".", color=colour, label=label)
    curves.axhline(task.target, color="0.5", linewidth=0.8)
    curves.set(xscale="log", xlabel="training time (s)", ylabel="validation NDCG@10 (unmasked)")
    curves.set_title(f"Beauty, n = {runs[0]['users']:,} users, {task.threads} CPU threads", fontsize="medium")
    curves.legend(fontsize="small")
    systems = list(dict.fromkeys(run["system"] for run in runs))[::-1]
    speeds = [
        statistics.median(targets_per_second(r) for r in runs if r["system"] == name) for name in systems
    ]
    drawn = bars.barh([LABELS[name] for name in systems], speeds, color=[STYLES[name][0] for name in systems])
    bars.bar_label(drawn, [f"{speed:,.0f}" for speed in speeds], padding=3)
    bars.set(xlabel="training targets per second (median)", xscale="log")
    bars.set_xlim(min(speeds) / 2, max(speeds) * 5)
    return drawing


def write(
    runs: list[Run], rates: list[dict[str, float]], task: Task, stem: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`stem`.csv, -ratios.csv, .json (every epoch of every run) and .png; returns the two tables."""
    result, compared = table(runs, rates, task), ratios(runs)
    with atomic_path(stem.with_suffix(".csv")) as temporary:
        result.to_csv(temporary, index=False)
    with atomic_path(stem.with_name(f"{stem.name}-ratios.csv")) as temporary:
        compared.to_csv(temporary, index=False)
    with atomic_path(stem.with_suffix(".json")) as temporary:
        data = {"environment": environment(), "matmul_gflops": rates, "runs": runs}
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    with atomic_path(stem.with_suffix(".png")) as temporary:
        figure(runs, task).savefig(temporary, dpi=150)
    return result, compared
