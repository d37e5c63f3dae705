"""Generative reward models for image and video generators.

>>> from rewarddance import Comparison, Media, load_generator, load_judge

Everything here is imported on first use, so that `import rewarddance` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarddance.core.media import Media
    from rewarddance.core.types import Comparison, RewardModel, Verdict
    from rewarddance.jobs.load import load_generator, load_judge

__version__ = "0.1.0"
__all__ = ["Comparison", "Media", "RewardModel", "Verdict", "load_generator", "load_judge"]

_HOME = {
    "Comparison": "rewarddance.core.types",
    "Media": "rewarddance.core.media",
    "RewardModel": "rewarddance.core.types",
    "Verdict": "rewarddance.core.types",
    "load_generator": "rewarddance.jobs.load",
    "load_judge": "rewarddance.jobs.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewarddance' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
