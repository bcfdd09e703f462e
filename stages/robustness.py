"""Rank a sample of users under every condition: reports/robustness and a robustness cell.

Each finished condition is kept in the scratch folder until the cell is whole, so that a run that was ended
goes on where it stopped.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pandas as pd
import study
import torch
import typer
from tqdm import tqdm

from ballast.content import image
from ballast.content.encoder import ImageEncoder
from ballast.content.sheet import attack_sheet
from ballast.data import schemas
from ballast.data.sequences import SequenceStore
from ballast.errors import BallastError
from ballast.models.method import Method
from ballast.params import AttackParams, Params, RobustnessParams
from ballast.reproducibility import atomic_path, config_hash, environment, output_lock, prepare_process
from ballast.robustness import attacks
from ballast.robustness.attacks import Attack
from ballast.robustness.checks import Flag, Outcome, check_outcomes, check_scores
from ballast.robustness.corruption import KINDS, Corrupted, corrupt, sample_users
from ballast.robustness.missing import losable
from ballast.robustness.pictures import Pictures
from ballast.robustness.suite import MODALITIES, Answer, Subject, pushed_items, surfaces_for

HISTORY = "history"
SHOWN = 8
"""Pictures under attack that are drawn."""

Noises = dict[tuple[str, float], Corrupted]


@dataclass(frozen=True)
class Condition:
    """One group of rows of the table; `answer` computes it."""

    name: str
    surface: str
    norm: str
    budget: float
    answer: Callable[[], Answer]

    def __str__(self) -> str:
        what = self.name if self.surface == HISTORY else f"{self.name} {self.surface}"
        return f"{what}@{self.budget:g}"


@dataclass(frozen=True)
class Means:
    """What an attacker has beside the method: its pictures, and another seed of it to try things on."""

    pictures: Pictures | None
    surrogate: Method | None


def main(dataset: str = typer.Option(), method: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    settings = params.robustness
    _check(settings)
    with output_lock(study.SCRATCH, f"robustness-{dataset}--{method}"):
        prepared = inputs.load_cell(params, dataset, method)
        counts = (settings.users, settings.attack_users)
        samples = {count: _sample(prepared, settings, count) for count in counts}
        clean, targets = samples[settings.users]
        # One set of histories for all seeds and all methods: only the models differ.
        noises = _noises(clean, targets, settings, prepared.info.num_items)
        tables, accounts, flags, kept = [], {}, {}, []
        pictures = None
        seeds = inputs.seeds(params, dataset, method)
        for seed in seeds:
            model = inputs.trained(params, dataset, method, prepared, seed)
            subjects = {n: Subject(model, *samples[n], prepared.info.num_items) for n in samples}
            pictures = pictures or _pictures(params, dataset, model, prepared)
            other = seeds[(seeds.index(seed) + 1) % len(seeds)]
            can_transfer = other != seed and _transfers(settings)
            surrogate = inputs.trained(params, dataset, method, prepared, other) if can_transfer else None
            means = Means(pictures, surrogate)
            conditions = _conditions(subjects, settings, noises, prepared, means)
            states = [study.model(dataset, method) / f"seed-{s}.safetensors" for s in (seed, other)]
            folder = _scratch(params, dataset, method, seed, prepared, states[: 1 + can_transfer])
            kept.append(folder)
            answers, seconds = _answers(conditions, folder, f"{dataset} {method} {seed}")
            tables.append(_table(answers).assign(dataset=dataset, method=method, seed=seed))
            accounts[str(seed)] = _account(answers, seconds)
            outcomes = [answer.outcome for answer in answers.values()]
            found = _flags(subjects[settings.attack_users], settings, outcomes, means)
            flags[str(seed)] = [asdict(flag) for flag in found]
            if len(accounts) == 1 and params.datasets[dataset].is_simulated:
                _draw_pictures(dataset, method, subjects[settings.attack_users], settings, means)
        columns = list(schemas.TABLES["robustness"].columns)
        schemas.write("robustness", pd.concat(tables)[columns], study.robustness(dataset, method))
        record = {"dataset": dataset, "method": method, "config": asdict(settings), "seeds": accounts,
                  "noise_hashes": {f"{kind}@{budget:g}": n.hash for (kind, budget), n in noises.items()},
                  "pushed": _pushed(prepared, settings), "flags": flags,
                  "environment": environment()}  # fmt: skip
        study.write_json(study.cell("robustness", dataset, method), record)
        for folder in kept:
            shutil.rmtree(folder)


def _check(settings: RobustnessParams) -> None:
    for kind in settings.kinds:
        if kind not in KINDS:
            raise BallastError(f"params.yaml: robustness.kinds: unknown '{kind}'; known: {', '.join(KINDS)}")
    for key, count in [("users", settings.users), ("attack_users", settings.attack_users)]:
        if count < 1:
            raise BallastError(f"params.yaml: robustness.{key}: {count} is less than 1")
    if not any(budget > 0 for budget in settings.budgets):
        raise BallastError("params.yaml: robustness.budgets: give at least one share above 0")
    for name, block in settings.attacks.items():
        _attack(name, block, "items")


def _attack(name: str, block: AttackParams, surface: str) -> Attack:
    settings = {**block.attack, "surface": surface}
    return attacks.build(settings, f"params.yaml: robustness.attacks.{name}.attack")


def _sample(
    prepared: inputs.Prepared, settings: RobustnessParams, count: int
) -> tuple[SequenceStore, torch.Tensor]:
    """Clean histories (train and valid) of `count` sampled users, and their (U,) test targets.

    Drawn from the users who have a target and a history, by the seed of the noise alone; the users of a
    smaller sample are among those of a larger one.
    """
    users, targets = prepared.held_out("test")
    has_history = (prepared.store(["train", "valid"], users).lengths > 0).cpu().numpy()
    chosen = sample_users(users[has_history].astype(np.int64), count, settings.seed)
    return prepared.store(["train", "valid"], chosen), targets[torch.from_numpy(np.isin(users, chosen))]


def _noises(
    clean: SequenceStore, targets: torch.Tensor, settings: RobustnessParams, num_items: int
) -> Noises:
    """Every kind at every budget above 0; at 0 nothing changes, and the clean rank is in each row."""
    budgets = sorted({budget for budget in settings.budgets if budget > 0})
    return {
        (kind, budget): corrupt(clean, kind, budget, settings.seed, num_items, targets)
        for kind in dict.fromkeys(settings.kinds)
        for budget in budgets
    }


def _conditions(
    subjects: dict[int, Subject],
    settings: RobustnessParams,
    noises: Noises,
    prepared: inputs.Prepared,
    means: Means,
) -> list[Condition]:
    """All that the method has a surface for."""
    subject, victim, seed = subjects[settings.users], subjects[settings.attack_users], settings.seed
    found = [
        Condition(kind, HISTORY, "share", budget, partial(subject.corrupted, noise))
        for (kind, budget), noise in noises.items()
    ]
    for modality in losable(subject.method, MODALITIES):
        for share in settings.missing:
            answer = partial(subject.without, modality, share, seed)
            found.append(Condition("missing", modality, "share", share, answer))
    for name, block, attack in _attacks(victim.method, settings, means):
        pushed = _pushed(prepared, settings) if attack.config.goal == "promote" else [None]
        for place, item in enumerate(pushed):
            label = name if item is None else f"{name}-{place + 1}"
            for budget in block.budgets:
                answer = partial(victim.attacked, attack, budget, seed, item)
                found.append(Condition(label, attack.surface, attack.norm, budget, answer))
    return found


def _transfers(settings: RobustnessParams) -> bool:
    return any(block.attack.get("name") == "transfer" for block in settings.attacks.values())


def _attacks(method: Method, settings: RobustnessParams, means: Means) -> list[tuple[str, AttackParams, Any]]:
    found = []
    for name, block in settings.attacks.items():
        for surface in surfaces_for(method, block.surfaces):
            attack: Any = _attack(name, block, surface)
            if hasattr(attack, "on"):
                if means.pictures is None:
                    continue  # a catalogue without pictures, or vectors of somebody else's encoder
                attack.on(means.pictures)
            if hasattr(attack, "made_on") and not attack.made_on(means.surrogate).is_open(method):
                continue  # one seed alone, or rows that each seed has learned for itself
            found.append((name, block, attack))
    return found


def _pushed(prepared: inputs.Prepared, settings: RobustnessParams) -> list[int]:
    return pushed_items(prepared.info.item_counts, settings.pushed, settings.seed)


def _pictures(params: Params, dataset: str, method: Method, prepared: inputs.Prepared) -> Pictures | None:
    """The pictures that the method's features came from; None where they are not this project's encoder's."""
    path = study.features(dataset, "image").parent / "encoder.safetensors"
    if "image" not in method.surfaces or not path.exists():
        return None
    encoder = ImageEncoder.load(path).to(next(method.buffers()).device)
    names = schemas.read("items", study.prepared(dataset) / "items.parquet")["image"]
    given = [name if isinstance(name, str) else None for name in names]
    read = image.read_pictures(study.raw(dataset), given, encoder.shape["size"], "missing")
    if len(read.rows) == 0:
        return None
    items = torch.from_numpy(read.rows) + 1  # row 0 of the items table is item 1
    info = prepared.info
    return Pictures(encoder, read.pixels, items, info.features["image"], info.missing["image"])


