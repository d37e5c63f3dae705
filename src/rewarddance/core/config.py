"""Strict configuration: frozen pydantic models. An unknown key is an error that names the nearest key. No torch
here.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rewarddance.core.errors import ConfigError

HeldOut = Literal["benchmark", "development", "second"]
"""Sets of held-out prompts of a task."""
SECOND_SEED = 2
"""Seed of the second benchmark that evaluations and studies use."""
Precision = Literal["auto", "fp32", "bf16"]
"""The precision that a user asks for. `auto`: see `core.device.resolve_precision`."""
Computed = Literal["fp32", "bf16"]
"""The precision that passes really compute in."""

M = TypeVar("M", bound="Config")


class Config(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _field_names(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Keys that are allowed at `location`."""
    current: Any = model
    for key in location:
        fields = getattr(current, "model_fields", {})
        if key not in fields:
            break
        current = fields[key].annotation
    return list(getattr(current, "model_fields", {}))


def parse_config(model: type[M], values: Mapping[str, Any], source: str = "configuration") -> M:
    """Validate `values`.

    Raises:
        ConfigError: one line that names the key and the problem and, for an unknown key, the nearest known one.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {problems(model, error)}") from None


def problems(model: type[BaseModel], error: ValidationError) -> str:
    """Pydantic's findings in one line."""
    lines = []
    for e in error.errors():
        key = ".".join(str(part) for part in e["loc"])
        if e["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(e["loc"][-1]), _field_names(model, e["loc"][:-1]), 1, 0.5)
            lines.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif e["type"] == "value_error":  # raised by our own validators, whose messages are whole sentences
            lines.append(str(e["ctx"]["error"]))
        else:
            lines.append(f"{key}: {e['msg'].lower()} (got {e['input']!r})")
    return "; ".join(lines)


def differing_keys(before: Mapping[str, Any], now: Config, ignored: AbstractSet[str] = frozenset()) -> list[str]:
    """Dotted keys (`optim.lr`) in which a written configuration differs from one of today.

    Keys that did not exist when it was written count with their defaults.

    Args:
        ignored: dotted keys that may differ.
    """
    with contextlib.suppress(ValidationError):  # a key that is unknown today is a difference
        before = type(now).model_validate(dict(before)).model_dump(mode="json")
    a, b = _leaves(before), _leaves(now.model_dump(mode="json"))
    return sorted(k for k in {*a, *b} - ignored if a.get(k) != b.get(k))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping from dotted keys to values."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe as a mapping.

    A path `recipes/...` that does not exist in the working folder is looked up in the package, then in the checkout.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    package = Path(__file__).parents[1]
    places = [Path(path), package / path, package.parents[1] / path]
    try:
        content = yaml.safe_load(next((p for p in places if p.is_file()), places[0]).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` put on top.

    >>> merge({"optim": {"lr": 1.0, "steps": 2}}, {"optim": {"lr": 3.0}})
    {'optim': {'lr': 3.0, 'steps': 2}}
    """
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out
