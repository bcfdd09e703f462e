"""A small convolutional picture encoder, differentiable from pixels to vector."""

import itertools
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Four strided convolution blocks and a linear map.

    size: height and width of its input in pixels, a multiple of 16. dim: length of its output F.
    width: channels of the first block; each further block doubles them. Pixels are standardised inside,
    by `mean` and `deviation` (3,), so that a budget on pixels keeps its meaning.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int = 64, dim: int = 128, width: int = 16) -> None:
        super().__init__()
        self.shape = {"size": size, "dim": dim, "width": width}
        self.register_buffer("mean", torch.full((3,), 0.5))
        self.register_buffer("deviation", torch.full((3,), 0.25))
        channels = [3] + [width * 2**block for block in range(4)]
        self.blocks = nn.Sequential(
            *(_block(before, after) for before, after in itertools.pairwise(channels))
        )
        self.head = nn.Linear(channels[-1] * (size // 16) ** 2, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) float in [0, 1], RGB -> (B, F)."""
        standard = (pixels - self.mean[:, None, None]) / self.deviation[:, None, None]
        # Channels last halves the time on a CPU.
        maps = self.blocks(standard.contiguous(memory_format=torch.channels_last))
        # The maps are kept, not averaged: where something is in a packshot tells what it is.
        return self.head(maps.flatten(1))

    def save(self, path: Path) -> None:
        """Write weights and shape as safetensors; equal weights give equal bytes."""
        state = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(state, path, metadata={"shape": json.dumps(self.shape)})

    @classmethod
    def load(cls, path: Path) -> "ImageEncoder":
        """The encoder that `save` wrote, in evaluation mode."""
        with safe_open(path, framework="pt") as file:
            encoder = cls(**json.loads(file.metadata()["shape"]))
            encoder.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return encoder.eval()


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


@torch.no_grad()
def encode(encoder: ImageEncoder, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, F) float32 on the CPU, in evaluation mode."""
    encoder.eval()
    device = encoder.mean.device
    parts = [encoder(batch.to(device).float() / 255).cpu() for batch in pixels.split(batch_size)]
    return torch.cat(parts) if parts else torch.zeros(0, encoder.shape["dim"])
