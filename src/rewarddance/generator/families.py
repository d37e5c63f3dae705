"""Which adapter loads which pipeline. A new family is an adapter file and one line here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.protocols import Tunable
from rewarddance.generator.flux import FluxGenerator
from rewarddance.generator.qwen_image import QwenImageGenerator
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.generator.wan import WanGenerator, WanImageToVideoGenerator
from rewarddance.generator.z_image import ZImageGenerator

FAMILIES: dict[str, Callable[[Path, float, torch.dtype, int | None, int], Tunable]] = {
    "FluxPipeline": FluxGenerator.load,
    "QwenImagePipeline": QwenImageGenerator.load,
    "StableDiffusion3Pipeline": Sd3Generator.load,
    "WanImageToVideoPipeline": WanImageToVideoGenerator.load,
    "WanPipeline": WanGenerator.load,
    "ZImagePipeline": ZImageGenerator.load,
}
"""Loaders by the class name in `model_index.json`."""


def load_generator_folder(
    folder: Path,
    guidance: float,
    dtype: torch.dtype,
    resolution: int | None = None,
    max_sequence_length: int = 256,
) -> Tunable:
    """Load a local folder in diffusers layout, frozen.

    Args:
        resolution: side of its pictures in pixels; the checkpoint's own when None.
        max_sequence_length: tokens of a prompt that T5, or a language model in its place, reads.

    Raises:
        ConfigError: not a pipeline's folder, an unknown family, or a folder that cannot be loaded.
    """
    try:
        kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    except (OSError, json.JSONDecodeError):
        raise ConfigError(f"{folder}: no model_index.json; not a pipeline in diffusers layout") from None
    if kind not in FAMILIES:
        raise ConfigError(f"{folder}: a {kind}; known are {', '.join(FAMILIES)}")
    return FAMILIES[kind](folder, guidance, dtype, resolution, max_sequence_length)
