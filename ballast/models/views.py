"""Augmented views of histories that know which target belongs to each of their positions."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ballast.models.backbones import MASK
from ballast.models.backbones.cl4srec import crop, mask, reorder

OPERATORS = {"crop": crop, "mask": mask, "reorder": reorder}


class View(NamedTuple):
    """Histories (B, L), as they are or augmented, and what P of their positions are trained on.

    place: (P,) flat positions b L + l. origin: (P,) flat positions whose targets are theirs.
    weights: (P,) what each counts in the next-item loss, 0 where it is only contrasted.
    """

    history: Tensor
    place: Tensor
    origin: Tensor
    weights: Tensor


def augmented(
    history: Tensor,
    is_target: Tensor,
    rates: Mapping[str, float],
    mask_id: int,
    is_aligned: bool,
    rng: torch.Generator,
) -> View:
    """A view of each history (B, L) by one of the operators named in `rates`, drawn for each.

    is_target: (B, L) bool, positions with a target. mask_id stands where an item is hidden. A position
    keeps the target of the item that it holds (of the hidden one, of the one that was there before
    reordering), and is left out where the view has shown that target by then. Not aligned, targets stay
    where they were.
    """
    width, names = history.shape[1], list(rates)
    # Operators move the numbers of columns, counted from 1, so that it is known where each item came from.
    columns = torch.arange(1, width + 1, device=history.device)
    numbered = columns * (history != 0)
    made = torch.stack([OPERATORS[name](numbered, rates[name], rng) for name in names])
    chosen = torch.randint(len(names), (len(history),), generator=rng, device=history.device)
    moved = made[chosen, torch.arange(len(history), device=history.device)]  # (B, L)
    items = history.gather(1, (moved - 1).clamp(min=0)) * (moved > 0)
    items = items.masked_fill(moved == MASK, mask_id)
    origin, is_kept = columns.expand_as(moved), moved != 0
    if is_aligned:
        is_cropped = torch.tensor([name == "crop" for name in names], device=history.device)[chosen]
        origin = torch.where(is_cropped[:, None] & is_kept, moved, origin)
        is_kept = is_kept & ~_is_shown(moved, origin + 1)
    is_kept = is_kept & is_target.gather(1, origin - 1)
    place = torch.nonzero(is_kept.flatten())[:, 0]
    start = torch.arange(len(history), device=history.device)[:, None] * width
    origin = (start + origin - 1).flatten()[place]
    return View(items, place, origin, torch.ones(len(place), device=history.device))


def everywhere(view: View, history: Tensor) -> View:
    """The view with every position of its history (B, L) in it, those that it left out without weight."""
    place = torch.arange(history.numel(), device=history.device)
    weights = torch.zeros(len(place), device=history.device).index_copy(0, view.place, view.weights)
    return View(view.history, place, place.index_copy(0, view.place, view.origin), weights)


def _is_shown(moved: Tensor, following: Tensor) -> Tensor:
    """(B, L) whether place `following` (B, L) is among the places `moved` (B, L) up to each position."""
    width = moved.shape[1]
    is_before = torch.ones(width, width, dtype=torch.bool, device=moved.device).tril()
    return ((moved[:, None, :] == following[:, :, None]) & is_before).any(2)


def index_in(known: Tensor, wanted: Tensor, cells: int) -> Tensor:
    """(P,) where in `known` (M,) each of `wanted` (P,) is, -1 if nowhere; all are below `cells`."""
    index = torch.full((cells,), -1, dtype=torch.int64, device=known.device)
    index[known] = torch.arange(len(known), device=known.device)
    return index[wanted]
