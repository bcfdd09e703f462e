"""The report's figures, built from its results."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from ballast.evaluation.metrics import ACTIVITY_BINS, POPULARITY_BINS
from ballast.params import Params
from ballast.reporting import chains, plots, poisoning, threats, transfer, variants
from ballast.reporting.plots import Look
from ballast.reporting.results import Results, best_so_far
from ballast.robustness.corruption import PLACED, PLACES

# One panel for all targets of a study.
_SIMILAR = "targets"

FEW = 20
"""Users; a mean over fewer is no point of a curve."""
_GAIN = "NDCG@10 over scratch, %"


@dataclass(frozen=True)
class StudyFigure:
    """What a figure shows and how it is drawn: whole, or one dataset's panel for the page."""

    name: str
    frame: pd.DataFrame
    caption: str
    draw: Callable[[pd.DataFrame], Figure]

    def whole(self) -> Figure:
        """All datasets, one panel above the other."""
        return self.draw(self.frame)

    def panels(self) -> Iterator[tuple[str, Figure]]:
        """(dataset, its panel alone), in order."""
        for dataset, rows in self.frame.groupby("dataset", sort=False):
            yield str(dataset), self.draw(rows)


def build(results: Results, params: Params, style: Mapping[str, Look]) -> list[StudyFigure]:
    """All figures in the order of the page."""
    mark = "SIMULATED data. " if params.study.is_simulated else ""
    titles = _titles(params, results.accuracy)
    figures = [
        StudyFigure(
            "accuracy",
            results.accuracy,
            f"{mark}NDCG@10 of each method, mean over seeds, with 95 % bootstrap intervals over users.",
            partial(plots.accuracy, style=style, titles=titles),
        ),
        StudyFigure(
            "popularity",
            results.popularity,
            f"{mark}NDCG@10 by how often the target item occurs in training.",
            partial(
                plots.binned,
                style=style,
                titles=titles,
                bins=POPULARITY_BINS,
                of="training interactions of the target item",
            ),
        ),
    ]
    many = results.activity[results.activity["users"] >= FEW]
    if len(many):
        caption = (
            f"{mark}NDCG@10 by how many different items the user's history holds; groups of fewer than {FEW} "
            "users are in the table alone."
        )
        of = "items in the user's history"
        draw = partial(plots.binned, style=style, titles=titles, bins=ACTIVITY_BINS, of=of)
        figures.append(StudyFigure("activity", many, caption, draw))
    if len(results.differences):
        caption = (
            f"{mark}NDCG@10 of each row over another, less 1, for the pairs that params.yaml declares, "
            "with 95 % intervals over users and seeds; filled points are established by a test."
        )
        draw = partial(plots.gains, style=style, titles=_titles(params, results.differences))
        figures.append(StudyFigure("differences", results.differences, caption, draw))
    for kind in (name for name in params.robustness.kinds if name not in PLACED):
        frame = results.robustness[results.robustness["condition"] == kind]
        caption = f"{mark}NDCG@10 relative to clean histories, by budget of the corruption “{kind}”."
        draw = partial(plots.robustness, kind=kind, style=style, titles=_titles(params, frame))
        figures.append(StudyFigure(f"robustness-{kind}", frame, caption, draw))
    figures += _placed(results, params, style, mark)
    figures += _threats(results, params, style, mark)
    if len(results.spectra):
        caption = f"{mark}Singular values of the item vectors over the largest, mean over seeds."
        draw = partial(plots.spectra, style=style, titles=titles)
        figures.append(StudyFigure("spectra", results.spectra, caption, draw))
        caption = f"{mark}NDCG@10 by the effective rank of the item vectors over their dimension."
        draw = partial(plots.degeneration, style=style, titles=titles)
        figures.append(StudyFigure("degeneration", results.degeneration, caption, draw))
        figures += _collapsed(results, params, style, mark)
    if len(results.transfer):
        caption = (
            f"{mark}NDCG@10 of adapted methods over the same from scratch, less 1, with 95 % intervals over "
            "users and seeds; filled points are established by a test."
        )
        titled = _titles(params, results.transfer)
        draw = partial(plots.gains, style=style, titles=titled, over="the same from scratch")
        figures.append(StudyFigure("transfer", results.transfer, caption, draw))
        figures += _learning(results, style, titled, mark)
    similar = transfer.by_similarity(results.transfer, params)
    if len(similar):
        caption = f"{mark}What pre-training gains or costs as targets share less of their sources' style."
        draw = partial(
            plots.trend,
            style=style,
            titles={_SIMILAR: "SIMULATED: all targets"},
            x="shared_style",
            x_label="style shared with the sources (0: none, 1: all)",
            y="gain",
            y_label=_GAIN,
        )
        figures.append(StudyFigure("similarity", similar.assign(target=similar["dataset"], dataset=_SIMILAR),
                                   caption, draw))  # fmt: skip
    figures += _trends(results, params, style, mark)
    figures += _poisoned(results, params, style, mark)
    figures += _diffused(results, params, style, mark)
    if len(results.pretraining):
        caption = f"{mark}Validation NDCG@10 of pre-training, on the pool's own users."
        states = {name: block.label for name, block in params.transfer.pretraining.items()}
        pools = {
            name: f"Pool “{name}”: {', '.join(params.datasets[source].label for source in pool.sources)}"
            for name, pool in params.transfer.pools.items()
        }
        draw = partial(plots.pretraining, style=plots.looks(states, frozenset()), titles=pools)
        figures.append(StudyFigure("pretraining", results.pretraining, caption, draw))
    known = results.noise[results.noise["noise_share"].notna()]
    if len(known):
        alike = [variants.is_untouched(params, str(name), but="noise") for name in known["dataset"]]
        frame = known.assign(noisy_dataset=known["dataset"])[alike]
        frame["dataset"] = frame["dataset"].map(lambda name: variants.base(params, str(name)))
        caption = (
            f"{mark}AUC of the weights for telling clean training sequences from noisy ones; sd of seeds."
        )
        draw = partial(plots.noise, style=style, titles=_titles(params, frame))
        figures += [StudyFigure("noise", frame, caption, draw)] if len(frame) else []
    figures += _noise_thirds(known, params, style, mark)
    if len(results.crossed):
        caption = f"{mark}NDCG@10 of each backbone under each loss, mean over seeds."
        figures.append(
            StudyFigure("backbone-loss", results.crossed, caption, partial(plots.grid, titles=titles))
        )
    if len(results.training):
        caption = f"{mark}Best validation NDCG@10 so far, mean over seeds."
        draw = partial(plots.training, style=style, titles=titles)
        figures.append(StudyFigure("training", best_so_far(results.training), caption, draw))
    return figures


