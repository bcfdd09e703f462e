"""Finds methods by the name of their file, builds them, and saves and restores their state."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ballast.errors import BallastError
from ballast.models import methods
from ballast.models.method import DatasetInfo, Method
from ballast.strict import parse


def known_methods() -> list[str]:
    """Names of the files in ballast/models/methods."""
    return [module.name for module in pkgutil.iter_modules(methods.__path__)]


def method_class(name: str) -> type[Method]:
    """The Method subclass of the file `name`; raises BallastError if there is none."""
    if name not in known_methods():
        raise BallastError(f"unknown method '{name}'; known: {', '.join(known_methods())}")
    module = importlib.import_module(f"ballast.models.methods.{name}")
    wanted = name.replace("_", "")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__name__.lower() == wanted:
            return value
    raise BallastError(f"ballast/models/methods/{name}.py: no Method class named like the file")


def configure(name: str, model: dict[str, Any], where: str) -> Any:
    """The method's Config from the `model` block of params.yaml."""
    return parse(method_class(name).Config, model, where)


def needed_modalities(config: Any) -> tuple[str, ...]:
    """Feature tables that a configured method reads."""
    return tuple(getattr(config, "modalities", ()))


def build(name: str, config: Any, data: DatasetInfo) -> Method:
    """A fresh method; its initial weights come from torch's global generator."""
    for modality in needed_modalities(config):
        if modality not in data.features:
            raise BallastError(
                f"method '{name}' needs {modality} features: list the dataset under content_datasets"
            )
    return method_class(name)(config, data)


def save(method: Method, path: Path) -> None:
    """Write all parameters and buffers as safetensors."""
    save_file({name: value.detach().cpu().contiguous() for name, value in method.state_dict().items()}, path)


def adopt(method: Method, path: Path) -> None:
    """Start `method` from the parts of a pre-trained state that its class names in `transferable`."""
    prefixes = getattr(method, "transferable", ())
    if not path.exists():
        raise BallastError(f"{path}: no pre-trained state; run the pretrain stage or `dvc pull`")
    carried = {name: value for name, value in load_file(path).items() if name.startswith(prefixes)}
    if not prefixes or not carried:
        raise BallastError(f"{type(method).__name__}: nothing to carry over from {path}")
    own = {name: value for name, value in method.state_dict().items() if name.startswith(prefixes)}
    for name in sorted({*own, *carried}):
        if name not in own or name not in carried or own[name].shape != carried[name].shape:
            raise BallastError(
                f"{path}: '{name}' does not fit: pre-train and adapt with the same model settings"
            )
    method.load_state_dict(carried, strict=False)


def restore(method: Method, path: Path, device: torch.device) -> Method:
    """`method` with the state saved at `path`, in evaluation mode on `device`."""
    if not path.exists():
        raise BallastError(f"{path}: no trained model; run its train stage or `dvc pull`")
    method.load_state_dict(load_file(path))
    return method.to(device).eval()
