"""Pre-trained encoders from other people's packages, which Ballast does not itself depend on."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ballast.errors import BallastError


def package(name: str, needed_by: str) -> ModuleType:
    """The package `name`; raises BallastError that says what to install where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        distribution = name.replace("_", "-")
        raise BallastError(
            f"{needed_by}: needs the package '{distribution}' ({error}); run: pip install {distribution}"
        ) from None


def pretrained(
    load: Callable[..., Any], encoder: str, revision: str | None, where: str, **options: Any
) -> Any:
    """`load(encoder, revision=revision)`; an unknown name or folder becomes a BallastError."""
    try:
        return load(encoder, revision=revision, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BallastError(
            f"{where}: encoder '{encoder}' could not be loaded: give a hub name or a local folder ({reason})"
        ) from None