def _collapsed(
    results: Results, params: Params, style: Mapping[str, Look], mark: str
) -> Iterator[StudyFigure]:
    """Whether collapsed vectors are attacked more easily, and which items' vectors lie together."""
    kept = results.withstands.rename(columns={"area": "kept"})
    kept = kept[kept["threat"] == "items attacked"][["dataset", "method", "kept", "users"]]
    frame = results.degeneration.drop(columns="users").merge(kept, on=["dataset", "method"])
    if len(frame):
        caption = (
            f"{mark}Share of NDCG@10 kept under the worst attack on item vectors, mean over budgets, by the "
            "effective rank of these vectors over their dimension."
        )
        y_label = "share kept under attack"
        draw = partial(
            plots.degeneration, style=style, titles=_titles(params, frame), y="kept", y_label=y_label
        )
        yield StudyFigure("degeneration-robustness", frame, caption, draw)
    caption = (
        f"{mark}Mean cosine of centred item vectors among items of like popularity, bars from the lowest to "
        "the highest seed."
    )
    draw = partial(
        plots.trend,
        style=style,
        titles=_titles(params, results.collapse, "items"),
        x="fifth",
        x_label="fifth of the items by training interactions",
        x_names=("rarest", "2", "3", "4", "commonest"),
        y="cosine_centred",
        y_label="mean cosine, centred",
    )
    yield StudyFigure("degeneration-popularity", results.collapse, caption, draw)


