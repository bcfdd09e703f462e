"""The noise schedule against its closed forms, and the contrast against its definition."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ballast.errors import BallastError
from ballast.models import contrast
from ballast.models.contrast import nt_xent
from ballast.models.diffusion import Schedule, checked_reverse_steps, noise_of_histories


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Schedule


@pytest.mark.parametrize(
    ("steps", "last", "alpha_bar"),
    [(20, 0.04, 0.666), (20, 0.08, 0.439), (30, 0.002, 0.969), (25, 0.002, 0.974)],
)
def test_what_is_left_of_the_signal(steps: int, last: float, alpha_bar: float) -> None:
    schedule = Schedule(steps, 1e-4, last)
    assert schedule.alpha_bar.shape == (steps,)
    assert schedule.alpha_bar[0].item() == pytest.approx(1 - 1e-4)
    assert schedule.alpha_bar[-1].item() == pytest.approx(alpha_bar, abs=5e-4)
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(steps))


def test_posterior_spread_by_hand() -> None:
    schedule = Schedule(3, 0.1, 0.3)
    bars = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]
    second = 0.2 * (1 - bars[0]) / (1 - bars[1])
    third = 0.3 * (1 - bars[1]) / (1 - bars[2])
    expected = torch.tensor([second, second, third]).sqrt()  # the first, zero, repeats the second
    torch.testing.assert_close(schedule.posterior_std, expected)


def test_without_noise_nothing_changes() -> None:
    schedule = Schedule(4, 1e-4, 0.04, is_noisy=False)
    vectors = torch.randn(4, 5, 3, generator=seeded())
    assert torch.equal(schedule.noised(vectors, torch.randn_like(vectors)), vectors)
    assert not schedule.posterior_std.any()


def test_noised_vectors_have_the_moments_of_the_closed_form() -> None:
    schedule = Schedule(4, 0.05, 0.5)
    noise = torch.randn(4, 50_000, 1, generator=seeded())
    found = schedule.noised(torch.full((1, 1), 3.0), noise)
    torch.testing.assert_close(found.mean((1, 2)), 3 * schedule.alpha_bar.sqrt(), atol=0.02, rtol=0)
    torch.testing.assert_close(found.var((1, 2)), 1 - schedule.alpha_bar, atol=0.02, rtol=0)
    chosen = torch.tensor([2, 0])
    assert torch.equal(schedule.noised(torch.full((1, 1), 3.0), noise[chosen], chosen), found[chosen])


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_chain_that_knows_the_item_ends_at_its_distribution(count: int) -> None:
    """With the true x_0 as the estimate, a reverse sample is one of the forward process, skipped or not."""
    schedule = Schedule(6, 0.1, 0.5)
    truth = torch.full((100_000, 1), 2.0)
    now = schedule.noised(truth, torch.randn(1, 100_000, 1, generator=seeded()), torch.tensor([5]))[0]
    places, rng = schedule.steps_back(count), seeded(1)
    assert places[0] == 6
    assert len(places) == count + 1
    for step, before in pairwise(places):
        now = schedule.reverse(truth, now, step, before, torch.randn(100_000, 1, generator=rng))
        bar = float(schedule.alpha_bar[before - 1]) if before else 1.0
        assert now.mean().item() == pytest.approx(2 * math.sqrt(bar), abs=0.02)
        assert now.var().item() == pytest.approx(1 - bar, abs=0.02)
    assert torch.equal(now, truth)


@pytest.mark.parametrize(
    ("steps", "first", "last"), [(0, 0.1, 0.2), (3, 0.0, 0.2), (3, 0.3, 0.2), (3, 0.1, 1.0)]
)
def test_a_schedule_that_is_none_is_an_error(steps: int, first: float, last: float) -> None:
    with pytest.raises(BallastError, match="noise schedule"):
        Schedule(steps, first, last)


@pytest.mark.parametrize("count", [0, 21])
def test_a_chain_longer_than_the_schedule_is_an_error(count: int) -> None:
    with pytest.raises(BallastError, match=r"model\.reverse_steps: between 1 and steps \(20\)"):
        checked_reverse_steps(count, 20)


def test_noise_is_of_the_history_alone() -> None:
    history = torch.tensor([[0, 3, 7], [0, 0, 5], [1, 3, 7]])
    drawn = noise_of_histories(history, lambda count: (count, 4), 0)
    assert [row.shape[0] for row in drawn] == [2, 1, 3]
    (alone,) = noise_of_histories(torch.tensor([[3, 7]]), lambda count: (count, 4), 0)
    assert torch.equal(alone, drawn[0])
    (other,) = noise_of_histories(torch.tensor([[3, 7]]), lambda count: (count, 4), 1)
    assert not torch.equal(other, alone)
    assert not torch.equal(drawn[2][:2], drawn[0])


# Contrast


def plain(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """(T,) NT-Xent, step after step, by its definition."""
    found = []
    for one, two in zip(first, second, strict=True):
        views = functional.normalize(torch.cat([one, two]), dim=1)
        likeness = views @ views.T / temperature
        likeness = likeness.masked_fill(torch.eye(len(views), dtype=torch.bool), -torch.inf)
        other = torch.arange(len(views)).roll(len(one))
        found.append(functional.cross_entropy(likeness, other))
    return torch.stack(found)


def pair(
    count: int = 7, steps: int = 3, dim: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    rng = seeded()
    first, second = (torch.randn(steps, count, dim, generator=rng, dtype=dtype) for _ in range(2))
    return first.requires_grad_(), (second + first.detach()).requires_grad_()


# All steps at once, each by itself, and tiles that are computed again; 300 pairs are cut into four tiles.
@pytest.mark.parametrize(("count", "block"), [(7, 1 << 22), (7, 1), (300, 1 << 22), (300, 1)])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_contrast_in_blocks_equals_the_plain_one(count: int, block: int, temperature: float) -> None:
    first, second = pair(count)
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    ours, theirs = nt_xent(first, second, temperature, block=block), plain(first, second, temperature)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    mine = torch.autograd.grad(ours @ weights, (first, second))
    for found, expected in zip(mine, torch.autograd.grad(theirs @ weights, (first, second)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_tiles_are_really_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the test above: a block that was ignored would pass it."""
    calls = []
    tile = contrast._tile
    monkeypatch.setattr(contrast, "_tile", lambda *given: calls.append(given) or tile(*given))
    first, second = pair(300)
    for block, expected in [(1 << 22, 3), (1, 3 * 3 * 2)]:  # 3 steps at once; 3 steps, 3 tiles, 2 passes
        calls.clear()
        nt_xent(first, second, 0.5, block=block)
        assert len(calls) == expected


