"""The report as one static page: the answer first, then what it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from ballast.params import Params
from ballast.reporting import variants
from ballast.reporting.answer import Answer
from ballast.reporting.plots import Look
from ballast.reporting.tables import Table

# Where pairs of methods are declared whose losses are tested.
_PAIRS = ("report.versus", "report.claims", "report.scratch")


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
