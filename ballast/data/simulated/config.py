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

    Ranges are checked by `generate` and by `ballast.strict.parse`. A strength is in nats of log-odds of
    an item among those of its category.
    """

    seed: int
    """Source of all randomness; shops of one seed may share their style space (`shared_style`)."""
    domain: Literal["decor", "apparel", "outdoor"]
    """Which goods the shop sells: its category tree, materials, brands and words."""
    shared_style: Share = 0.7
    """How much of the map from style to words, colours and taste the domains of one seed have in
    common: 0 none, 1 all of it."""
    users: Annotated[int, Field(ge=1)] = 3000
    items: Annotated[int, Field(ge=24)] = 1000
    image_size: Annotated[int, Field(ge=16, le=512)] = 64
    """Height and width of the pictures, in pixels."""

    min_length: Annotated[int, Field(ge=3)] = 5
    """Fewest interactions of a user."""
    mean_length: Positive = 10.5
    """About the mean interactions of a user; lengths are log-normal above `min_length`."""
    max_length: Annotated[int, Field(ge=3)] = 80
    """Most interactions of a user; half of what is on sale on the first day is a limit, too."""
    window_days: Positive = 730.0
    """Days from the first possible interaction to the last."""
    recent_share: Share = 0.6
    """Share of users who still buy in the last `arrival_days`; the others stopped earlier."""

    arrival_share: Share = 0.15
    """Share of items launched in the last `arrival_days`: cold when the test events come."""
    arrival_days: Positive = 30.0
    gradual_share: Share = 0.25
    """Share of items launched at an even pace before; the rest is on sale from the first day."""

    noise_share: Share = 0.1
    """Chance that an interaction is noise: half by popularity, half uniform, whatever the user likes."""
    complement_share: Share = 0.7
    """Chance that a genuine interaction is in a category that completes an earlier one's."""
    delayed_share: Share = 0.3
    """Share of these that complete the last genuine interaction but one, not the last."""
    repeat_share: Share = 0.15
    """Chance that it stays in the category of the last one; else it follows the user's own interests."""

    zipf_exponent: NonNegative = 0.7
    """Exponent of the items' appeal to everyone by their rank."""
    taste_strength: NonNegative = 3.0
    """Weight of the match between the user's present taste and the item's style."""
    collection_strength: NonNegative = 1.2
    """Bonus of an item in the collection of the last genuine interaction."""
    price_strength: NonNegative = 0.8
    """Weight of the squared distance between the item's price level and the user's budget."""
    novelty_strength: NonNegative = 1.0
    """Bonus of an item on the day of its launch; it fades within about a month."""
    taste_persistence: Share = 0.96
    """Correlation of a user's taste with its own, rotated, past one interaction ago."""

    missing_price_share: Share = 0.03
    missing_image_share: Share = 0.04
    missing_description_share: Share = 0.05