def _noise_thirds(
    known: pd.DataFrame, params: Params, style: Mapping[str, Look], mark: str
) -> Iterator[StudyFigure]:
    """Whether weights know the noise of everybody, or only that of long or popular sequences."""
    for name, of in {"length": "their length", "popularity": "popularity of their items"}.items():
        columns = {f"auc_by_{name}_{third}": third - 1 for third in (1, 2, 3)}
        keys = ["dataset", "method", "users"]
        frame = known[[*keys, *columns]].melt(keys, None, "third", "auc").dropna()
        frame["third"] = frame["third"].map(columns).astype(float)
        if frame.empty:
            continue
        draw = partial(
            plots.trend,
            style=style,
            titles=_titles(params, frame),
            x="third",
            x_label=f"third of the sequences by {of}",
            x_names=("lowest", "middle", "highest"),
            y="auc",
            y_label="AUC of the weights (0.5: chance)",
        )
        caption = f"{mark}AUC of the weights for clean against noisy training sequences, by {of}."
        yield StudyFigure(f"noise-{name}", frame.assign(low=frame["auc"], high=frame["auc"]), caption, draw)


def _learning(
    results: Results, style: Mapping[str, Look], titles: Mapping[str, str], mark: str
) -> Iterator[StudyFigure]:
    """How fast adapted methods learn, beside the same from scratch."""
    shown = pd.concat(
        results.transfer[["dataset", column]].rename(columns={column: "method"})
        for column in ("method", "scratch")
    )
    frame = best_so_far(results.training.merge(shown.drop_duplicates(), on=["dataset", "method"]))
    if len(frame):
        caption = f"{mark}Best validation NDCG@10 so far, adapted and from scratch, mean over seeds."
        draw = partial(plots.training, style=style, titles=titles)
        yield StudyFigure("transfer-learning", frame, caption, draw)


def _placed(results: Results, params: Params, style: Mapping[str, Look], mark: str) -> Iterator[StudyFigure]:
    """What is left where the first, middle or last items of the history change."""
    frame = results.robustness[results.robustness["condition"].isin(PLACED)]
    frame = frame[frame["budget"] > 0]
    frame = frame[frame["budget"] == frame["budget"].min()]
    changes = frame["condition"].str.partition("-")[[0, 2]] if len(frame) else pd.DataFrame({0: [], 2: []})
    for name, places in changes.groupby(0, sort=False)[2]:
        change = str(name)
        rows = frame.loc[places.index].assign(place=places.map(PLACES.index))
        draw = partial(
            plots.trend,
            style=style,
            titles=_titles(params, rows),
            x="place",
            x_label="which items of the history change",
            x_names=PLACES,
            y="relative",
            y_label="NDCG@10, share of clean",
        )
        share = f"{rows['budget'].iloc[0]:.0%}"
        caption = f"{mark}NDCG@10 relative to clean histories, “{change}” at {share} of a history, by place."
        yield StudyFigure(f"robustness-{change}-places", rows, caption, draw)


def _trends(results: Results, params: Params, style: Mapping[str, Look], mark: str) -> Iterator[StudyFigure]:
    """Accuracy, and what pre-training gains, as training is spoilt or cut."""
    for kind, x_label in variants.KINDS.items():
        frame = variants.by_share(results.accuracy, params, kind)
        draw = partial(plots.trend, style=style, titles=_titles(params, frame), x="share", x_label=x_label)
        if len(frame):
            caption = f"{mark}NDCG@10 by the {x_label}, with 95 % intervals over users."
            yield StudyFigure(f"by-{kind}", frame, caption, draw)
        frame = variants.by_share(results.transfer, params, kind)
        if len(frame):
            caption = f"{mark}What pre-training gains or costs, by the {x_label}."
            yield StudyFigure(f"transfer-by-{kind}", frame, caption, partial(draw, y="gain", y_label=_GAIN))


