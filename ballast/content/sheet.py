"""Picture sheets for the eye: nearest neighbours in a feature space, and pictures under attack."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ballast.content.features import Features, nearest
from ballast.content.image import open_picture
from ballast.errors import BallastError

TILE, GAP = 72, 4


def neighbour_sheet(
    paths: Sequence[Path | None], features: Features, rows: NDArray[np.int64], k: int = 8
) -> Image.Image:
    """One line an item of `rows` (R,): its picture, then those of its k nearest by cosine, best first.

    paths: N pictures in the order of `features`, None where there is none. Only items with both a
    picture and a vector are neighbours; `rows` without either are left out.
    """
    usable = np.flatnonzero(~features.missing & np.array([path is not None for path in paths], bool))
    queries = np.flatnonzero(np.isin(usable, rows))
    k = min(k, max(len(usable) - 1, 1))
    found = nearest(features.vectors[usable], queries, k) if len(usable) > 1 else np.zeros((0, k), int)
    step = TILE + GAP
    sheet = Image.new("RGB", ((k + 1) * step + 3 * GAP, max(len(found), 1) * step + GAP), "white")
    for line, (query, neighbours) in enumerate(zip(queries, found, strict=False)):
        for column, place in enumerate([query, *neighbours]):
            left = GAP + column * step + (2 * GAP if column else 0)  # a wider gap sets the query apart
            sheet.paste(_tile(paths[usable[place]]), (left, GAP + line * step))
    return sheet


def attack_sheet(clean: Tensor, attacked: Tensor) -> Image.Image:
    """A column an item: its picture, the picture under attack, and what was added, amplified around grey.

    clean, attacked: (K, 3, S, S) in [0, 1]. The largest change of all becomes black or white.
    """
    change = attacked - clean
    shown = 0.5 + 0.5 * change / change.abs().amax().clamp(min=1e-12)
    step = TILE + GAP
    sheet = Image.new("RGB", (len(clean) * step + GAP, 3 * step + GAP), "white")
    for line, pictures in enumerate((clean, attacked, shown)):
        levels = (255 * pictures).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for column, picture in enumerate(levels):  # (S, S, 3)
            tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (GAP + column * step, GAP + line * step))
    return sheet


def _tile(path: Path | None) -> Image.Image:
    try:
        picture = Image.new("RGB", (1, 1)) if path is None else open_picture(path)
    except BallastError:  # text neighbours may have a damaged picture: the features stage tells of it
        return Image.new("RGB", (TILE, TILE), "lightgrey")
    return ImageOps.pad(picture, (TILE, TILE), Image.Resampling.BILINEAR, color="white")
