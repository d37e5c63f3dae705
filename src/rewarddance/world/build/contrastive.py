"""Train the embedded CLIP: a `CLIPModel` with a contrastive loss (Radford et al., arXiv 2103.00020).

Its towers start from embedded models: the picture tower from the reader's vision tower, the text tower from the
generator's first text encoder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, PreTrainedTokenizerFast

from rewarddance.core.config import Config
from rewarddance.core.device import resolve_device
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.prefetch import Feed, num_workers, on_device
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.vlm.embedders import ClipEmbedder, Crop
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.tiny_generator import new_prompt_tokenizer, text_config
from rewarddance.world.build.tiny_vlm import SIZES
from rewarddance.world.build.vlm import save_vlm
from rewarddance.world.corrupt import damage_randomly, edit_scene
from rewarddance.world.grammar import random_phrase
from rewarddance.world.render import render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import CANVAS

Batch = tuple[list[str], NDArray[np.uint8]]
MAX_SCALE = 100.0
"""Largest factor of the similarities, as in CLIP."""


class ContrastiveConfig(Config):
    """Cross-entropy from prompts to pictures, and from pictures to prompts."""

    seed: int = 0
    batch_size: int = Field(32, ge=2)
    """Prompts of a step. Each prompt has a right picture and one with an edited scene."""
    damaged: float = Field(0.2, ge=0, le=1)
    """Share of right pictures with damaged pixels."""
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    """Processes that make pictures ahead (`core.prefetch.num_workers`)."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=1e-3, warmup_steps=20, schedule="linear_end", ema_decay=0.99, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=400, log_every=10, validate_every=100, save_every=100, save_seconds=300)


def contrastive_batch(config: ContrastiveConfig, step: int, name: str = "contrastive") -> Batch:
    """B prompts, and 2 B pictures uint8: the right one of every prompt, then one with an edited scene."""
    rng = stream(config.seed, name, step)
    prompts, right, edited = [], [], []
    for _ in range(config.batch_size):
        spec, scene = sample_pair(rng)
        picture = render(scene)
        prompts.append(random_phrase(spec, rng))
        right.append(damage_randomly(picture, rng, most=0.5) if rng.random() < config.damaged else picture)
        edited.append(render(edit_scene(scene, rng)))
    return prompts, np.stack(right + edited)