def _scratch(
    params: Params, dataset: str, method: str, seed: int, prepared: inputs.Prepared, states: list[Path]
) -> Path:
    """Where finished conditions wait, apart for each state (its own, its surrogate's), data and setting."""
    digests = [hashlib.sha256(state.read_bytes()).hexdigest() for state in states]
    key = config_hash(
        asdict(params.robustness), asdict(params.cell(dataset, method)), prepared.digest,
        digests, inputs.code("robustness", method), environment(),
    )  # fmt: skip
    return study.SCRATCH / "robustness" / f"{dataset}--{method}-{seed}-{key}"


def _answers(
    conditions: list[Condition], folder: Path, label: str
) -> tuple[dict[Condition, Answer], dict[str, float]]:
    """Answers and seconds of each condition, those of an earlier run taken as they are."""
    answers, seconds = {}, {}
    for condition in tqdm(conditions, label, unit="condition", disable=None):
        path = folder / f"{config_hash(str(condition))}.pt"
        if not path.exists():
            started = time.monotonic()
            answer = condition.answer()
            with atomic_path(path) as temporary:
                torch.save({"answer": asdict(answer), "seconds": time.monotonic() - started}, temporary)
        # Written by this very stage: numpy arrays and numbers.
        saved = torch.load(path, weights_only=False)
        outcome = saved["answer"].pop("outcome")
        outcome = None if outcome is None else Outcome(**outcome)
        answers[condition] = Answer(**saved["answer"], outcome=outcome)
        seconds[str(condition)] = saved["seconds"]
    return answers, seconds


