"""Parts that are found by name, so that general code does not import special code.

A name is a key of a table, or `package.module:attribute` of code of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rewarddance.core.errors import ConfigError

TASKS = {
    "embedded": "rewarddance.world.task:EmbeddedTask",
    "embedded-video": "rewarddance.world.motion.task:EmbeddedVideoTask",
    "embedded-image-to-video": "rewarddance.world.motion.task:EmbeddedImageToVideoTask",
}
EMBEDDED_VLM = {
    "grown": "rewarddance.world.build.grow:grown",
    "config": "rewarddance.world.build.tiny_vlm:config_of",
}
"""Larger sizes of the embedded VLM, and their configurations."""


def load_plugin(name: str, table: Mapping[str, str], kind: str) -> Any:
    """The object that a name stands for.

    Raises:
        ConfigError: an unknown name, or a module or attribute that cannot be imported.
    """
    path = table.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ConfigError(f"{kind} {name!r}: known are {', '.join(table)}, or package.module:attribute of your own")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} {name!r}: {error}") from None
