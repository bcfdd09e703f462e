"""From the runs' records to a table, a figure and the ratios."""

import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from protocol import Task, read_sequences

from ballast.reproducibility import atomic_path, environment

Run = dict[str, Any]

LABELS = {"ballast": "Ballast", "recbole": "RecBole", "probe": "plain probe"}
# Okabe and Ito's colours, told apart by the colour-blind; the line styles tell them apart in grey.
STYLES = {"ballast": ("#0072B2", "-"), "recbole": ("#D55E00", "--"), "probe": ("#009E73", ":")}


def targets_per_second(run: Run) -> float:
    """Losses a second of training, validation not counted."""
    return _total(run, "targets") / _total(run, "train_seconds")


def validation_users_per_second(run: Run) -> float:
    """Users ranked against the full catalogue in a second of validation."""
    return float(len(run["epochs"]) * run["users"] / _total(run, "valid_seconds"))


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


def flops_per_target(task: Task) -> float:
    """Floating-point operations that one target needs, forward and backward, without any padding.

    Each real position costs 2 I D for the logits, and in a layer 2 (4 D^2 + 2 D W) for its products, W the
    inner size, and 4 t D for attending to t positions; the backward pass costs twice the forward one.
    """
    sequences = read_sequences(task)
    lengths = [min(len(items) - 3, task.max_len) for items in sequences]
    attended = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    logits = 2 * max(map(max, sequences)) * task.hidden_size
    layer = task.hidden_size * (8 * task.hidden_size + 4 * task.inner_size + 4 * attended)
    return float(3 * (logits + task.layers * layer))


def table(runs: list[Run], rates: list[dict[str, float]], task: Task) -> pd.DataFrame:
    """One row a system; seconds to the target are empty where a run did not reach it."""
    square = statistics.median(rate["square_2048"] for rate in rates)
    cost = flops_per_target(task) / 1e9
    rows = []
    for system in dict.fromkeys(run["system"] for run in runs):
        own = [run for run in runs if run["system"] == system]
        reached = [run for run in own if epochs_to_target(run) is not None]
        speed = _spread("targets_per_second", [targets_per_second(run) for run in own], 0)
        rows.append(
            {
                "system": system,
                "version": own[0]["version"],
                "batch": own[0]["notes"]["batch"],
                "runs": len(own),
                **speed,
                "matmul_share": round(speed["targets_per_second_median"] * cost / square, 4),
                "runs_reaching_target": len(reached),
                **_spread("seconds_to_target", [training_seconds(run) for run in reached], 1),
                **_spread("wall_seconds_to_target", [wall_seconds(run) for run in reached], 1),
                "training_seconds_median": round(statistics.median(training_seconds(run) for run in own), 1),
                "epochs_median": statistics.median(len(run["epochs"]) for run in own),
                "best_ndcg@10": round(max(row["ndcg@10"] for run in own for row in run["epochs"]), 4),
                **_spread("ranked_users_per_second", [validation_users_per_second(run) for run in own], 0),
                "peak_memory_mb": round(max(run["peak_memory_mb"] for run in own)),
                "parameters": own[0]["parameters"],
                "threads": own[0]["threads"],
                "matmul_gflops_2048": round(square, 1),
                "cpu": environment()["device"],
                "torch": own[0]["torch"],
                "python": own[0]["python"],
            }
        )
    return pd.DataFrame(rows)


def _spread(name: str, values: list[float], digits: int) -> dict[str, float]:
    three = (min(values), statistics.median(values), max(values)) if values else (float("nan"),) * 3
    return {
        f"{name}_{key}": round(value, digits)
        for key, value in zip(("min", "median", "max"), three, strict=True)
    }


def ratios(runs: list[Run]) -> list[str]:
    """Ballast against each peer, run by run of the same round; one printable line a figure."""
    lines = []
    ours = {run["repeat"]: run for run in runs if run["system"] == "ballast"}
    for peer in dict.fromkeys(run["system"] for run in runs if run["system"] != "ballast"):
        pairs = [(ours[run["repeat"]], run) for run in runs if run["system"] == peer]
        speed = [targets_per_second(mine) / targets_per_second(theirs) for mine, theirs in pairs]
        lines.append(f"ballast / {peer}: {_times(speed)} the training targets per second")
        memory = [mine["peak_memory_mb"] / theirs["peak_memory_mb"] for mine, theirs in pairs]
        lines.append(f"ballast / {peer}: {_times(memory)} the peak memory")
        ranked = [
            validation_users_per_second(mine) / validation_users_per_second(theirs) for mine, theirs in pairs
        ]
        lines.append(f"ballast / {peer}: {_times(ranked)} the users ranked per second")
        lines.append(f"ballast / {peer}: {_sooner(pairs)}")
    return lines


def _sooner(pairs: list[tuple[Run, Run]]) -> str:
    target = pairs[0][0]["task"]["target"]
    if any(epochs_to_target(mine) is None for mine, _ in pairs):
        return f"no ratio of seconds to NDCG@10 {target}: a run of ballast's did not reach it"
    ratio = [training_seconds(theirs) / training_seconds(mine) for mine, theirs in pairs]
    # A peer that was stopped short of the target needs at least the seconds that it had.
    bound = "" if all(epochs_to_target(theirs) for _, theirs in pairs) else "more than "
    return f"at NDCG@10 {target} {bound}{_times(ratio)} sooner (training seconds)"


def _times(values: list[float]) -> str:
    text = f"{statistics.median(values):.3g} x"
    return (
        text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g}, {len(values)} pairs)"
    )


def figure(runs: list[Run], task: Task) -> Figure:
    """Validation NDCG@10 over training seconds, and targets per second."""
    drawing = Figure(figsize=(9, 3.4), layout="constrained")
    curves, bars = drawing.subplots(1, 2, width_ratios=(3, 2))
    for run in runs:
        colour, line = STYLES[run["system"]]
        seconds = pd.Series([row["train_seconds"] for row in run["epochs"]]).cumsum()
        scores = [row["ndcg@10"] for row in run["epochs"]]
        label = LABELS[run["system"]] if run["repeat"] == 0 else None
        curves.plot(seconds, scores, line, marker=".", color=colour, label=label)
    curves.axhline(task.target, color="0.5", linewidth=0.8)
    curves.set(xscale="log", xlabel="training time (s)", ylabel="validation NDCG@10 (unmasked)")
    curves.set_title(f"Beauty, n = {runs[0]['users']:,} users, {task.threads} CPU threads", fontsize="medium")
    curves.legend()
    systems = list(dict.fromkeys(run["system"] for run in runs))[::-1]
    speeds = [
        statistics.median(targets_per_second(r) for r in runs if r["system"] == name) for name in systems
    ]
    drawn = bars.barh([LABELS[name] for name in systems], speeds, color=[STYLES[name][0] for name in systems])
    bars.bar_label(drawn, [f"{speed:,.0f}" for speed in speeds], padding=3)
    bars.margins(x=0.25)
    bars.set(xlabel="training targets per second (median)")
    return drawing


def write(runs: list[Run], rates: list[dict[str, float]], task: Task, stem: Path) -> pd.DataFrame:
    """`stem`.csv, .json (every epoch of every run) and .png; returns the table."""
    result = table(runs, rates, task)
    with atomic_path(stem.with_suffix(".csv")) as temporary:
        result.to_csv(temporary, index=False)
    with atomic_path(stem.with_suffix(".json")) as temporary:
        data = {"environment": environment(), "matmul_gflops": rates, "runs": runs}
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    with atomic_path(stem.with_suffix(".png")) as temporary:
        figure(runs, task).savefig(temporary, dpi=150)
    return result
