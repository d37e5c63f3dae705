"""Where to compute."""

from __future__ import annotations

import torch

from rewarddance.core.errors import ConfigError


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this torch sees no CUDA device; use --device cpu")
    return torch.device(name)
