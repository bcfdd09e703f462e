"""What may be changed in a trained method without touching it: its declared surfaces, exchanged for a call.

A surface is an entry of `Method.surfaces`: a name (items, text, image, price) and the parameter or buffer
behind it, (I, F) with one row an item. Where one tensor holds several modalities side by side, an entry
names its columns: `{"text": "vectors[0:128]", "image": "vectors[128:256]"}`.

Most methods whiten content before they keep it, and budgets are of whitened rows. A method that keeps it as
it came names these surfaces in `raw_surfaces`: they are whitened here, attacked there, and what an attack
added is brought back to the method's rows, so that one budget is one change of the content for all.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ballast.content import whitening
from ballast.data.sequences import Batch
from ballast.errors import BallastError
from ballast.models.method import Method

# Share of the largest scale of a whitening; what `whitening.fit` keeps has more.
NO_VARIANCE = 1e-4

_COLUMNS = re.compile(r"(?P<tensor>[\w.]+)(?:\[(?P<first>\d+):(?P<last>\d+)\])?")


def call_with(method: Method, name: str, overrides: dict[str, Tensor], *arguments: Any) -> Any:
    """`method.<name>(*arguments)` with some parameters and buffers exchanged.

    Weights and their `.grad` stay as they are; gradients flow to the tensors in `overrides`.
    """
    replaced = {f"method.{key}": value for key, value in overrides.items()}
    return functional_call(_Calling(method, name), replaced, arguments)


class _Calling(nn.Module):
    """functional_call runs `forward` alone; this one's is another function of the method."""

    def __init__(self, method: Method, name: str) -> None:
        super().__init__()
        self.method, self.name = method, name

    def forward(self, *arguments: Any) -> Any:
        return getattr(self.method, self.name)(*arguments)


class Overridden(Method):
    """`method` with some tensors exchanged, for `rank_targets` and whatever else takes a method."""

    def __init__(self, method: Method, overrides: dict[str, Tensor]) -> None:
        nn.Module.__init__(self)  # there is no config and no dataset to know
        self.method, self.overrides = method, overrides

    @property
    def max_len(self) -> int:
        return self.method.max_len

    def score(self, batch: Batch, rng: torch.Generator | None = None) -> Tensor:
        scores: Tensor = call_with(self.method, "score", self.overrides, batch, rng)
        return scores


@dataclass(frozen=True)
class Surface:
    """One surface of one method.

    values: (I, F) what is attacked, without a gradient: the trained rows, whitened if the method keeps them
    raw. is_real: (I,) rows with any content; padding and items without the modality are zero and never
    perturbed. unit: mean Euclidean norm of the real rows of `values`, which makes budgets of different
    methods comparable: b = 0.1 moves a row by a tenth of a usual row. back: (F, F) from a change of `values`
    to one of raw rows, None where they are the same.
    """

    name: str
    tensor: str
    columns: slice
    values: Tensor
    is_real: Tensor
    unit: float
    whole: Tensor
    back: Tensor | None = None

    def overrides(self, values: Tensor) -> dict[str, Tensor]:
        """The parameter or buffer with (I, F) `values` in the surface's place, as `call_with` takes it."""
        if self.back is None:
            return self._placed(values)
        return self._placed(self.whole[:, self.columns] + (values - self.values) @ self.back)

    def moved(self, delta: Tensor) -> dict[str, Tensor]:
        """The same, with `delta` (I, F) added to the trained values."""
        return self.overrides(self.values + delta)

    def without(self, items: Tensor) -> dict[str, Tensor]:
        """The same, with zeros in the method's own rows of `items` (K,)."""
        return self._placed(self.whole[:, self.columns].index_fill(0, items, 0.0))

    def _placed(self, rows: Tensor) -> dict[str, Tensor]:
        if rows.shape == self.whole.shape:
            return {self.tensor: rows}
        left, right = self.whole[:, : self.columns.start], self.whole[:, self.columns.stop :]
        return {self.tensor: torch.cat([left, rows, right], dim=1)}


def surface(method: Method, name: str) -> Surface:
    """The surface that `method` declares under `name`; raises BallastError if it has none."""
    if name not in method.surfaces:
        known = ", ".join(sorted(method.surfaces)) or "none"
        raise BallastError(f"{type(method).__name__} has no surface '{name}'; it declares: {known}")
    tensor, whole, columns = located(method, method.surfaces[name])
    values, back = whole[:, columns], None
    is_real = (values != 0).any(dim=1)
    is_real[0] = False
    if name in getattr(method, "raw_surfaces", ()):
        white = whitening.fit(values, ~is_real)
        values = white.apply(values, ~is_real)
        # Directions without variance have no way back: whitening does not see them, but for rounding.
        back = torch.linalg.pinv(white.matrix.double(), hermitian=True, rtol=NO_VARIANCE).to(values.dtype)
    unit = float(values[is_real].double().norm(dim=1).mean()) if bool(is_real.any()) else 0.0
    return Surface(name, tensor, columns, values, is_real, unit, whole, back)


def located(method: Method, place: str) -> tuple[str, Tensor, slice]:
    """Name, values and columns of a place such as `vectors[0:128]`; raises BallastError if there is none."""
    match = _COLUMNS.fullmatch(place)
    tensors = dict(method.named_parameters()) | dict(method.named_buffers())
    if match is None or match["tensor"] not in tensors:
        raise BallastError(f"{type(method).__name__}: '{place}' is no parameter or buffer of it")
    whole = tensors[match["tensor"]].detach()
    if whole.ndim != 2:
        raise BallastError(f"{type(method).__name__}: '{place}' is not a table of one row an item")
    first, last = int(match["first"] or 0), int(match["last"] or whole.shape[1])
    return match["tensor"], whole, slice(first, last)
