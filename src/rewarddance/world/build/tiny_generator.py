"""The embedded generator: a `StableDiffusion3Pipeline` from small configurations of the real classes.

It has no T5, so a prompt has the 24 tokens of the CLIP encoders. Every call passes `max_sequence_length=0`, because the
pipeline would otherwise add 256 zero tokens for T5.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from rewarddance.world.bpe import train_bpe
from rewarddance.world.scene import CANVAS

LATENT_CHANNELS = 8
PROMPT_TOKENS = 24
_VOCABULARY = 640


def new_autoencoder() -> AutoencoderKL:
    """Untrained `AutoencoderKL`: four-fold down, 8 latent channels."""
    channels = (16, 32, 64)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        mid_block_add_attention=False,
        norm_num_groups=8,
        sample_size=CANVAS,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    # Posteriors start with standard deviation 0.05. With the usual 1.0, hours of training learn only the background.
    with torch.no_grad():
        vae.encoder.conv_out.bias[LATENT_CHANNELS:] = -6.0
        vae.encoder.conv_out.weight[LATENT_CHANNELS:] *= 0.1
    return vae


def new_prompt_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of both text encoders: begin, words, end; padded with the end token, as in CLIP."""
    from tokenizers.processors import TemplateProcessing

    bpe = train_bpe(_VOCABULARY, ["<|begin|>", "<|end|>"])
    ends = [("<|begin|>", bpe.token_to_id("<|begin|>")), ("<|end|>", bpe.token_to_id("<|end|>"))]
    bpe.post_processor = TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        model_max_length=PROMPT_TOKENS,
        padding_side="right",
    )


def text_config(tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    """Configuration of a small CLIP text encoder of three layers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        projection_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_TOKENS,
        hidden_act="gelu",
        # the tokenizer's ids; with CLIP's default ids the pooled vector would be of another token
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_pipeline(vae: AutoencoderKL, seed: int = 0, num_layers: int = 6) -> StableDiffusion3Pipeline:
    """An untrained pipeline around a trained autoencoder, 48x48 pixels, all parts in evaluation mode."""
    torch.manual_seed(seed)
    tokenizer = new_prompt_tokenizer()
    encoders = [CLIPTextModelWithProjection(text_config(tokenizer)) for _ in range(2)]
    transformer = SD3Transformer2DModel(
        sample_size=CANVAS // 4,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=num_layers,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=2 * 96,
        caption_projection_dim=192,
        pooled_projection_dim=2 * 96,
        pos_embed_max_size=CANVAS // 8,
        qk_norm="rms_norm",
    )
    _start_at_identity(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    for part in (transformer, vae, *encoders):
        part.eval()
    return pipeline


def _start_at_identity(transformer: nn.Module) -> None:
    """Zero the modulations and the output layer, so that every block starts as the identity (DiT, adaLN-zero)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name.endswith(".linear") or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
