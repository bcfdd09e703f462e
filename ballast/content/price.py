"""Prices -> sinusoidal features of the standardised log price.

ANT (Peng et al., arXiv 2309.10195) feeds 64-d price vectors but did not release its price encoder; this
is the form of the position encodings of Vaswani et al. 2017 with a real number in place of a position.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ballast.content.features import Features, scattered
from ballast.strict import Strict


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Strict):
    """dim / 2 sines and as many cosines, frequencies in geometric steps, in radians a standard deviation.

    `fit_on` names the datasets whose training items give mean and deviation; empty means its own.
    """

    name: Literal["sinusoidal"] = "sinusoidal"
    dim: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    min_frequency: Annotated[float, Field(gt=0)] = 0.25
    max_frequency: Annotated[float, Field(gt=0)] = 16.0
    fit_on: list[str] = field(default_factory=list)


CONFIGS: dict[str, type[Strict]] = {"sinusoidal": Sinusoidal}


@dataclass(frozen=True)
class LogPriceScale:
    """Mean and standard deviation of log1p(price)."""

    mean: float
    deviation: float


def fit(prices: NDArray[np.float64], n_train: NDArray[np.int64]) -> LogPriceScale:
    """The scale of the items that are in training: what sells only in the test must not move it.

    prices: (N,) in the dataset's units, NaN where unknown. n_train: (N,) training interactions.
    """
    known = np.log1p(prices[np.isfinite(prices) & (n_train > 0)])
    if len(known) == 0:
        return LogPriceScale(0.0, 1.0)
    deviation = float(known.std())
    return LogPriceScale(float(known.mean()), deviation if deviation > 1e-9 else 1.0)


def embed(config: Sinusoidal, prices: NDArray[np.float64], scale: LogPriceScale) -> Features:
    """(N,) prices, NaN where unknown -> (N, dim); every known price has the norm sqrt(dim / 2)."""
    rows = np.flatnonzero(np.isfinite(prices))
    standard = (np.log1p(prices[rows]) - scale.mean) / scale.deviation  # (P,)
    frequencies = np.geomspace(config.min_frequency, config.max_frequency, config.dim // 2)
    phase = standard[:, None] * frequencies  # (P, dim / 2)
    vectors = np.concatenate([np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)  # (P, dim)
    features = scattered(vectors, rows, len(prices))
    record: dict[str, Any] = {"log_price_mean": scale.mean, "log_price_deviation": scale.deviation}
    return Features(features.vectors, features.missing, record=record)
