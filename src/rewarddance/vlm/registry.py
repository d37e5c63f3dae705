"""The adapter for each VLM architecture, as named in `config.json`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rewarddance.core.device import SMALL_MODEL
from rewarddance.core.errors import ConfigError
from rewarddance.vlm.backbone import Backbone, open_config
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.quiet import no_loading_bar
from rewarddance.vlm.qwen import QwenBackbone

ADAPTERS: dict[str, type[Backbone]] = {
    "internvl": InternVLBackbone,
    "qwen2_5_vl": QwenBackbone,
    "qwen3_vl": QwenBackbone,
}


def load_backbone_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a local folder in Hugging Face layout.

    Raises:
        ConfigError: an unknown architecture, or a folder that cannot be loaded. Weights must be safetensors.
    """
    adapter = ADAPTERS[open_config(folder, tuple(ADAPTERS)).model_type]
    small = num_stored_parameters(folder) <= SMALL_MODEL
    try:
        with no_loading_bar(small):
            return adapter.load(folder, dtype)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: cannot be loaded ({' '.join(str(error).split())})") from None


def num_stored_parameters(folder: str | Path) -> int:
    """Parameters in the folder's weight files; only the files' headers are read.

    Raises:
        ConfigError: a weight file cannot be read.
    """
    total = 0
    for path in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from None
    return total
