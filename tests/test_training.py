"""The gradient loop: early stopping, resuming, refusals, and what a batch holds."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor, nn

from ballast.data.sequences import Batch, SequenceStore, training_batches
from ballast.errors import BallastError
from ballast.models import registry, training
from ballast.models.method import DatasetInfo, Method
from ballast.models.training import Progress, Validation, fit
from ballast.params import TrainingParams
from ballast.reproducibility import environment, generator, seed_dropout

BLOCK = {"loss": {"name": "bce"}, "dim": 16, "max_len": 10, "dropout": 0.3}


@pytest.fixture(scope="module")
def store() -> SequenceStore:
    return make_store(walk(60))


@pytest.fixture(scope="module")
def validation() -> Validation:
    histories = walk(30, seed=1)
    return Validation(
        make_store([history[:-1] for history in histories]), torch.tensor([h[-1] for h in histories])
    )


def fresh(info: DatasetInfo, seed: int = 0) -> Method:
    """SASRec under the loss that draws the most: dropout, negatives and batches all take part."""
    seed_dropout(seed, "initial weights")
    return registry.build("next_item", registry.configure("next_item", BLOCK, "model"), info)


def settings(**changes: Any) -> TrainingParams:
    return TrainingParams(**{"batch_size": 16, "max_epochs": 6, "patience": 6, **changes})


def weights(method: Method) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untimed(progress: Progress) -> list[dict[str, float]]:
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in progress.history]


@dataclass(frozen=True, kw_only=True)
class Script(Validation):
    """Validation scores that are given; keeps the weights that each was asked of."""

    scores: Iterator[float]
    asked: list[dict[str, Tensor]] = field(default_factory=list)

    def ndcg(self, method: Method) -> float:
        assert not method.training
        self.asked.append(weights(method))
        return next(self.scores)


def script(scores: list[float], validation: Validation) -> Script:
    return Script(validation.store, validation.targets, scores=iter(scores))


# Early stopping


def test_keeps_the_weights_of_the_best_epoch(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation
) -> None:
    scripted = script([0.1, 0.3, 0.2, 0.3, 0.25], validation)
    method = fresh(toy_info)
    progress = fit(method, store, scripted, settings(max_epochs=99, patience=3), seed=0)
    assert (progress.epoch, progress.best_epoch, progress.best_ndcg) == (
        5,
        2,
        0.3,
    )  # an equal score is no gain
    asked = scripted.asked  # type: ignore[attr-defined]
    assert is_same(weights(method), asked[1])
    assert not is_same(asked[1], asked[4])
    assert not method.training
    summary = progress.summary()
    assert (summary["epochs"], summary["best_epoch"], summary["valid_ndcg@10"]) == (5, 2, 0.3)
    assert [epoch["valid_ndcg@10"] for epoch in summary["history"]] == [0.1, 0.3, 0.2, 0.3, 0.25]
    assert [epoch["epoch"] for epoch in summary["history"]] == [1, 2, 3, 4, 5]


def test_stops_at_the_last_epoch_allowed(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation
) -> None:
    scripted = script([0.1, 0.2, 0.3, 0.4], validation)
    progress = fit(fresh(toy_info), store, scripted, settings(max_epochs=4, patience=2), seed=0)
    assert (progress.epoch, progress.best_epoch) == (4, 4)


def test_a_method_that_ranks_nothing_still_has_a_best_epoch(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation
) -> None:
    scripted = script([0.0, 0.0, 0.0], validation)
    progress = fit(fresh(toy_info), store, scripted, settings(patience=2), seed=0)
    assert (progress.epoch, progress.best_epoch, progress.best_ndcg) == (3, 1, 0.0)


def test_on_epoch_may_end_the_run(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation
) -> None:
    progress = fit(
        fresh(toy_info), store, validation, settings(), seed=0, on_epoch=lambda now: now.epoch == 2
    )
    assert progress.epoch == 2


# Resuming


class KilledError(Exception):
    """Stands for the end of the process."""


def run(
    info: DatasetInfo,
    store: SequenceStore,
    validation: Validation,
    checkpoint: Path | None,
    killed_after: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Progress, list[int]]:
    """Weights, account and the epochs that this process ran; killed after an epoch if told so."""
    method, epochs = fresh(info, seed), []

    def on_epoch(progress: Progress) -> bool:
        epochs.append(progress.epoch)
        if progress.epoch == killed_after:
            raise KilledError
        return False

    try:
        progress = fit(method, store, validation, settings(), seed, checkpoint, on_epoch)
    except KilledError:
        progress = Progress()
    return weights(method), progress, epochs


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_resumed_run_ends_as_an_undisturbed_one(
    killed_after: int,
    toy_info: DatasetInfo,
    store: SequenceStore,
    validation: Validation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    checkpoint = tmp_path / "scratch" / "run.ckpt"
    undisturbed, progress, _ = run(toy_info, store, validation, None)
    _, _, before = run(toy_info, store, validation, checkpoint, killed_after)
    assert before == list(range(1, killed_after + 1))
    torch.manual_seed(77)  # another process, another state of the global generator
    resumed, account, after = run(toy_info, store, validation, checkpoint)
    assert after == list(range(killed_after + 1, 7))
    assert is_same(resumed, undisturbed)
    assert untimed(account) == untimed(progress)
    assert (account.best_epoch, account.best_ndcg) == (progress.best_epoch, progress.best_ndcg)
    assert account.targets == progress.targets


def test_killed_twice_and_resumed_with_the_best_epoch_behind(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The best weights lie in the checkpoint too, not only the last ones."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    scores = [0.1, 0.5, 0.3, 0.2, 0.2, 0.1]
    undisturbed = fresh(toy_info)
    fit(undisturbed, store, script(scores, validation), settings(), 0)
    checkpoint = tmp_path / "run.ckpt"
    for start, stop in [(0, 3), (3, 4)]:
        scripted = script(scores[start:stop], validation)  # runs out of scores as if killed
        with pytest.raises(StopIteration):
            fit(fresh(toy_info), store, scripted, settings(), 0, checkpoint)
    method = fresh(toy_info)
    progress = fit(method, store, script(scores[4:], validation), settings(), 0, checkpoint)
    assert (progress.epoch, progress.best_epoch) == (6, 2)
    assert is_same(weights(method), weights(undisturbed))


def test_a_finished_run_is_not_run_again(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    first, _, _ = run(toy_info, store, validation, tmp_path / "run.ckpt")
    second, progress, epochs = run(toy_info, store, validation, tmp_path / "run.ckpt")
    assert epochs == []
    assert progress.epoch == 6
    assert is_same(first, second)


def test_checkpoints_are_rare_and_leave_nothing_else(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(toy_info, store, validation, tmp_path / "run.ckpt")
    assert list(tmp_path.iterdir()) == []  # over before the first was due
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    run(toy_info, store, validation, tmp_path / "run.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]


def test_seeds_differ_in_weights_batches_and_noise(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation
) -> None:
    (one, first, _), (other, second, _) = (run(toy_info, store, validation, None, seed=s) for s in (0, 1))
    assert not is_same(one, other)
    assert first.history[0]["loss"] != second.history[0]["loss"]


# Refusals


class Diverging(Method):
    """A loss that is what it is told to be."""

    def __init__(self, losses: list[float]) -> None:
        nn.Module.__init__(self)
        self.vector = nn.Parameter(torch.ones(ITEMS + 1))
        self.losses = iter(losses)

    max_len = 10

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        return {"loss": self.vector.mean() * 0 + next(self.losses)}

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        return self.vector.expand(len(batch.history), -1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_with_its_epoch(
    bad: float, store: SequenceStore, validation: Validation
) -> None:
    epoch = len(list(training_batches(store, 16, 10, generator(0))))
    losses = [1.0] * epoch + [1.0] * (epoch - 1) + [bad]
    with pytest.raises(BallastError) as error:
        fit(Diverging(losses), store, validation, settings(), seed=0)
    message = "the training loss is not finite in epoch 2: lower training.learning_rate"
    assert str(error.value) == message


def test_a_learning_rate_far_too_high_is_told(
    toy_info: DatasetInfo, store: SequenceStore, validation: Validation
) -> None:
    with pytest.raises(BallastError, match="not finite"):
        fit(fresh(toy_info), store, validation, settings(learning_rate=1e38), seed=0)


# What an epoch is


class Recording(Diverging):
    """Notes the batches; the loss of a batch is its number of users."""

    def __init__(self) -> None:
        super().__init__([])
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {"loss": self.vector.mean() * 0 + float(len(batch.history))}


def count_targets(batch: Batch) -> int:
    assert batch.targets is not None
    return int((batch.targets != 0).sum())


@pytest.mark.parametrize(
    "found", [{"avx2": True}, {"avx512_bf16": True}, {"avx512_bf16": False, "amx_bf16": True}]
)
def test_bfloat16_is_left_to_processors_that_have_it(
    found: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without instructions of their own they are dozens of times slower in it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    has_it = "avx2" not in found
    with training._autocast(torch.device("cpu"), "bfloat16"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if has_it else torch.float32)
    assert environment()["has_bfloat16"] == has_it


def test_the_loss_of_an_epoch_is_a_mean_over_targets(store: SequenceStore, validation: Validation) -> None:
    method = Recording()
    progress = fit(method, store, validation, settings(max_epochs=1), seed=0)
    sizes = torch.tensor([float(len(batch.history)) for batch in method.batches])
    targets = torch.tensor([count_targets(batch) for batch in method.batches])
    assert len(set(sizes.tolist())) > 1
    assert progress.history[0]["loss"] == pytest.approx(float((sizes * targets).sum() / targets.sum()))
    assert progress.targets == int(targets.sum())


def test_batches_hold_about_equally_many_targets(validation: Validation) -> None:
    short, long = walk(300, seed=4, shortest=2, longest=3), walk(60, seed=5, shortest=11, longest=11)
    method = Recording()
    fit(method, make_store(short + long), validation, settings(max_epochs=1, batch_size=30), seed=0)
    targets = [count_targets(batch) for batch in method.batches]
    users = [len(batch.history) for batch in method.batches]
    assert sum(users) == 360
    assert max(users) > 4 * min(users)  # batches of short histories hold many users
    # Cut between users: a batch is off by at most one history, of ten targets, at each end.
    assert max(targets) - min(targets) <= 20
    assert len(targets) == 12


def test_every_epoch_has_batches_of_its_own(store: SequenceStore, validation: Validation) -> None:
    method = Recording()
    fit(method, store, validation, settings(max_epochs=2), seed=0)
    half = len(method.batches) // 2
    company = [{tuple(sorted(batch.user_id.tolist())) for batch in part}
               for part in (method.batches[:half], method.batches[half:])]  # fmt: skip
    assert company[0] != company[1]
    assert sorted(sum(company[0], ())) == sorted(sum(company[1], ())) == list(range(1, 61))
