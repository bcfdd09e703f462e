"""The style space: how a style becomes words, colours, patterns and taste, shared between domains or not.

An item's style is a point z of R^8, standard normal over the catalogue. No modality shows all of it:
words tell mostly of the first dimensions, pictures of the last.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ballast.reproducibility import numpy_generator

Floats = NDArray[np.float64]

DIMENSIONS = 8
DRIFT_SKEW = 0.02  # a rotation by up to about 0.2 radians an interaction
IN_WORDS = np.array([1.0, 1.0, 1.0, 1.0, 0.8, 0.3, 0.15, 0.15])
IN_PICTURES = np.array([0.15, 0.15, 0.3, 0.6, 0.9, 1.0, 1.0, 1.0])

# One row a dimension: words of its low end, then of its high end.
LEXICON = (
    ("rustic", "weathered", "polished", "sleek"),
    ("minimal", "understated", "ornate", "lavish"),
    ("calm", "quiet", "bold", "playful"),
    ("vintage", "timeless", "modern", "futuristic"),
    ("soft", "cosy", "crisp", "structured"),
    ("light", "airy", "sturdy", "rugged"),
    ("coastal", "botanical", "urban", "geometric"),
    ("romantic", "delicate", "sporty", "technical"),
)
STYLE_WORDS = tuple(word for row in LEXICON for word in row)
PATTERNS = ("plain", "stripes", "checks", "dots", "waves")


@dataclass(frozen=True, kw_only=True)
class StyleMap:
    """One domain's linear maps from a style z (8,) to what is seen and liked.

    `words` (32, 8): the direction of each style word. `colours` (6, 8): lightness, green-red and
    blue-yellow of the body, then of the trim. `patterns` (5, 8): log-odds of each pattern. `taste`
    (8, 8): a standard normal draw to a user's taste. `drift` (8, 8): the rotation that a taste, or the
    style of the last item, goes through from one interaction to the next.
    """

    words: Floats
    colours: Floats
    patterns: Floats
    taste: Floats
    drift: Floats


def style_map(seed: int, domain: str, shared: float) -> StyleMap:
    """The domain's map: correlation `shared` with the one that every domain of this seed knows of."""
    common, own = _draw(seed, "style"), _draw(seed, f"style of {domain}")
    # Quadratic weights keep each map's variance: a shop is as legible at 0.5 as at 0 or 1.
    mixed = {name: shared * common[name] + np.sqrt(1.0 - shared**2) * own[name] for name in common}
    return StyleMap(
        words=mixed["words"] * IN_WORDS,
        colours=mixed["colours"] * IN_PICTURES,
        patterns=mixed["patterns"] * IN_PICTURES,
        taste=mixed["taste"],
        drift=_rotation(mixed["drift"]),
    )


def _draw(seed: int, name: str) -> dict[str, Floats]:
    rng = numpy_generator(seed, name)
    ends = np.repeat([-1.0, 1.0], 2)
    meanings = np.kron(np.eye(DIMENSIONS), ends[:, None])  # (32, 8): the lexicon's axis and end
    if name != "style":  # a domain's own usage gives the same words other meanings
        meanings = rng.permutation(meanings)
    spread = 1.9 * 0.7 ** np.arange(DIMENSIONS)  # tastes differ more in some respects than in others
    skew = rng.normal(size=(DIMENSIONS, DIMENSIONS)) * DRIFT_SKEW
    return {
        "words": meanings + 0.25 * rng.normal(size=meanings.shape),
        "colours": rng.normal(size=(6, DIMENSIONS)),
        "patterns": rng.normal(size=(len(PATTERNS), DIMENSIONS)),
        "taste": _orthogonal(rng) * spread,
        "drift": skew - skew.T,
    }


def _orthogonal(rng: np.random.Generator) -> Floats:
    q, r = np.linalg.qr(rng.normal(size=(DIMENSIONS, DIMENSIONS)))
    return q * np.sign(np.diag(r))  # the signs make it uniform over all rotations and reflections


def _rotation(skew: Floats) -> Floats:
    """Cayley's map: an antisymmetric matrix (8, 8) to a rotation by about twice its size."""
    identity = np.eye(DIMENSIONS)
    return np.asarray(np.linalg.solve(identity + skew, identity - skew), dtype=np.float64)
