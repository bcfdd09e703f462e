"""DiffuRec: what a state may see, and its reverse chain."""

from typing import Any

import pytest
import torch
from conftest import make_store, walk
from test_diffusion import seeded
from torch import Tensor

from ballast.data.sequences import Batch, training_batches
from ballast.errors import BallastError
from ballast.models import registry
from ballast.models.backbones import item_vectors
from ballast.models.method import DatasetInfo
from ballast.reproducibility import seed_dropout


def built(info: DatasetInfo, **settings: Any) -> Any:
    seed_dropout(0, "initial weights")
    small = {"dim": 8, "max_len": 10, "dropout": 0.0, "steps": 6, "delta": 0.5, **settings}
    model = registry.build("diffurec", registry.configure("diffurec", small, "model"), info).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(len(name))) * 0.3)
        model.items.weight[0] = 0
    return model.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


HISTORY = torch.tensor([[0, 0, 3, 8, 9], [5, 4, 7, 1, 2]])


@torch.no_grad()
def test_the_input_is_the_item_and_its_share_of_the_noised_target(toy_info: DatasetInfo) -> None:
    model = built(toy_info)
    noised, spread, step = normal(2, 5, 8), normal(2, 5, 8, seed=1), torch.tensor([4, 0])
    found = model.estimates(HISTORY, noised, step, spread)
    share = 0.5 + 0.5 * spread
    mixed = model.items.weight[HISTORY] + share * (noised + model.step_vectors[step][:, None])
    for user in range(2):  # a table made of the user's positions
        real = HISTORY[user] != 0
        rows = torch.cat([torch.zeros(1, 8, dtype=torch.float64), mixed[user, real]])
        alone = model.backbone(torch.arange(1, len(rows))[None], rows)
        torch.testing.assert_close(found[user, real], alone[0])


@torch.no_grad()
def test_a_state_sees_no_later_item_and_no_later_target(toy_info: DatasetInfo) -> None:
    model = built(toy_info)
    noised, spread, step = normal(2, 5, 8), normal(2, 5, 8, seed=1), torch.tensor([4, 0])
    states = model.estimates(HISTORY, noised, step, spread)
    for place in range(2, 5):
        later, items = noised.clone(), HISTORY.clone()
        later[:, place] += 1
        items[:, place] += 1
        for other in (
            model.estimates(HISTORY, later, step, spread),
            model.estimates(items, noised, step, spread),
        ):
            assert torch.equal(other[:, :place], states[:, :place])
            assert not torch.isclose(other[:, place], states[:, place]).all(1).any()


def test_the_loss_is_that_of_the_reconstructed_targets(toy_info: DatasetInfo) -> None:
    model = built(toy_info)
    given = next(iter(training_batches(make_store(walk(6)), 6, 10, seeded())))
    loss = model.training_step(given, seeded(1))["loss"]
    rng, shape = seeded(1), (*given.history.shape, 8)
    step = torch.randint(6, (len(given.history),), generator=rng)
    noise, spread = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    bar = model.schedule.alpha_bar.double()[step][:, None, None]
    noised = bar.sqrt() * item_vectors(given.targets, model.items.weight) + (1 - bar).sqrt() * noise
    states = model.estimates(given.history, noised, step, spread)[given.targets != 0]
    logits = states @ model.items.weight.T
    logits = logits.index_fill(1, torch.tensor([0]), -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, given.targets[given.targets != 0])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@torch.inference_mode()
def test_the_chain(toy_info: DatasetInfo) -> None:
    """Repeatable without a generator, of the history alone, and different in each draw."""
    model = built(toy_info, draws=3, reverse_steps=2)
    given = Batch(torch.arange(2), HISTORY)
    passes = model.states(given)
    assert passes.shape == (3, 2, 8)
    assert not torch.allclose(passes[0], passes[1])
    assert torch.equal(model.states(given), passes)
    assert torch.equal(model.states(given, seeded(1)), model.states(given, seeded(1)))
    torch.testing.assert_close(model.states(Batch(torch.arange(1), HISTORY[:1, 2:]))[:, 0], passes[:, 0])
    torch.testing.assert_close(model.score(given), (passes.mean(0) @ model.items.weight.T).float())
    other = HISTORY.clone()
    other[:, -1] = 30
    assert not torch.allclose(model.score(Batch(torch.arange(2), other)), model.score(given))


@torch.inference_mode()
def test_without_a_share_of_noise_it_is_its_backbone(toy_info: DatasetInfo) -> None:
    model = built(toy_info, delta=0.0, steps=1)
    query = model.backbone.query(HISTORY, model.items.weight)
    torch.testing.assert_close(model.states(Batch(torch.arange(2), HISTORY))[0], query)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": {"name": "bert4rec"}}, "needs a causal one, not bert4rec"),
        ({"reverse_steps": 7}, r"reverse_steps: between 1 and steps \(6\)"),
        ({"item_gradient": "sparse", "loss": {"name": "bce"}}, "does not go with noised targets"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, toy_info: DatasetInfo) -> None:
    with pytest.raises(BallastError, match=message):
        built(toy_info, **settings)
