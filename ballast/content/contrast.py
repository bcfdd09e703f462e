"""Self-supervised training of the picture encoder on a catalogue.

SimCLR: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
Two random views of a picture attract, views of different pictures repel (NT-Xent). Departs from it: no
projection head, for on catalogues of some hundred pictures the vectors themselves then agreed better
with the categories; weak crops, since packshots are alike in layout. Views are drawn in batched tensor
operations, from generators named by epoch, so that a resumed run sees the same views.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ballast.content.encoder import ImageEncoder
from ballast.reproducibility import atomic_path, generator, seed_dropout
from ballast.strict import Strict


@dataclass(frozen=True, kw_only=True)
class Contrastive(Strict):
    """The encoder's shape and its training; `fit_on` names the datasets whose pictures train it,
    empty means its own. Vectors of different datasets share one space only where it is the same list."""

    name: Literal["contrastive"] = "contrastive"
    dim: Annotated[int, Field(ge=1)] = 128
    size: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Height and width that pictures are brought to, in pixels."""
    width: Annotated[int, Field(ge=1)] = 16
    steps: Annotated[int, Field(ge=0)] = 600
    """Updates, rounded up to whole passes over the pictures; 0 leaves the encoder as drawn."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    temperature: Annotated[float, Field(gt=0)] = 0.1
    min_crop: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Smallest share of the picture's area in a view."""
    colour_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Largest change of brightness, contrast and saturation, relative."""
    grey_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of views without colour."""
    seed: int = 0
    unreadable: Literal["missing", "error"] = "missing"
    fit_on: list[str] = field(default_factory=list)


def views(pixels: Tensor, config: Contrastive, rng: torch.Generator) -> Tensor:
    """A random view of each picture: crop, flip, colour jitter, grey. (B, 3, S, S) in [0, 1], both ways.

    `rng` is on the CPU whatever the device, so that every device sees the same views.
    """
    batch, device = len(pixels), pixels.device
    draws = torch.rand(8, batch, generator=rng).to(device)
    area = config.min_crop + (1 - config.min_crop) * draws[0]
    ratio = (4 / 3) ** (2 * draws[1] - 1)
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)  # (B,)
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0] = width * torch.where(draws[2] < 0.5, 1.0, -1.0)  # a negative scale mirrors
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * draws[3] - 1), (1 - height) * (2 * draws[4] - 1)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)  # (B, S, S, 2)
    view = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = 1 + config.colour_jitter * (
        2 * draws[5:8, :, None, None, None] - 1
    )  # (B, 1, 1, 1) each
    view = view * brightness
    average = view.mean(dim=(1, 2, 3), keepdim=True)
    view = average + (view - average) * contrast
    luminance = (view * view.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    is_grey = (torch.rand(batch, generator=rng) < config.grey_share).to(device)[:, None, None, None]
    view = luminance + (view - luminance) * torch.where(is_grey, 0.0, saturation)
    return view.clamp(0, 1)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, eq. 1) of two views (B, P) of B pictures."""
    both = functional.normalize(torch.cat([first, second]), dim=1)  # (2B, P)
    logits = both @ both.T / temperature
    logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -math.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return functional.cross_entropy(logits, partner)


def train_encoder(
    config: Contrastive, pixels: Tensor, device: torch.device, checkpoint: Path | None = None
) -> tuple[ImageEncoder, list[dict[str, float]]]:
    """An encoder trained on `pixels` (N, 3, S, S) uint8, in evaluation mode, and epoch, loss and seconds.

    After each epoch the whole state goes to `checkpoint`; where that file exists training goes on from
    it and ends with the weights of an undisturbed run. The caller names it by config, pictures and code.
    With fewer than two pictures there is nothing to contrast: the encoder stays as drawn.
    """
    seed_dropout(config.seed, "image encoder")  # weights are drawn from torch's global generator
    encoder = ImageEncoder(config.size, config.dim, config.width)
    if len(pixels):
        _standardise(encoder, pixels)
    encoder = encoder.to(device)
    batches = max(1, math.ceil(len(pixels) / config.batch_size))
    epochs = math.ceil(config.steps / batches) if len(pixels) > 1 else 0
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / max(1, epochs * batches))
    )
    history: list[dict[str, float]] = []
    parts: dict[str, Any] = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        history = saved["history"]
    progress = tqdm(range(len(history), epochs), "image encoder", unit="epoch", disable=None)
    for epoch in progress:
        started = time.monotonic()
        loss = _train_epoch(config, encoder, optimizer, schedule, pixels, epoch)
        history.append({"epoch": epoch + 1, "loss": loss, "seconds": round(time.monotonic() - started, 3)})
        progress.set_postfix(loss=f"{loss:.3f}")
        if checkpoint is not None:
            with atomic_path(checkpoint) as temporary:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**state, "history": history}, temporary)
    return encoder.eval(), history


def _standardise(encoder: ImageEncoder, pixels: Tensor) -> None:
    """Set the encoder's mean and deviation to those of the catalogue's channels."""
    sample = pixels[:: math.ceil(len(pixels) / 2000)].float() / 255
    encoder.mean.copy_(sample.mean(dim=(0, 2, 3)))
    encoder.deviation.copy_(sample.std(dim=(0, 2, 3)).clamp(min=1e-3))


def _train_epoch(
    config: Contrastive,
    encoder: ImageEncoder,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    pixels: Tensor,
    epoch: int,
) -> float:
    """One pass over the pictures; the mean loss of its batches."""
    encoder.train()
    rng = generator(config.seed, "image encoder", epoch)
    device = encoder.mean.device
    total, count = 0.0, 0
    for rows in torch.randperm(len(pixels), generator=rng).split(config.batch_size):
        if len(rows) < 2:  # a last picture alone has nothing to be told from
            continue
        batch = pixels[rows].to(device).float() / 255
        both = torch.cat([views(batch, config, rng), views(batch, config, rng)])  # (2B, 3, S, S)
        first, second = encoder(both).chunk(2)
        loss = nt_xent(first, second, config.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total, count = total + float(loss.detach()) * len(rows), count + len(rows)
    return total / count
