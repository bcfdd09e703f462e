"""Caser: Tang & Wang, Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding,
WSDM 2018, arXiv 1809.07426.

The last W item vectors before a target are an image E of (W, D). Horizontal filters F of heights h = 1..W:
max over places of relu(F . E[place : place + h] + b). Vertical filters: sum_l f_l E_l, a vector of D each.
z = relu(W_z dropout([horizontal; vertical]) + b_z); item i scores z . e_i.

Departs from the paper and the authors' code: no user vector and no separate output table or item bias,
so that it stays inductive (a user unseen in training can be served) and differs from the other backbones
by its encoder alone; each position predicts the next item, not the next T.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ballast.errors import BallastError
from ballast.models.backbones import Backbone, item_vectors
from ballast.models.layers import Dropout


class Encoder(Backbone):
    """Convolutions over the last `window` items, zero vectors where there are fewer."""

    table_std: ClassVar[float] = 0.1

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        window: int = 5
        horizontal_filters: int = 16
        vertical_filters: int = 4

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__(config, dim, max_len, dropout)
        if not 1 <= config.window <= max_len:
            raise BallastError(f"backbone caser: window {config.window} is not within 1..{max_len} (max_len)")
        self.window = config.window
        self.horizontal = nn.ModuleList(
            nn.Linear(height * dim, config.horizontal_filters) for height in range(1, self.window + 1)
        )
        self.vertical = nn.Linear(self.window, config.vertical_filters, bias=False)
        self.dropout = Dropout(dropout)
        width = self.window * config.horizontal_filters + config.vertical_filters * dim
        self.output = nn.Linear(width, dim)

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        vectors = item_vectors(history, table) * (history != 0)[:, :, None]  # (B, L, D)
        length, dim = vectors.shape[1:]
        before = self.window - 1
        # A filter lower than the window also looks at places that begin before the first item, hence
        # twice the padding: windows end at the places -before..L - 1.
        padded = functional.pad(vectors, (0, 0, 2 * before, 0))  # (B, L + 2 W - 2, D)
        shifted = [padded[:, start : start + length + before] for start in range(self.window)]
        windows = torch.cat(shifted, dim=2)  # (B, L + W - 1, W D), oldest item first
        parts = []
        for height, kernel in enumerate(self.horizontal, start=1):
            seen = windows[:, height - 1 :, (self.window - height) * dim :]  # (B, L + W - h, h D)
            response = torch.relu(kernel(seen))  # shared by all windows that hold the place
            parts.append(response.unfold(1, self.window - height + 1, 1).amax(-1))  # (B, L, F)
        image = windows[:, before:].unflatten(2, (self.window, dim))  # (B, L, W, D)
        parts.append(self.vertical(image.transpose(2, 3)).flatten(2))  # (B, L, D V)
        return torch.relu(self.output(self.dropout(torch.cat(parts, dim=2))))
