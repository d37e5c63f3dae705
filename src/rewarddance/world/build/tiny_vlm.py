"""The embedded VLM: `InternVLForConditionalGeneration` and its tokenizer, in several sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, PreTrainedTokenizerFast
from transformers.models.qwen2 import Qwen2Config

from rewarddance.world.bpe import train_bpe
from rewarddance.world.scene import CANVAS

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 1024


@dataclass(frozen=True)
class Size:
    """Widths and depths of the two towers."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    heads: int
    patch: int = 6


SIZES: dict[str, Size] = {
    "tiny-2m": Size(128, 4, 128, 6, 4),
    "tiny-20m": Size(256, 8, 384, 8, 12),
    "tiny-200m": Size(768, 12, 896, 14, 28),
}
"""Sizes by number of parameters. Widths are multiples of the smallest width and all heads have 32 units, so that a
small VLM can be grown into a large one (`grow.py`)."""


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded VLM's tokenizer, with InternVL's image tokens and a short chat template."""
    roles = ["<|user|>", "<|assistant|>", "<|system|>"]
    images = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    bpe = train_bpe(VOCABULARY, ["<|pad|>", "<|end|>", *roles, *images])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=roles,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        model_max_length=2048,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(size: str, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """The VLM of a key of `SIZES`. Pictures are 48x48: 64 patches, 16 tokens."""
    s = SIZES[size]
    vision = InternVLVisionConfig(
        hidden_size=s.vision_width,
        num_hidden_layers=s.vision_layers,
        num_attention_heads=s.vision_width // 32,
        intermediate_size=4 * s.vision_width,
        image_size=(CANVAS, CANVAS),
        patch_size=(s.patch, s.patch),
        attention_bias=True,
        layer_scale_init_value=1.0,
        use_mean_pooling=True,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=s.text_width,
        num_hidden_layers=s.text_layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads,
        intermediate_size=3 * s.text_width,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(CANVAS // s.patch // 2) ** 2,
        tie_word_embeddings=True,
    )


def config_of(size: str) -> InternVLConfig:
    """The configuration of a key of `SIZES`, for `rewarddance plan`."""
    return tiny_config(size, new_tokenizer())


def new_vlm(size: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> InternVLForConditionalGeneration:
    """An untrained VLM of the given size."""
    torch.manual_seed(seed)
    return InternVLForConditionalGeneration(tiny_config(size, tokenizer)).eval()