def contrastive_loss(pictures: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Mean of two cross-entropies: each text finds its picture among all, and each right picture finds its text.

    Args:
        pictures: (2 B, D) unit vectors, the right ones first.
        texts: (B, D) unit vectors.
        scale: factor of the cosines.
    """
    logits = scale * texts @ pictures.T
    target = torch.arange(len(texts), device=texts.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(texts)].T, target)) / 2


def new_clip(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> CLIPModel:
    """An untrained model for pictures of 48x48. Its vision tower has the sizes of the embedded VLM's."""
    torch.manual_seed(seed)
    size, text = SIZES["tiny-2m"], text_config(tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_width // 32,
        image_size=CANVAS,
        patch_size=size.patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=text.projection_dim)
    return CLIPModel(config).eval()


@torch.no_grad()
def begin_from(model: CLIPModel, vision: Path, text: Path, pixels: Tensor) -> None:
    """Copy the weights of an InternVL vision tower and of a CLIP text encoder into the towers.

    A CLIP tower has a norm after its embeddings, no bias of the patch embedding, and no layer scales. The bias is added
    to the position embeddings, and the scales are multiplied into the matrices before them. The gain of the norm starts
    as the mean standard deviation of the embeddings. So only differences of scale between patches are lost. The mean of
    the states makes no difference, because the layers read the states through norms, which subtract it.

    Args:
        pixels: some pictures as the tower takes them, (N, 3, H, W), to measure the standard deviation on.
    """
    prefix, texts = "text_model.", load_file(text)
    model.text_model.load_state_dict({k.removeprefix(prefix): v for k, v in texts.items() if k.startswith(prefix)})
    model.text_projection.weight.copy_(texts["text_projection.weight"])
    tower, weights = model.vision_model, {k: v.float() for k, v in load_file(vision).items()}
    positions = weights["embeddings.position_embeddings"][0]
    positions[1:] += weights["embeddings.patch_embeddings.projection.bias"]
    tower.embeddings.class_embedding.copy_(weights["embeddings.cls_token"].flatten())
    tower.embeddings.patch_embedding.weight.copy_(weights["embeddings.patch_embeddings.projection.weight"])
    tower.embeddings.position_embedding.weight.copy_(positions)
    tower.pre_layrnorm.weight.fill_(float(tower.embeddings(pixels).std(-1, correction=0).mean()))
    for i, layer in enumerate(tower.encoder.layers):
        for name, value in _layer(weights, f"encoder.layer.{i}.").items():
            layer.get_parameter(name).copy_(value)


def _layer(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The parameters of a layer of a CLIP tower from those of an InternVL tower."""
    out = {}
    for theirs, ours, scale in (
        ("attention.q_proj", "self_attn.q_proj", None),
        ("attention.k_proj", "self_attn.k_proj", None),
        ("attention.v_proj", "self_attn.v_proj", None),
        ("attention.projection_layer", "self_attn.out_proj", "lambda_1"),
        ("layernorm_before", "layer_norm1", None),
        ("layernorm_after", "layer_norm2", None),
        ("mlp.fc1", "mlp.fc1", None),
        ("mlp.fc2", "mlp.fc2", "lambda_2"),
    ):
        for kind in ("weight", "bias"):
            value = weights[f"{prefix}{theirs}.{kind}"]
            if scale is not None:
                factor = weights[prefix + scale]
                value = value * (factor[:, None] if kind == "weight" else factor)
            out[f"{ours}.{kind}"] = value
    return out


def train_clip(config: ContrastiveConfig, vision: Path, text: Path, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (Hugging Face layout, with tokenizer and preprocessor).

    Args:
        vision: weights of a pretrained vision tower (`pretrain_vision`).
        text: weights of a CLIP text encoder (`train_generator`).
    """
    folder, device = RunFolder(out), resolve_device(config.device)
    folder.start("contrastive", config, resume=resume)
    tokenizer, prepare = new_prompt_tokenizer(), Preprocessor.square(CANVAS)
    model: Any = new_clip(tokenizer, config.seed)
    begin_from(model, vision, text, prepare.frames(_pixels(contrastive_batch(config, 0)[1], torch.device("cpu"))))
    model = model.to(device).train()
    loop = Loop({"clip": model}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    clip = ClipEmbedder(model, tokenizer, Crop(CANVAS, CANVAS, CANVAS))

    def embedded(batch: Batch) -> tuple[Tensor, Tensor]:
        prompts, pictures = batch
        media = [Media(p[None]) for p in _pixels(pictures, device)]
        return clip(media), clip.texts(prompts)

    def step(index: int) -> Metrics:
        pictures, texts = embedded(feed(index))
        loss = contrastive_loss(pictures, texts, model.logit_scale.exp().clamp(max=MAX_SCALE))
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach()}

    @torch.no_grad()
    def validate(index: int) -> Metrics:
        with loop.averaged():
            return retrieval(*embedded(contrastive_batch(config, 0, "contrastive-validation")))

    with Feed(partial(contrastive_batch, config), config.loop.num_steps, num_workers(config.workers, device)) as feed:
        loop.fit("contrastive", ("loss",), step, validate)
    save_vlm(model.eval(), tokenizer, prepare, out / "model")
    return out / "model"


def retrieval(pictures: Tensor, texts: Tensor) -> Metrics:
    """Shares of prompts. found: the right picture is the nearest of all. told: the edited picture is farther away."""
    cosines, num = texts @ pictures.T, len(texts)
    right, edited = cosines.diagonal(), cosines[:, num:].diagonal()
    target = torch.arange(num, device=texts.device)
    return {"val_found": (cosines.argmax(1) == target).float().mean(), "val_told": (right > edited).float().mean()}


def _pixels(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    return on_device(pictures, device).permute(0, 3, 1, 2).contiguous().float() / 255
