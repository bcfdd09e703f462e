"""Gaussian diffusion over item vectors: the noise schedule, its reverse chain, and repeatable noise.

Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020, arXiv 2006.11239: with beta_t
rising linearly over T steps and abar_t = prod_{s <= t} (1 - beta_s), a vector after t steps is x_t =
sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (eq. 4), and the step before it, given x_0, is Gaussian with the mean
and variance of eq. 7. Steps are counted from 0 in tensors: row t - 1 belongs to step t.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ballast.errors import BallastError
from ballast.reproducibility import generator


class Schedule(nn.Module):
    """beta linear from `first` to `last` over `steps`; with `is_noisy` False nothing is ever added or shrunk.

    Buffers, (T,) each: alpha_bar; signal sqrt(abar); noise sqrt(1 - abar); posterior_std sqrt(beta~), what
    a sample of the step before spreads by, whose first entry, 0 by definition, repeats the second as in
    DDPM's code. Raises BallastError unless 0 < first <= last < 1.
    """

    alpha_bar: Tensor
    signal: Tensor
    noise: Tensor
    posterior_std: Tensor

    def __init__(self, steps: int, first: float, last: float, is_noisy: bool = True) -> None:
        super().__init__()
        if steps < 1 or not 0 < first <= last < 1:
            raise BallastError(f"noise schedule: need steps >= 1 and 0 < {first} <= {last} < 1")
        beta = torch.linspace(first, last, steps, dtype=torch.float64)
        if not is_noisy:
            beta = torch.zeros_like(beta)
        alpha_bar = (1 - beta).cumprod(0)
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        variance = beta * (1 - before) / (1 - alpha_bar).clamp(min=1e-300)
        variance[0] = variance[min(1, steps - 1)]
        values = {
            "alpha_bar": alpha_bar,
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "posterior_std": variance.sqrt(),
        }
        for name, value in values.items():
            # Settings, not weights: a saved model need not hold them.
            self.register_buffer(name, value.float(), persistent=False)

    def noised(self, vectors: Tensor, noise: Tensor, steps: Tensor | None = None) -> Tensor:
        """x_t of clean `vectors` under `noise` that starts with one entry a step; all T steps if None."""
        chosen = slice(None) if steps is None else steps
        shape = (-1, *[1] * (noise.dim() - 1))
        return torch.addcmul(self.signal[chosen].view(shape) * vectors, self.noise[chosen].view(shape), noise)

    def reverse(self, estimate: Tensor, now: Tensor, step: int, before: int, noise: Tensor | None) -> Tensor:
        """A sample after `before` steps from `now`, one after `step` > `before`, and the estimate of x_0.

        Steps are counted from 1 here, and 0 is x_0 itself. Steps between the two are skipped: the posterior
        of eq. 7 holds with abar_step / abar_before in place of one step's alpha. Without noise, its mean.
        """
        if before == 0:
            return estimate
        here, there = self.alpha_bar[step - 1].double(), self.alpha_bar[before - 1].double()
        alpha = here / there
        to_estimate = there.sqrt() * (1 - alpha) / (1 - here)
        to_now = alpha.sqrt() * (1 - there) / (1 - here)
        mean = to_estimate.to(now.dtype) * estimate + to_now.to(now.dtype) * now
        if noise is None:
            return mean
        return mean + ((1 - alpha) * (1 - there) / (1 - here)).sqrt().to(now.dtype) * noise

    def steps_back(self, count: int | None) -> list[int]:
        """`count` of the T steps, evenly spread, from T down to 0; all of them if None.

        >>> Schedule(20, 1e-4, 0.04).steps_back(4)
        [20, 15, 10, 5, 0]
        """
        total = len(self.alpha_bar)
        count = total if count is None else count
        return [round(total * (count - step) / count) for step in range(count + 1)]


def checked_reverse_steps(reverse_steps: int | None, steps: int) -> None:
    """Raise BallastError unless a chain of so many steps fits into the schedule's."""
    if reverse_steps is not None and not 1 <= reverse_steps <= steps:
        raise BallastError(f"model.reverse_steps: between 1 and steps ({steps}), got {reverse_steps}")


def noise_of_histories(history: Tensor, shape: Callable[[int], tuple[int, ...]], seed: int) -> list[Tensor]:
    """Standard normal noise for each row of histories (B, L), of the shape that its number of items gives.

    Drawn anew from a generator of the seed and the row's items: a user's noise depends neither on the
    company in the batch, nor on padding, nor on what was drawn before.
    """
    drawn = []
    for row in history.cpu():
        items = row[row != 0].tolist()
        drawn.append(torch.randn(shape(len(items)), generator=generator(seed, "inference noise", *items)))
    return drawn
