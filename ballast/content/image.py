"""Item pictures -> pixels -> vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from ballast.content import hub
from ballast.content.contrast import Contrastive
from ballast.content.features import Features, scattered
from ballast.errors import BallastError
from ballast.strict import Strict


@dataclass(frozen=True, kw_only=True)
class Transformers(Strict):
    """A vision model of the transformers package (ViT, DINO, ConvNeXt, CLIP, SigLIP, timm wrappers):
    `encoder` is its hub name or a local folder."""

    name: Literal["transformers"] = "transformers"
    encoder: str
    revision: str | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    unreadable: Literal["missing", "error"] = "missing"


CONFIGS: dict[str, type[Strict]] = {"contrastive": Contrastive, "transformers": Transformers}


@dataclass(frozen=True)
class Pictures:
    """The pictures that could be read. pixels: (P, 3, S, S) uint8, RGB; rows: (P,) their places in the
    items table; unreadable: names of those that could not."""

    pixels: Tensor
    rows: NDArray[np.int64]
    unreadable: tuple[str, ...]


def open_picture(path: Path) -> Image.Image:
    """The whole picture, upright, in RGB, transparency on white. Raises BallastError naming the file."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    # Decoders raise all of these on damaged files; a picture too large to be one is refused too.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BallastError(f"{path}: cannot be read as a picture ({' '.join(str(error).split())})") from None


def read_pictures(folder: Path, names: Sequence[str | None], size: int, unreadable: str) -> Pictures:
    """All pictures of a catalogue, brought to (size, size) pixels whatever their shape.

    names: N paths below `folder`, None where an item has none. A file that cannot be read is told in
    `unreadable`, or raises BallastError where `unreadable` is "error" or where none at all can be read.
    """
    pixels, rows, failed = [], [], []
    given = [(row, name) for row, name in enumerate(names) if isinstance(name, str)]
    for row, name in tqdm(given, "pictures", unit="picture", disable=None):
        try:
            picture = open_picture(folder / name).resize((size, size), Image.Resampling.BILINEAR)
        except BallastError:
            if unreadable == "error":
                raise
            failed.append(name)
            continue
        pixels.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))  # (3, S, S)
        rows.append(row)
    if failed and not rows:
        raise BallastError(
            f"{folder}: none of the {len(failed)} pictures can be read, the first is {failed[0]}; "
            "put them there, or take the modality 'image' out for this dataset"
        )
    stacked = torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size, dtype=torch.uint8)
    return Pictures(stacked, np.array(rows, dtype=np.int64), tuple(failed))


def embed_hub(
    config: Transformers, folder: Path, names: Sequence[str | None], device: torch.device
) -> Features:
    """Vectors of a pre-trained vision model: CLIP's projected features, else the pooled output, else the
    mean over patches. The package's own image processor resizes and standardises."""
    where = "features.image"
    module = hub.package("transformers", where)
    processor = hub.pretrained(
        module.AutoImageProcessor.from_pretrained, config.encoder, config.revision, where
    )
    model = hub.pretrained(module.AutoModel.from_pretrained, config.encoder, config.revision, where)
    model = model.to(device).eval()

    def vectors_of(pictures: list[Image.Image]) -> NDArray[np.float32]:
        return _pooled(model, processor(images=pictures, return_tensors="pt").to(device))

    readable, failed = [], []
    parts = [vectors_of([Image.new("RGB", (64, 64))])[:0]]  # (0, F): the width, should there be no picture
    given = [(row, name) for row, name in enumerate(names) if isinstance(name, str)]
    for batch in tqdm(list(_batches(given, config.batch_size)), "pictures", unit="batch", disable=None):
        pictures = []
        for row, name in batch:
            try:
                pictures.append(open_picture(folder / name))
                readable.append(row)
            except BallastError:
                if config.unreadable == "error":
                    raise
                failed.append(name)
        if pictures:
            parts.append(vectors_of(pictures))
    if failed and not readable:
        raise BallastError(
            f"{folder}: none of the {len(failed)} pictures can be read, the first is {failed[0]}"
        )
    features = scattered(np.concatenate(parts), np.array(readable, dtype=np.int64), len(names))
    return Features(features.vectors, features.missing, tuple(failed))


def _batches(given: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (given[start : start + size] for start in range(0, len(given), size))


@torch.no_grad()
def _pooled(model: Any, inputs: Any) -> NDArray[np.float32]:
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(**inputs)
        output = getattr(output, "pooler_output", output)
    else:
        hidden = model(**inputs)
        output = getattr(hidden, "pooler_output", None)
        if output is None:
            output = hidden.last_hidden_state.mean(dim=1)
    return output.flatten(1).float().cpu().numpy()
