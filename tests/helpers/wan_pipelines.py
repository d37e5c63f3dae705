"""Tiny Wan pipelines of every kind, and what their own calls draw."""

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from tiny_wan import CALL, tiny_video_pipeline
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from rewarddance.core.media import Media
from rewarddance.core.task import Prompt
from rewarddance.generator.trace import sample_latents
from rewarddance.generator.wan import ClipShape, WanGenerator, WanImageToVideoGenerator
from rewarddance.world.build.tiny_video import new_video_transformer
from rewarddance.world.build.video_sampling import SHAPE

PROMPTS = [
    "flat clip of a red circle slowly moving left on white",
    "a blue square growing, flat style, black background",
]


def shuffled(module, seed=0):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=rng) + (p.ndim < 2))
    return module


def pipeline_of(kind="t2v"):
    """A tiny pipeline of every kind: one transformer, two experts, a first frame at time 0, or CLIP's view of it."""
    from_picture = kind.startswith("i2v") or kind == "ti2v"
    pipeline = tiny_video_pipeline(from_picture=from_picture, num_layers=1)
    pipeline.vae.register_to_config(
        latents_mean=[0.1 * i for i in range(8)], latents_std=[1 + 0.1 * i for i in range(8)]
    )
    parts = dict(pipeline.components)
    if kind == "ti2v":
        parts["transformer"] = new_video_transformer(num_layers=1)
    shuffled(parts["transformer"])
    if kind.endswith("experts"):
        parts["transformer_2"] = shuffled(new_video_transformer(from_picture, num_layers=1), 1)
        parts["boundary_ratio"] = 0.875
    if kind.startswith("ti2v") or kind == "t2v-tokens":
        parts["expand_timesteps"] = True
    if kind == "i2v-clip":
        parts |= clip_parts(parts["transformer"])
    return type(pipeline)(**parts)


def clip_parts(transformer):
    """An image encoder, and a transformer that takes its embeddings."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)).eval()
    config = dict(transformer.config) | {"image_dim": 32, "added_kv_proj_dim": 192}
    del config["_use_default_values"]  # it would set them to their defaults
    return {
        "transformer": shuffled(type(transformer).from_config(config)).eval(),
        "image_encoder": encoder,
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }


def generator_of(kind, guidance=1.0, shape=SHAPE):
    pipeline = pipeline_of(kind)
    if kind == "i2v-clip":
        shape = ClipShape(9, 8.0, 48, 512)  # of a pipeline with an image encoder
    cls = WanImageToVideoGenerator if isinstance(pipeline, WanImageToVideoPipeline) else WanGenerator
    for part in ("transformer", "transformer_2", "text_encoder", "vae", "image_encoder"):
        if pipeline.components.get(part) is not None:
            pipeline.components[part].requires_grad_(False)
    return cls(pipeline, guidance, shape)


def pictures(n, side=48):
    rng = np.random.default_rng(0)
    return [Media.from_numpy(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(n)]


def with_pictures(media):
    return [Prompt(text, condition=picture) for text, picture in zip(PROMPTS, media, strict=False)]


def call(generator, noise, prompts, guidance, num_steps, picture=None, pipeline=None):
    """What the pipeline draws itself. Its image-to-video cleans prompts with ftfy, so it gets them embedded."""
    pipeline = pipeline or generator.pipeline
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": list(prompts)}
    if picture is not None:
        embeds, empty = (generator._embed(p) for p in (list(prompts), [""] * len(prompts)))
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": empty, "image": picture.to_pil()}
    return pipeline(
        num_inference_steps=num_steps, latents=noise, guidance_scale=guidance, output_type="pt", **given, **CALL
    ).frames


@torch.no_grad()
def draw(generator, noise, condition, num_steps):
    return generator.decode_tensor(sample_latents(generator, condition, noise, num_steps))


def noise_of(generator, n=2):
    return generator.noise(n, torch.Generator().manual_seed(3))


def adapted(generator, std=0.3, seed=2):
    """With an adapter that does something in every transformer."""
    generator.add_lora(2, 6.0)
    rng = torch.Generator().manual_seed(seed)
    for module in generator.trainable().values():
        for name, p in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=std, generator=rng)
    return generator