def _table(answers: dict[Condition, Answer]) -> pd.DataFrame:
    names = ("user_id", "clean_rank", "rank", "size", "truncated", "rbo")
    return pd.concat(
        pd.DataFrame(
            {
                **{name: getattr(answer, name) for name in names},
                "condition": condition.name,
                "surface": condition.surface,
                "norm": condition.norm,
                "budget": condition.budget,
            }
        )
        for condition, answer in answers.items()
    )


def _account(answers: dict[Condition, Answer], seconds: dict[str, float]) -> dict[str, Any]:
    """Cost of one seed, and what was really changed under each condition."""
    total = sum(seconds.values())
    rows = sum(len(answer.user_id) for answer in answers.values())
    return {
        "users": max(len(answer.user_id) for answer in answers.values()),
        "seconds": round(total, 2),
        "users_per_second": round(rows / total),
        "sizes": {str(c): round(float(answer.size.mean()), 6) for c, answer in answers.items()},
        "condition_seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def _draw_pictures(
    dataset: str, method: str, victim: Subject, settings: RobustnessParams, means: Means
) -> None:
    """Some pictures of the first seed's strongest attack on pixels; of simulated ones, which may be shown."""
    pictures = means.pictures
    for name, block, attack in _attacks(victim.method, settings, means):
        if pictures is not None and hasattr(attack, "on") and attack.config.goal != "promote":
            found: Any = victim.perturbed(attack, max(block.budgets), settings.seed)
            places = {int(item): place for place, item in enumerate(pictures.items)}
            rows = [places[int(item)] for item in found.items[:SHOWN]]
            clean = pictures.pixels[rows].float() / 255
            with atomic_path(Path("reports/content") / f"{dataset}--{method}--{name}.png") as temporary:
                attack_sheet(clean, found.pixels[:SHOWN].cpu()).save(temporary)


def _flags(
    victim: Subject,
    settings: RobustnessParams,
    outcomes: list[Outcome | None],
    means: Means,
) -> list[Flag]:
    """All that the checks have to say of one seed."""
    chosen = _attacks(victim.method, settings, means)
    if not chosen:
        return []
    flags, known, looked = check_scores(victim.method, victim.sample), [o for o in outcomes if o], set()
    for _, block, attack in chosen:
        if attack.config.goal == "promote" or hasattr(attack, "on"):
            continue
        clean = victim.untouched(attack)
        key = (attack.surface, attack.norm, attack.config.scope)
        if key not in looked:
            looked.add(key)
            known.append(clean)
            flags += victim.surface_flags(attack, min(block.budgets), settings.seed)
    return flags + check_outcomes(known)


if __name__ == "__main__":
    study.run(main)
