"""Public backbones by short names: their names on the hub, and their shapes, so that `plan` needs no download.

The shapes of InternVL3.5 are those of its Qwen3 language models and InternViT vision towers. The totals agree with the
published model cards (InternVL3.5 1.1B, 2.3B, 4.7B, 8.5B, 15.1B, 38.4B; Qwen2.5-VL 3.8B, 8.3B, 33.5B, 73.4B; Qwen3-VL
2.1B, 4.4B, 8.8B, 33.4B). This project has not been run on any of these checkpoints yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2_5_VLConfig, Qwen3Config, Qwen3VLConfig

from rewarddance.core.errors import ConfigError

VOCABULARY = 151_936
IMAGE_TOKEN = 151_671


@dataclass(frozen=True)
class InternVL35:
    """Dimensions of the language model, and which vision tower."""

    width: int
    layers: int
    heads: int
    hidden: int
    large_vision: bool = False

    def config(self) -> InternVLConfig:
        if self.large_vision:  # InternViT-6B
            vision = InternVLVisionConfig(
                hidden_size=3200,
                num_hidden_layers=45,
                num_attention_heads=25,
                intermediate_size=12_800,
                norm_type="rms_norm",
                use_qk_norm=True,
                image_size=(448, 448),
                patch_size=(14, 14),
            )
        else:  # InternViT-300M
            vision = InternVLVisionConfig(attention_bias=True, image_size=(448, 448), patch_size=(14, 14))
        text = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=self.hidden,
            tie_word_embeddings=False,
        )
        return InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=IMAGE_TOKEN,
            image_seq_length=256,
            tie_word_embeddings=False,
        )


INTERNVL: dict[str, InternVL35] = {
    "internvl3.5-1b": InternVL35(1024, 28, 16, 3072),
    "internvl3.5-2b": InternVL35(2048, 28, 16, 6144),
    "internvl3.5-4b": InternVL35(2560, 36, 32, 9728),
    "internvl3.5-8b": InternVL35(4096, 36, 32, 12_288),
    "internvl3.5-14b": InternVL35(5120, 40, 40, 17_408),
    "internvl3.5-38b": InternVL35(5120, 64, 64, 25_600, large_vision=True),
}


@dataclass(frozen=True)
class Qwen25VL:
    """Dimensions of the language model, and the feed-forward width of the vision tower."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int = 152_064
    vision_hidden: int = 3456
    tied: bool = False

    def config(self) -> Qwen2_5_VLConfig:
        text: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.hidden,
            "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": self.tied,
        }
        vision = {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": self.vision_hidden,
            "num_heads": 16,
            "out_hidden_size": self.width,
        }
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=self.tied)


@dataclass(frozen=True)
class Qwen3VL:
    """Dimensions of the language model, and which vision tower."""

    width: int
    layers: int
    heads: int
    hidden: int
    large_vision: bool = True
    tied: bool = False

    def config(self) -> Qwen3VLConfig:
        text: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": self.hidden,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
            "tie_word_embeddings": self.tied,
        }
        depth, width, hidden, deep = (
            (27, 1152, 4304, [8, 16, 24]) if self.large_vision else (24, 1024, 4096, [5, 11, 17])
        )
        vision = {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_heads": 16,
            "out_hidden_size": self.width,
            "deepstack_visual_indexes": deep,
        }
        return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=self.tied)


QWEN: dict[str, Qwen25VL | Qwen3VL] = {
    "qwen2.5-vl-3b": Qwen25VL(2048, 36, 16, 2, 11_008, VOCABULARY, 3420, tied=True),
    "qwen2.5-vl-7b": Qwen25VL(3584, 28, 28, 4, 18_944, vision_hidden=3420),
    "qwen2.5-vl-32b": Qwen25VL(5120, 64, 40, 8, 27_648),
    "qwen2.5-vl-72b": Qwen25VL(8192, 80, 64, 8, 29_568),
    "qwen3-vl-2b": Qwen3VL(2048, 28, 16, 6144, large_vision=False, tied=True),
    "qwen3-vl-4b": Qwen3VL(2560, 36, 32, 9728, large_vision=False, tied=True),
    "qwen3-vl-8b": Qwen3VL(4096, 36, 32, 12_288),
    "qwen3-vl-32b": Qwen3VL(5120, 64, 64, 25_600),
}

PRESETS: dict[str, InternVL35 | Qwen25VL | Qwen3VL] = {**INTERNVL, **QWEN}

HUB: dict[str, str] = {
    **{name: f"OpenGVLab/InternVL3_5-{name.rpartition('-')[2].upper()}-HF" for name in INTERNVL},
    **{name: f"Qwen/{name.replace('qwen', 'Qwen').replace('vl', 'VL').replace('b', 'B')}-Instruct" for name in QWEN},
}
"""Short names to hub names."""

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def fetched(name: str) -> Path:
    """The local folder of a backbone on the hub; downloads it when it is not in the cache.

    Args:
        name: a key of `HUB`, or `organisation/model`.

    Raises:
        ConfigError: not in the cache, and the download failed.
    """
    repository = HUB.get(name, name)
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