def _poisoned(
    results: Results, params: Params, style: Mapping[str, Look], mark: str
) -> Iterator[StudyFigure]:
    """Exposure of pushed items by the number of fake users, a figure an attack."""
    for name, rows in poisoning.curves(results.poisoning).groupby("condition", sort=False):
        draw = partial(
            plots.trend,
            style=style,
            titles=_titles(params, rows),
            x="share",
            x_label="fake users over real ones",
            y="exposure",
            y_label="exposure@10 of pushed items",
        )
        caption = f"{mark}Users new to a pushed item who get it in their top 10: “{name}”, bars over seeds."
        yield StudyFigure(f"poisoning-{str(name).replace(' ', '-')}", rows, caption, draw)


def _diffused(
    results: Results, params: Params, style: Mapping[str, Look], mark: str
) -> Iterator[StudyFigure]:
    """Accuracy by the length of the reverse chain, and how fast noise takes over in training."""
    if len(results.chains):
        draw = partial(
            plots.trend,
            style=style,
            titles=_titles(params, results.chains),
            x="steps",
            x_label="reverse steps, the weights being the same",
            doubles=True,
        )
        caption = f"{mark}NDCG@10 by the number of reverse steps at inference, with one sd over seeds."
        yield StudyFigure("reverse-steps", results.chains, caption, draw)
    if len(results.draws):
        draw = partial(
            plots.trend,
            style=style,
            titles={chains.SCHEDULES: "Noise schedules"},
            x="step",
            x_label="step over all steps T",
            y="alpha_bar",
            y_label="variance left of a clean vector",
        )
        caption = f"{mark}What is left of an item's vector after each step of the noise schedule."
        yield StudyFigure("schedule", results.schedules, caption, draw)


def _threats(results: Results, params: Params, style: Mapping[str, Look], mark: str) -> Iterator[StudyFigure]:
    """Curves under each threat, and who is on the frontier of accuracy and what is kept of it."""
    frame = results.attacks
    for name, rows in frame.groupby("threat", sort=False):
        slug = re.sub(r"\W+", "-", str(name)).strip("-")
        worst = threats.worst(rows)
        kinds = rows["condition"].map(lambda key: threats.attack_name(key, params.robustness))
        random = threats.worst(rows[kinds == threats.RANDOM]).assign(is_random=True)
        drawn = pd.concat([worst.assign(is_random=False), random])
        each = "" if (rows["condition"] == threats.MISSING).all() else ", the worst attack at each"
        caption = f"{mark}NDCG@10 relative to clean, by budget: {name}{each}."
        draw = partial(plots.threat, style=style, titles=_titles(params, rows))
        yield StudyFigure(f"threat-{slug}", drawn, caption, draw)
        kept = threats.frontier(results.accuracy, threats.area(worst, ["threat"]))
        caption = f"{mark}NDCG@10 against the share of it that is kept, mean over budgets: {name}."
        draw = partial(plots.frontier, style=style, titles=_titles(params, kept))
        yield StudyFigure(f"frontier-{slug}", kept, caption, draw)
    if len(frame):
        kept = threats.frontier(results.accuracy, results.area)
        caption = f"{mark}NDCG@10 against the share of it that is kept under corrupted histories."
        draw = partial(plots.frontier, style=style, titles=_titles(params, kept))
        yield StudyFigure("frontier-history", kept, caption, draw)


def _titles(params: Params, frame: pd.DataFrame, counted: str = "users") -> dict[str, str]:
    titles = {}
    for dataset, rows in frame.groupby("dataset", sort=False):
        block = params.datasets[str(dataset)]
        mark = "SIMULATED: " if block.is_simulated else ""
        titles[str(dataset)] = f"{mark}{block.label} (n = {rows[counted].iloc[0]:,} {counted})"
    return titles
