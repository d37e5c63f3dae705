"""Models for the benchmarks of the engine, with random weights.

`2m` is the embedded VLM in fp32. `1b` has the widths of InternVL3-1B (vision 1024, language model 896 with 14 heads
over 2, vocabulary cut to 32,000) with 3 + 3 layers, so that it fits a CPU. `internvl3-1b` and `internvl3-8b` have all
layers and the whole vocabulary; they need a GPU. All but the first see 256 tokens a picture. They compute in bf16 where
the hardware has it, else in fp32.
"""

from dataclasses import dataclass

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig
from transformers.models.qwen2 import Qwen2Config

from rewarddance.core.device import native_bf16
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.tiny_vlm import new_tokenizer, new_vlm


@dataclass(frozen=True)
class Shape:
    """Dimensions of the language model, layers of the vision tower, and batch sizes of the padded baselines."""

    batches: tuple[int, ...]
    width: int = 896
    layers: int = 3
    heads: int = 14
    key_heads: int = 2
    hidden: int = 4864
    vocabulary: int = 32_000
    tied: bool = True
    vision_layers: int = 3


SHAPES = {
    "2m": None,
    "1b": Shape((2, 4)),
    "internvl3-1b": Shape((4, 8, 16), layers=24, vocabulary=151_674, vision_layers=24),
    "internvl3-8b": Shape((4, 8, 16), 3584, 28, 28, 4, 18_944, 151_674, tied=False, vision_layers=24),
}


def batches_of(shape: str) -> tuple[int, ...]:
    """Sizes of padded batches, of which the best counts."""
    dimensions = SHAPES[shape]
    return dimensions.batches if dimensions else (8, 16, 32)


def build(shape: str, device: torch.device) -> InternVLBackbone:
    """The model of `shape` with its tokenizer and preprocessor; its vision tower is frozen."""
    tokenizer, dimensions = new_tokenizer(), SHAPES[shape]
    torch.manual_seed(0)
    if dimensions is None:
        backbone = InternVLBackbone(new_vlm("tiny-2m", tokenizer).to(device), tokenizer, Preprocessor.square(48))
        backbone.vision.requires_grad_(False)
        return backbone
    vision = InternVLVisionConfig(
        hidden_size=1024,
        num_hidden_layers=dimensions.vision_layers,
        num_attention_heads=16,
        intermediate_size=4096,
        image_size=(448, 448),
    )
    text = Qwen2Config(
        vocab_size=dimensions.vocabulary,
        hidden_size=dimensions.width,
        num_hidden_layers=dimensions.layers,
        num_attention_heads=dimensions.heads,
        num_key_value_heads=dimensions.key_heads,
        intermediate_size=dimensions.hidden,
        tie_word_embeddings=dimensions.tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    ids = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids,
        image_seq_length=256,
        tie_word_embeddings=dimensions.tied,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if native_bf16(device.type) else torch.float32)
    try:
        with device:
            model = InternVLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.model.vision_tower.requires_grad_(False)
    return InternVLBackbone(model, tokenizer, Preprocessor.square(448))
