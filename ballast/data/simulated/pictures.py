"""Product pictures: a silhouette for the category, colours and a pattern for the style."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.domains import Domain
from ballast.data.simulated.items import Catalogue, Integers
from ballast.data.simulated.style import PATTERNS, Floats, StyleMap
from ballast.reproducibility import numpy_generator

Pixels = NDArray[np.uint8]

SUPERSAMPLING = 4
PALETTE_SIZE = 40  # colours a picture: keeps a 64 x 64 PNG near 2 kB
PLAIN_BONUS = 1.0  # log-odds: most goods have no pattern
COLOUR_CENTRES = np.array([0.68, 0.01, 0.03, 0.47, 0.01, 0.01])
COLOUR_SPREADS = np.array([0.07, 0.06, 0.06, 0.07, 0.05, 0.05])

# Names by OKLab (lightness, green-red, blue-yellow).
COLOUR_NAMES = {
    "sand": (0.72, 0.01, 0.06),
    "stone": (0.62, 0.0, 0.01),
    "charcoal": (0.42, 0.0, 0.0),
    "terracotta": (0.58, 0.09, 0.08),
    "blush": (0.72, 0.08, 0.03),
    "plum": (0.48, 0.09, -0.04),
    "navy": (0.44, 0.0, -0.09),
    "sky": (0.70, -0.03, -0.06),
    "sage": (0.66, -0.06, 0.05),
    "forest": (0.48, -0.08, 0.05),
    "teal": (0.56, -0.09, -0.02),
    "mustard": (0.66, 0.02, 0.12),
}


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How the I items look: `body` and `trim` (I, 3) in OKLab, `pattern` (I,) index into PATTERNS."""

    body: Floats
    trim: Floats
    pattern: Integers


def draw_looks(config: ShopConfig, catalogue: Catalogue, style: StyleMap) -> Looks:
    """Colours and patterns that follow the style, with chance of their own."""
    rng = numpy_generator(config.seed, config.domain, "looks")
    signal = catalogue.style @ style.colours.T / np.linalg.norm(style.colours, axis=1)
    noise = rng.normal(size=signal.shape)
    colours = COLOUR_CENTRES + COLOUR_SPREADS * (0.9 * signal + 0.45 * noise)
    odds = catalogue.style @ style.patterns.T + rng.gumbel(size=(len(catalogue), len(PATTERNS)))
    odds[:, PATTERNS.index("plain")] += PLAIN_BONUS
    return Looks(body=colours[:, :3], trim=colours[:, 3:], pattern=odds.argmax(axis=1))


def colour_names(looks: Looks) -> list[str]:
    """The I names of the nearest named colours of the bodies."""
    names, points = list(COLOUR_NAMES), np.array(list(COLOUR_NAMES.values()))
    distances = np.linalg.norm(looks.body[:, None] - points, axis=2)  # (I, names)
    return [names[index] for index in distances.argmin(axis=1)]


def render(config: ShopConfig, domain: Domain, catalogue: Catalogue, looks: Looks) -> Pixels:
    """The I pictures, (I, image_size, image_size, 3) RGB; each has at most PALETTE_SIZE colours."""
    rng = numpy_generator(config.seed, config.domain, "pictures")
    size = config.image_size
    pictures = np.empty((len(catalogue), size, size, 3), dtype=np.uint8)
    for item in range(len(catalogue)):
        silhouette = domain.categories[catalogue.category[item]].silhouette
        body, trim = _masks(silhouette, size, rng)
        wave = _pattern(PATTERNS[looks.pattern[item]], size, rng)
        pictures[item] = _compose(body, trim, wave, looks.body[item], looks.trim[item], rng)
    return pictures


