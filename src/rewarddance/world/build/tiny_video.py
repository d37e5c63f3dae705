"""The embedded video generators: `WanPipeline` and `WanImageToVideoPipeline` from small configurations, untrained.

Nine frames of 48x48 pixels become 5x12x12 latents of 8 channels, which the transformer reads as 180 tokens.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from rewarddance.world.motion.batches import PROMPT_TOKENS, word_tokenizer

LATENT_CHANNELS = 8
SPATIAL, TEMPORAL = 4, 2
"""Pixels of a side, and frames, in one latent; the first frame has a latent of its own."""
SHIFT = 3.0
"""Shift of the flow's times, as in Wan."""


def new_video_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, `</s>` at the end."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(word_tokenizer().to_str()),  # it changes the settings of its object
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=PROMPT_TOKENS,
        padding_side="right",
    )


def new_video_autoencoder() -> AutoencoderKLWan:
    """Untrained `AutoencoderKLWan`: four-fold down in space, two-fold in time; the last halving is a patch of 2x2."""
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_temporal=TEMPORAL,
        scale_factor_spatial=SPATIAL,
    )
    # Posteriors start with standard deviation 0.05. With the usual 1.0, hours of training learn only the background.
    with torch.no_grad():
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
    return vae.eval()


def new_video_text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=96, d_kv=24, d_ff=192, num_layers=3, num_heads=4, pad_token_id=0
    )
    return UMT5EncoderModel(config).eval()


def new_video_transformer(from_picture: bool = False, num_layers: int = 6) -> WanTransformer3DModel:
    """Untrained `WanTransformer3DModel` that starts as the identity.

    Args:
        from_picture: image-to-video: it also reads a mask of `TEMPORAL` channels and the latents of the given picture.
    """
    extra = LATENT_CHANNELS + TEMPORAL if from_picture else 0
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=LATENT_CHANNELS + extra,
        out_channels=LATENT_CHANNELS,
        text_dim=96,
        freq_dim=64,
        ffn_dim=4 * 192,
        num_layers=num_layers,
    )
    _start_at_identity(transformer)
    return transformer.eval()


def _start_at_identity(transformer: nn.Module) -> None:
    """Set to zero all weights that change the residual stream: modulations, tables, output of cross-attention (no
    gate)."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            zeroed = ("time_proj.", "proj_out.", ".attn2.to_out.", "scale_shift_table")
            if any(part in f".{name}" for part in zeroed):
                parameter.zero_()
