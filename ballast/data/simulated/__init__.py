"""The simulated storefront: a generative shop whose truth is known, the embedded default dataset.

```
config     the settings                      domains/   categories, complements, words of three shops
style      style -> words, colours, taste    items      latent truth of the catalogue
pictures   rendered product pictures         words      titles and descriptions
choices    what a shopper takes next         users      histories, in order of time
shop       the tables, and their files
```
"""

from ballast.data.simulated.config import ShopConfig
from ballast.data.simulated.shop import Shop, Truth, generate, write

__all__ = ["Shop", "ShopConfig", "Truth", "generate", "write"]