def _compose(
    body: Floats,
    trim: Floats,
    wave: Floats,
    body_colour: Floats,
    trim_colour: Floats,
    rng: np.random.Generator,
) -> Pixels:
    """One picture (S, S, 3): body with its pattern, then trim, on a pale ground with a soft shadow."""
    size = len(body)
    down, across = np.mgrid[0:size, 0:size] / size
    light = 0.04 * (0.5 - down) + 0.03 * (0.5 - across)  # from the upper left
    figure = body_colour + wave[..., None] * 0.6 * (trim_colour - body_colour)
    figure = figure + light[..., None] * [1.0, 0.0, 0.0]
    ground = np.array([0.955 + 0.02 * rng.normal(), 0.004 * rng.normal(), 0.006 + 0.006 * rng.normal()])
    offset = max(size // 24, 1)
    shadow = 0.08 * np.pad(np.maximum(body, trim), ((offset, 0), (offset, 0)))[:size, :size]
    picture = ground - shadow[..., None] * [1.0, 0.0, 0.0]
    picture = picture + body[..., None] * (figure - picture)
    picture = picture + trim[..., None] * (trim_colour + light[..., None] * [1.0, 0.0, 0.0] - picture)
    return _few_colours(oklab_to_rgb(picture))


def _masks(silhouette: tuple[str, ...], size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Coverage (S, S) in 0..1 of body and trim, at a random scale, stretch and place."""
    fine = size * SUPERSAMPLING
    scale = 0.9 * np.exp(rng.normal(size=2) * 0.07) * fine / 100
    shift = fine / 2 - 50 * scale + rng.normal(size=2) * 0.025 * fine
    layers = {layer: Image.new("L", (fine, fine)) for layer in ("body", "trim")}
    for part in silhouette:
        layer, shape, *numbers = part.split()
        for name, image in layers.items():  # a later part covers the earlier ones of the other layer
            fill = 255 if name == layer else 0
            _draw_part(ImageDraw.Draw(image), shape, [float(each) for each in numbers], scale, shift, fill)
    body, trim = (
        np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float64) / 255 for image in layers.values()
    )
    return body, trim


def _draw_part(
    draw: ImageDraw.ImageDraw, shape: str, numbers: list[float], scale: Floats, shift: Floats, fill: int
) -> None:
    width = numbers.pop(0) * float(scale.mean()) if shape == "line" else 0.0
    points = np.array(numbers).reshape(-1, 2) * scale + shift
    flat = [float(value) for value in points.ravel()]
    if shape == "box":
        draw.rounded_rectangle(flat, radius=4 * float(scale.mean()), fill=fill)
    elif shape == "ellipse":
        draw.ellipse(flat, fill=fill)
    elif shape == "polygon":
        draw.polygon(flat, fill=fill)
    elif shape == "line":
        draw.line(flat, fill=fill, width=max(round(width), 1), joint="curve")
    else:
        raise ValueError(f"silhouette part {shape!r}: known are box, ellipse, polygon, line")


def _pattern(name: str, size: int, rng: np.random.Generator) -> Floats:
    """(S, S) in 0..1: the share of the trim's colour in the body's pattern."""
    down, across = np.mgrid[0:size, 0:size] / size
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 1, size=2)
    frequency = rng.uniform(5.0, 8.0)
    along = frequency * (across * np.cos(angle) + down * np.sin(angle)) + phase[0]
    aside = frequency * (down * np.cos(angle) - across * np.sin(angle)) + phase[1]
    ridge, furrow = np.sin(2 * np.pi * along), np.sin(2 * np.pi * aside)
    fields = {
        "plain": np.full((size, size), -1.0),
        "stripes": ridge,
        "checks": ridge * furrow,
        "dots": ridge + furrow - 0.9,
        "waves": np.sin(2 * np.pi * (along + 0.25 * furrow)),
    }
    return 1.0 / (1.0 + np.exp(-4.0 * fields[name]))  # a soft edge is an anti-aliased one


def oklab_to_rgb(colours: Floats) -> Pixels:
    """OKLab (..., 3) to sRGB (..., 3), clipped to 0..255. Source: Ottosson, "A perceptual color space
    for image processing", 2020."""
    to_cones = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((colours @ to_cones.T) ** 3 @ to_linear.T, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def _few_colours(picture: Pixels) -> Pixels:
    reduced = Image.fromarray(picture).quantize(PALETTE_SIZE, method=Image.Quantize.MEDIANCUT)
    return np.asarray(reduced.convert("RGB"))


def paletted(picture: Pixels) -> Image.Image:
    """A picture (H, W, 3) of at most 256 colours as a palette image, without any loss.

    Raises ValueError if it has more colours.
    """
    height, width, _ = picture.shape
    codes = picture.astype(np.int64) @ [65536, 256, 1]
    colours, index = np.unique(codes, return_inverse=True)
    if len(colours) > 256:
        raise ValueError(f"{len(colours)} colours in a picture; a palette holds 256")
    palette = colours[:, None] // [65536, 256, 1] % 256
    image = Image.fromarray(index.reshape(height, width).astype(np.uint8), mode="P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image
