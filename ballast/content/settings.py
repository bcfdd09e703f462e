"""`features.<modality>` of params.yaml: which encoder, and its settings."""

from typing import Any

from ballast.content import image, price, text
from ballast.errors import BallastError
from ballast.strict import Strict, parse

ENCODERS: dict[str, dict[str, type[Strict]]] = {
    "text": text.CONFIGS,
    "image": image.CONFIGS,
    "price": price.CONFIGS,
}


def parse_settings(modality: str, block: dict[str, Any], where: str) -> Any:
    """The encoder's configuration, chosen by `name`; raises BallastError naming the key."""
    if modality not in ENCODERS:
        raise BallastError(f"{where}: unknown modality; known: {', '.join(ENCODERS)}")
    known = ENCODERS[modality]
    name = block.get("name")
    if name not in known:
        raise BallastError(f"{where}.name: got {name!r}, expected one of: {', '.join(known)}")
    return parse(known[name], block, where)
