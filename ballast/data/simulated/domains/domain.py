"""What a simulated shop's world consists of."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Category:
    """One leaf of a domain's category tree.

    `nouns` may be shared with a neighbouring category: a title does not always tell which. `price` is
    the median price. `complements` are the categories that buyers go on to, most likely first.

    `silhouette` is drawn part by part: a layer (body, trim), a shape (box, ellipse, polygon, line) and
    its numbers in percent of the picture's side, x before y: the corners of a box or ellipse, the
    points of a polygon, the width and then the points of a line.
    """

    name: str
    department: str
    price: float
    nouns: tuple[str, ...]
    details: tuple[str, ...]
    materials: tuple[str, ...]
    complements: tuple[str, ...]
    silhouette: tuple[str, ...]

    @property
    def path(self) -> str:
        """The category as a shop prints it, "department > name"."""
        return f"{self.department} > {self.name}"


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One shop's category tree and words.

    `collections` are ranges of goods in one style, each of one brand; `pieces` are nouns that fit any
    category.
    """

    name: str
    brands: tuple[str, ...]
    collections: tuple[str, ...]
    pieces: tuple[str, ...]
    occasions: tuple[str, ...]
    categories: tuple[Category, ...]

    @property
    def materials(self) -> tuple[str, ...]:
        """Every material of the domain, sorted."""
        return tuple(sorted({material for category in self.categories for material in category.materials}))
