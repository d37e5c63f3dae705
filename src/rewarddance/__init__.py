"""Generative reward models for image and video generators.

>>> from rewarddance import Comparison, Media, load_generator, load_judge

Everything here is imported on first use, so that `import rewarddance` costs nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarddance.align.config import AlignConfig
    from rewarddance.core.errors import ConfigError, InputError, JudgementError, RewardDanceError, RunError
    from rewarddance.core.media import Media
    from rewarddance.core.types import Comparison, RewardModel, Verdict
    from rewarddance.jobs.align import align_from_names
    from rewarddance.jobs.load import load_backbone, load_generator, load_judge
    from rewarddance.jobs.train import train_from_data
    from rewarddance.reward.judge import Judge
    from rewarddance.reward.rank import Ranking
    from rewarddance.reward.train_config import RewardConfig
    from rewarddance.search.anchors import verifier_of
    from rewarddance.search.best_of_n import best_of_n
    from rewarddance.search.methods import run_search

__version__ = "0.1.0"


def _useful(record: logging.LogRecord) -> bool:
    """False for transformers' advice to install torchvision, which nothing here needs. diffusers sets it off."""
    return "requires torchvision (not installed)" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_useful)

__all__ = [
    "AlignConfig",
    "Comparison",
    "ConfigError",
    "InputError",
    "Judge",
    "JudgementError",
    "Media",
    "Ranking",
    "RewardConfig",
    "RewardDanceError",
    "RewardModel",
    "RunError",
    "Verdict",
    "align_from_names",
    "best_of_n",
    "load_backbone",
    "load_generator",
    "load_judge",
    "run_search",
    "train_from_data",
    "verifier_of",
]

_HOME = {
    "AlignConfig": "align.config",
    "Comparison": "core.types",
    "ConfigError": "core.errors",
    "InputError": "core.errors",
    "Judge": "reward.judge",
    "JudgementError": "core.errors",
    "Media": "core.media",
    "Ranking": "reward.rank",
    "RewardConfig": "reward.train_config",
    "RewardDanceError": "core.errors",
    "RewardModel": "core.types",
    "RunError": "core.errors",
    "Verdict": "core.types",
    "align_from_names": "jobs.align",
    "best_of_n": "search.best_of_n",
    "load_backbone": "jobs.load",
    "load_generator": "jobs.load",
    "load_judge": "jobs.load",
    "run_search": "search.methods",
    "train_from_data": "jobs.train",
    "verifier_of": "search.anchors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewarddance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rewarddance.{_HOME[name]}"), name)
