"""Backbones: item vectors of a history to hidden states, position t seeing positions <= t only."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ballast.errors import BallastError
from ballast.strict import Strict, parse


class Backbone(nn.Module):
    """Base of the backbones: one file each, whose class is named `Encoder`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Strict):
        """Settings of the backbone; `name` chooses its file."""

        name: str

    def __init__(self, config: Any, dim: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.config = config

    def forward(self, vectors: Tensor, is_real: Tensor) -> Tensor:
        """(B, L, D) item vectors and (B, L) bool mask of real positions to (B, L, D) states."""
        raise NotImplementedError


def build(settings: dict[str, Any], dim: int, max_len: int, dropout: float, where: str) -> Backbone:
    """The backbone named by `settings["name"]`; raises BallastError on an unknown name or setting."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    name = settings.get("name")
    if name not in known:
        raise BallastError(f"{where}: unknown backbone {name!r}; known: {', '.join(known)}")
    kind = importlib.import_module(f"{__name__}.{name}").Encoder
    backbone: Backbone = kind(parse(kind.Config, settings, where), dim, max_len, dropout)
    return backbone
