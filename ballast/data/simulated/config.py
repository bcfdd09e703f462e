"""The settings of a simulated shop."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ballast.strict import Strict

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True, kw_only=True)
class ShopConfig(Strict):
    """Everything that decides a simulated shop; equal settings give equal bytes.

    The ranges are checked by `generate` (and by `ballast.strict.parse`). Strengths are in nats of
    choice log-odds per standard deviation of what they multiply.
    """

    seed: int
    """Source of all randomness; shops with one seed may share their style space (`shared_style`)."""
    domain: Literal["decor", "apparel", "outdoor"]
    """Which goods the shop sells: its category tree, materials, brands and words."""
    shared_style: Share = 0.7
    """How much of the map from style to words, colours and taste the domains of one seed have in
    common: 0 none, 1 all of it."""
    users: Annotated[int, Field(ge=1)] = 3000
    items: Annotated[int, Field(ge=60)] = 1000
    image_size: Annotated[int, Field(ge=16, le=512)] = 64
    """Height and width of the pictures, in pixels."""

    min_length: Annotated[int, Field(ge=3)] = 5
    """Fewest interactions of a user."""
    mean_length: Positive = 10.5
    """Mean interactions of a user, about; lengths are log-normal above `min_length`."""
    max_length: Annotated[int, Field(ge=3)] = 80
    """Most interactions of a user; half the catalogue also is a limit."""
    window_days: Positive = 730.0
    """Days from the first possible interaction to the last."""

    arrival_share: Share = 0.15
    """Share of items launched in the last `arrival_days`: they are cold when the test events come."""
    arrival_days: Positive = 30.0
    gradual_share: Share = 0.25
    """Share of items launched at an even pace before that; the rest is there from the first day."""
    recent_share: Share = 0.6
    """Share of users who still buy in the last `arrival_days`; the others stopped earlier."""

    noise_share: Share = 0.1
    """Chance that an interaction is noise: half by popularity, half uniform, whatever the user likes."""
    complement_share: Share = 0.7
    """Chance that the next genuine interaction is in a category that completes an earlier one's; else
    it follows the user's own interests."""
    delayed_share: Share = 0.35
    """Share of these that complete the last genuine interaction but one, not the last."""
    repeat_share: Share = 0.1
    """Chance that it stays in the category of the last one."""
    zipf_exponent: NonNegative = 0.8
    """Exponent of the items' popularity by rank."""
    taste_strength: NonNegative = 2.0
    """Weight of the match between the user's present taste and the item's style."""
    follow_strength: NonNegative = 1.2
    """Weight of the match between the item's style and where the style of the previous one leads."""
    price_strength: NonNegative = 0.8
    """Mean weight of the distance between the item's price level and the user's budget."""
    novelty_strength: NonNegative = 1.0
    """Bonus of an item on the day of its launch; it fades within about a month."""
    taste_persistence: Share = 0.95
    """Correlation of a user's taste with its own, rotated, past at the previous interaction."""

    missing_price_share: Share = 0.03
    missing_image_share: Share = 0.04
    missing_description_share: Share = 0.05
