"""Random pipelines of the public families, a few thousand parameters each. Nothing is downloaded."""

from functools import cache

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from rewarddance.world.bpe import train_bpe
from rewarddance.world.build.tiny_generator import PROMPT_TOKENS, new_prompt_tokenizer

SIDE = 32
"""Pixels. The autoencoders halve the side and a token is two by two latents, so a picture has 64 tokens."""
CHANNELS = 4
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# the public model's: the shift depends on the number of tokens
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096}


@cache
def chat_tokenizer():
    bpe = train_bpe(640, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="right",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


@cache
def prompt_tokenizer():
    return new_prompt_tokenizer()


def autoencoder_kl():
    """Its posterior is a point, so that sampling from it is no different from its mode."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=CHANNELS,
        layers_per_block=1,
        mid_block_add_attention=False,
        norm_num_groups=4,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.36,
        shift_factor=0.11,
    )
    _make_point(vae.encoder.conv_out)
    return vae


def autoencoder_qwen():
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[-0.7, 0.2, 0.5, -0.1],
        latents_std=[2.8, 1.4, 0.6, 1.9],
    )
    _make_point(vae.quant_conv)
    return vae


def _make_point(last):
    with torch.no_grad():
        last.weight[CHANNELS:] = 0
        last.bias[CHANNELS:] = -60


def flux(guidance_embeds=True):
    """As [dev]; without the embedding of guidance and without shift as [schnell]."""
    torch.manual_seed(0)
    tokenizer = prompt_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=PROMPT_TOKENS, **ids,
    )  # fmt: skip
    t5 = T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | DYNAMIC if guidance_embeds else {"shift": 1.0}))
    return FluxPipeline(
        scheduler, autoencoder_kl(), CLIPTextModel(clip), tokenizer, T5EncoderModel(t5), tokenizer, transformer
    )


def qwen_image():
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": len(tokenizer), **ids,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32,
              "fullatt_block_indexes": [0]}  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS, out_channels=CHANNELS, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC | {"max_shift": 0.9, "shift_terminal": 0.02})
    return QwenImagePipeline(
        scheduler,
        autoencoder_qwen(),
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)),
        tokenizer,
        transformer,
    )


def z_image():
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
        axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    )  # fmt: skip
    nn.init.normal_(transformer.x_pad_token)
    nn.init.normal_(transformer.cap_pad_token)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, autoencoder_kl(), Qwen3Model(text), tokenizer, transformer)


FAMILIES = {"flux": flux, "flux-schnell": lambda: flux(False), "qwen-image": qwen_image, "z-image": z_image}


def save(name, folder):
    """Write the family's pipeline to a folder."""
    pipeline = FAMILIES[name]()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return folder
