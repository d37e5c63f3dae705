"""Which adapter loads which pipeline. A new family is an adapter file and a line here."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.protocols import Tunable
from rewarddance.generator.sd3 import Sd3Generator

FAMILIES = {"StableDiffusion3Pipeline": Sd3Generator.load}
"""By the class that `model_index.json` names."""


def load_generator_folder(folder: Path, guidance: float, dtype: torch.dtype, resolution: int | None = None) -> Tunable:
    """Load a local folder in diffusers layout, frozen; pictures of the checkpoint's own side unless it is given.

    Raises:
        ConfigError: not a pipeline's folder, or of a family that is not known.
    """
    try:
        kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    except (OSError, json.JSONDecodeError):
        raise ConfigError(f"{folder}: no model_index.json; not a pipeline in diffusers layout") from None
    if kind not in FAMILIES:
        raise ConfigError(f"{folder}: a {kind}; known are {', '.join(FAMILIES)}")
    return FAMILIES[kind](folder, guidance, dtype, resolution)
