"""Generators and judges at the shapes of public checkpoints, with random weights, on a GPU."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    InternVLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from rewarddance.generator.flux import FluxGenerator
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.plan import config_of
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.tiny_generator import new_prompt_tokenizer
from rewarddance.world.build.tiny_vlm import new_tokenizer

CLIP_TOKENS = 77


def made(kind: Any, *args: Any, dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Any:
    """A module with weights of this type, made on the GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            return kind(*args, **kwargs).eval()
    finally:
        torch.set_default_dtype(before)


def sd35_medium(resolution: int, guidance: float) -> Sd3Generator:
    """Stable Diffusion 3.5 medium (2.2B parameters) without T5; zeros replace its tokens."""
    tokenizer = new_prompt_tokenizer()
    tokenizer.model_max_length = CLIP_TOKENS
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    clips = [
        made(
            CLIPTextModelWithProjection,
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                max_position_embeddings=CLIP_TOKENS,
                **ids,
            ),
        )
        for width, layers in ((768, 12), (1280, 32))
    ]
    transformer = made(
        SD3Transformer2DModel,
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    vae = autoencoder(1.5305, 0.0609)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    for part in (transformer, vae, *clips):
        part.requires_grad_(False)
    generator = Sd3Generator(pipeline, guidance, 256, resolution)
    generator.precision = "bf16"
    return generator


def autoencoder(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    """The autoencoder of Stable Diffusion 3 and FLUX.1: 8 pixels a latent, 16 channels, fp32."""
    return made(
        AutoencoderKL,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=16,
        layers_per_block=2,
        sample_size=1024,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        dtype=torch.float32,
    )


def flux_dev(resolution: int, guidance: float) -> FluxGenerator:
    """FLUX.1 [dev] (11.9B parameters) with CLIP-L and the T5-XXL encoder (4.8B)."""
    tokenizer = new_prompt_tokenizer()
    tokenizer.model_max_length = CLIP_TOKENS
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    clip = made(
        CLIPTextModel,
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=CLIP_TOKENS,
            **ids,
        ),
    )
    t5 = made(
        T5EncoderModel,
        T5Config(
            d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
            pad_token_id=1,
        ),
    )  # fmt: skip
    transformer = made(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    vae = autoencoder(0.3611, 0.1159)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
    for part in (transformer, vae, clip, t5):
        part.requires_grad_(False)
    generator = FluxGenerator(pipeline, guidance, CLIP_TOKENS, resolution)
    generator.precision = "bf16"
    return generator


def preset(name: str) -> InternVLBackbone:
    """An InternVL preset (`vlm/presets.py`) in bf16, with the embedded VLM's tokenizer."""
    tokenizer, config = new_tokenizer(), config_of(name)
    config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    model = made(InternVLForConditionalGeneration, config)
    return InternVLBackbone(model, tokenizer, Preprocessor.square(448))
