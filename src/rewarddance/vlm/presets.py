"""Public backbones by short names: their names on the hub, and their shapes, so that `plan` needs no download.

The numbers of parameters agree with the published model cards (InternVL2.5 25.5B; InternVL3.5 1.1B, 2.3B, 4.7B, 8.5B,
15.1B, 38.4B; Qwen2.5-VL 3.8B, 8.3B, 33.5B, 73.4B; Qwen3-VL 2.1B, 4.4B, 8.8B, 33.4B). This project has not been run on
any of these checkpoints yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import InternVLConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from rewarddance.core.errors import ConfigError

LANGUAGE_MODELS: dict[str, tuple[int, int, int, int, int]] = {
    "internvl2.5-26b": (6144, 48, 48, 8, 16_384),
    "internvl3.5-1b": (1024, 28, 16, 8, 3072),
    "internvl3.5-2b": (2048, 28, 16, 8, 6144),
    "internvl3.5-4b": (2560, 36, 32, 8, 9728),
    "internvl3.5-8b": (4096, 36, 32, 8, 12_288),
    "internvl3.5-14b": (5120, 40, 40, 8, 17_408),
    "internvl3.5-38b": (5120, 64, 64, 8, 25_600),
    "qwen2.5-vl-3b": (2048, 36, 16, 2, 11_008),
    "qwen2.5-vl-7b": (3584, 28, 28, 4, 18_944),
    "qwen2.5-vl-32b": (5120, 64, 40, 8, 27_648),
    "qwen2.5-vl-72b": (8192, 80, 64, 8, 29_568),
    "qwen3-vl-2b": (2048, 28, 16, 8, 6144),
    "qwen3-vl-4b": (2560, 36, 32, 8, 9728),
    "qwen3-vl-8b": (4096, 36, 32, 8, 12_288),
    "qwen3-vl-32b": (5120, 64, 64, 8, 25_600),
}
"""Hidden size, layers, attention heads, key-value heads, intermediate size."""
TIED = {"qwen2.5-vl-3b", "qwen3-vl-2b", "qwen3-vl-4b"}
"""Models whose word embeddings are also their output layer."""

HUB: dict[str, str] = {
    name: f"OpenGVLab/InternVL3_5-{name.rpartition('-')[2].upper()}-HF"
    if name.startswith("internvl3.5")
    else "OpenGVLab/InternVL2_5-26B"
    if name.startswith("internvl")
    else f"Qwen/{name.replace('qwen', 'Qwen').replace('vl', 'VL').replace('b', 'B')}-Instruct"
    for name in LANGUAGE_MODELS
}
"""Short names to hub names."""
ORIGINAL_LAYOUT = ("internvl2.5-26b",)
"""Models whose weights on the hub are not in the native format of transformers, so that they are not downloaded."""
INTERNVIT_6B = ("internvl2.5-26b", "internvl3.5-38b")
"""Models with the large vision tower; the other InternVL models have InternViT-300M."""

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def preset_config(name: str) -> PreTrainedConfig:
    """The model configuration of a key of `HUB`, as far as it decides shapes."""
    width, layers, heads, kv_heads, intermediate = LANGUAGE_MODELS[name]
    tied = name in TIED
    text: dict[str, Any] = {
        "vocab_size": 151_936,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "tie_word_embeddings": tied,
    }
    if name.startswith("internvl"):
        vision: dict[str, Any] = {"attention_bias": True}  # InternViT-300M
        if name in INTERNVIT_6B:
            vision = {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25}
            vision |= {"intermediate_size": 12_800, "norm_type": "rms_norm", "use_qk_norm": True}
        vision |= {"model_type": "internvl_vision", "image_size": (448, 448), "patch_size": (14, 14)}
        text["model_type"] = "qwen3"
        image = {"image_token_id": 151_671, "image_seq_length": 256}
        if name == "internvl2.5-26b":  # InternLM2.5-20B, whose weights are Llama's in another layout
            text |= {"model_type": "llama", "vocab_size": 92_553}
            image["image_token_id"] = 92_546
        return InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=tied, **image)
    if name.startswith("qwen2.5"):
        del text["head_dim"]
        small = name in ("qwen2.5-vl-3b", "qwen2.5-vl-7b")
        vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420 if small else 3456}
        vision |= {"num_heads": 16, "out_hidden_size": width}
        text["vocab_size"] = 151_936 if tied else 152_064
        text["rope_scaling"] = {"rope_type": "default", "mrope_section": [16, 24, 24]}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
    if tied:
        vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
    vision |= {"num_heads": 16, "out_hidden_size": width}
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def fetched(name: str) -> Path:
    """The local folder of a backbone on the hub; downloads it when it is not in the cache.

    Args:
        name: a key of `HUB`, or `organisation/model`.

    Raises:
        ConfigError: not in the cache, and the download failed; or in another format on the hub.
    """
    repository = HUB.get(name, name)
    if name in ORIGINAL_LAYOUT:
        raise ConfigError(
            f"backbone {name!r}: {repository} is in InternVL's original layout; convert it with transformers' "
            "convert_internvl_weights_to_hf.py and name the folder"
        )
    try:
        return Path(snapshot_download(repository, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"backbone {name!r}: no such folder, and {repository} cannot be downloaded from the hub ({reason}); "
            "download it elsewhere and name its folder"
        ) from None


def is_hub_name(name: str) -> bool:
    """Whether a name can only be one of the hub: a short name, or `organisation/model` that is not a local folder."""
    return name in HUB or (name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists())
