"""The three goods that a simulated shop may sell; a domain is one file here and one entry below."""

from ballast.data.simulated.domains.apparel import APPAREL
from ballast.data.simulated.domains.decor import DECOR
from ballast.data.simulated.domains.domain import Category, Domain
from ballast.data.simulated.domains.outdoor import OUTDOOR

DOMAINS = {domain.name: domain for domain in (DECOR, APPAREL, OUTDOOR)}

__all__ = ["DOMAINS", "Category", "Domain"]
