"""Frozen configuration records that refuse unknown keys and wrong types."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ballast.errors import BallastError

T = TypeVar("T")
K = TypeVar("K")


class Strict:
    """Base of every configuration dataclass: validated without coercion, no extra keys.

    Subclasses are `@dataclass(frozen=True, kw_only=True)`; build them from YAML with `parse`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


def parse(kind: type[T], value: Any, where: str) -> T:
    """`value` (plain YAML data) as an instance of the dataclass `kind`.

    `where` is the file and key it came from, such as "params.yaml: methods.sasrec". Raises
    BallastError with one line that names the full key of the first problem.
    """
    try:
        # Strict mode takes a mapping for a dataclass from JSON alone; YAML's dates become text.
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise BallastError(_first_problem(kind, value, error, where)) from None


def parse_named(
    settings: dict[str, Any], known: Sequence[str], find: Callable[[str], type[K]], noun: str, where: str
) -> tuple[type[K], Any]:
    """The class that `settings["name"]`, one of `known`, finds, and its `Config` from all settings.

    noun: what is named, for the message. Raises BallastError on an unknown name or setting.
    """
    name = settings.get("name")
    if name not in known:
        raise BallastError(f"{where}: unknown {noun} {name!r}; known: {', '.join(known)}")
    kind = find(str(name))
    config: type[Any] = kind.Config  # type: ignore[attr-defined]
    return kind, parse(config, settings, where)


def _first_problem(kind: type, value: Any, error: ValidationError, where: str) -> str:
    # An unknown key usually is the cause of a missing one, so it is told first.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "unexpected_keyword_argument")
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    separator = "." if ": " in where else ": "
    key = where + (separator + ".".join(location) if location else "")
    if problem["type"] == "unexpected_keyword_argument":
        known = _known_keys(kind, value, problem["loc"][:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: this key is missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key}: got {problem['input']!r}, expected {message}"


def _known_keys(kind: Any, value: Any, path: tuple[Any, ...]) -> list[str]:
    """The field names that are allowed at `path` below the dataclass `kind`."""
    for part in path:
        hints = {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}
        kind = hints.get(str(part), Any) if hints else _element(kind)
        if isinstance(value, Mapping):
            value = value.get(part)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _element(kind: Any) -> Any:
    arguments = getattr(kind, "__args__", ())
    return arguments[-1] if arguments else Any