def test_contrast_under_autocast_is_near() -> None:
    first, second = pair(40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = nt_xent(first, second, 0.5)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain(first, second, 0.5), atol=0.02, rtol=0)


def test_random_features_approach_the_exact_contrast() -> None:
    first, second = pair(20, steps=2)
    first, second = first.detach(), second.detach()
    exact = plain(first, second, 0.5)
    errors = []
    for features in (64, 1024, 16384):
        drawn = [nt_xent(first, second, 0.5, "random_features", features, seeded(seed)) for seed in range(8)]
        errors.append((torch.stack(drawn) - exact).abs().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.01


def test_the_estimate_is_finite_even_where_features_are_few() -> None:
    first, second = pair(2, steps=2)
    for seed in range(20):
        found = nt_xent(first, second, 0.1, "random_features", 1, seeded(seed))
        assert torch.isfinite(found).all()
        assert all(torch.isfinite(part).all() for part in torch.autograd.grad(found.sum(), (first, second)))


def test_no_pair_is_no_loss() -> None:
    first = torch.zeros(3, 0, 5, requires_grad=True)
    assert nt_xent(first, first, 0.5).tolist() == [0, 0, 0]


def test_a_temperature_that_overflows_is_an_error() -> None:
    with pytest.raises(BallastError, match="temperature"):
        nt_xent(*pair(), 0.01)
