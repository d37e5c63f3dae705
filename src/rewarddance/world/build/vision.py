"""Pretrain the embedded VLM's vision tower: every patch predicts which object covers it and where its centre is.

Public VLMs start from a pretrained vision tower too (InternViT). The tower with its heads is also the reader, which
checks the oracle (`lab/reader.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.config import Config
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.parallel import all_reduce_gradients, barrier, is_leader, rank, world_size
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.tiny_vlm import SIZES, new_tokenizer, new_vlm
from rewarddance.world.corrupt import damage_randomly, edit_scene
from rewarddance.world.render import render
from rewarddance.world.sampling import TRAIN_STYLES, sample_pair
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, SHAPES, Scene

NOTHING = len(COLOURS) * len(SHAPES)
"""Class of a patch that no object covers; the classes before it are colour-shape kinds."""


class VisionConfig(Config):
    """Cross-entropy of kinds, sizes, style and background; absolute error of centres."""

    seed: int = 0
    size: str = "tiny-2m"
    batch_size: int = 64
    damaged: float = 0.3
    """Share of pictures with damaged pixels."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.998, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=1500, log_every=10, validate_every=500, save_every=500, save_seconds=300)


def patch_targets(scene: Scene, patch: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Targets of every patch, in row order.

    Returns:
        Kinds (P,), and facts (P, 3): centre x and y in [0, 1] of the object that covers it, and 1 where it is large.
    """
    side = CANVAS // patch
    kinds, facts = np.full((side, side), NOTHING), np.zeros((side, side, 3), np.float32)
    edges = np.arange(side) * patch
    best = np.zeros((side, side))
    for o in scene.objects:
        low_x, low_y = o.x - o.size / 2, o.y - o.size / 2
        over_x = np.clip(np.minimum(edges + patch, low_x + o.size) - np.maximum(edges, low_x), 0, None)
        over_y = np.clip(np.minimum(edges + patch, low_y + o.size) - np.maximum(edges, low_y), 0, None)
        area = over_y[:, None] * over_x[None, :]
        covered = area > best
        best = np.maximum(best, area)
        kinds[covered] = COLOURS.index(o.colour) * len(SHAPES) + SHAPES.index(o.shape)
        facts[covered] = (o.x / CANVAS, o.y / CANVAS, float(o.large))
    return kinds.reshape(-1), facts.reshape(-1, 3)


class Heads(nn.Module):
    """Linear heads on patch features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, NOTHING + 1)
        self.facts = nn.Linear(width, 3)
        self.whole = nn.Linear(width, len(TRAIN_STYLES) + len(BACKGROUNDS))


def pretrain_vision(config: VisionConfig, out: Path, *, resume: bool = False) -> Path:
    """Train and save the tower's weights as `out/model/vision.safetensors`, with `heads.safetensors` beside it."""
    folder = RunFolder(out)
    if is_leader():
        folder.start("vision", config, resume=resume)
    barrier()
    tower = new_vlm(config.size, new_tokenizer(), config.seed).model.vision_tower.train()
    heads = Heads(SIZES[config.size].vision_width)
    loop = Loop({"vision": tower, "heads": heads}, config.optim, config.loop, folder)
    if resume:
        loop.resume()

    def losses(name: str, index: int) -> tuple[Tensor, Metrics]:
        pixels, kinds, facts, style, ground = _batch(config, name, index)
        states = tower(pixel_values=pixels).last_hidden_state[:, 1:]
        kind_logits, predicted = heads.kind(states), heads.facts(states)
        covered = kinds < NOTHING
        weight = 0.25 + 0.75 * covered.float()
        per_patch = F.cross_entropy(kind_logits.flatten(0, 1), kinds.flatten(), reduction="none")
        kind = (per_patch * weight.flatten()).mean()
        centre = (predicted[..., :2] - facts[..., :2]).abs()[covered].mean()
        large = F.binary_cross_entropy_with_logits(predicted[..., 2][covered], facts[..., 2][covered])
        whole = heads.whole(states.mean(1)).split([len(TRAIN_STYLES), len(BACKGROUNDS)], -1)
        both = F.cross_entropy(whole[0], style) + F.cross_entropy(whole[1], ground)
        right = (kind_logits.argmax(-1) == kinds)[covered].float().mean()
        figures = {
            "kinds": right.item(),
            "centre_pixels": centre.item() * CANVAS,
            "styles": (whole[0].argmax(-1) == style).float().mean().item(),
        }
        return 2 * kind + 4 * centre + 0.5 * large + 0.3 * both, figures

    def step(index: int) -> Metrics:
        loss, figures = losses("vision", index * world_size() + rank())
        (loss / world_size()).backward()  # type: ignore[no-untyped-call]
        all_reduce_gradients(loop.parameters.values())
        return {"loss": loss.item(), **figures}

    @torch.no_grad()
    def validate(index: int) -> Metrics:
        with loop.averaged():
            metrics = losses("vision-validation", 0)[1]
        return {f"val_{k}": v for k, v in metrics.items()}

    loop.fit("vision", ("loss", "kinds", "centre_pixels"), step, validate)
    target = out / "model" / "vision.safetensors"
    if is_leader():
        target.parent.mkdir(exist_ok=True)
        for name, part in (("vision", tower), ("heads", heads)):
            save_file(
                {k: v.contiguous() for k, v in part.state_dict().items()}, target.with_name(f"{name}.safetensors")
            )
    barrier()
    return target


def _batch(config: VisionConfig, name: str, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rng = stream(config.seed, name, index)
    num = config.batch_size // world_size()
    scenes: list[Scene] = []
    while len(scenes) < num:
        scene = sample_pair(rng)[1]
        scene = edit_scene(scene, rng) if rng.random() < 0.4 else scene
        if scene.objects:
            scenes.append(scene)
    images = [render(s) for s in scenes]
    images = [damage_randomly(x, rng, most=0.5) if rng.random() < config.damaged else x for x in images]
    pixels = Preprocessor.square(CANVAS)([Media.from_numpy(x) for x in images])
    targets = [patch_targets(s, SIZES[config.size].patch) for s in scenes]
    kinds = torch.from_numpy(np.stack([t[0] for t in targets]))
    facts = torch.from_numpy(np.stack([t[1] for t in targets]))
    style = torch.tensor([TRAIN_STYLES.index(s.style) for s in scenes])
    return pixels, kinds, facts, style, torch.tensor([BACKGROUNDS.index(s.background) for s in scenes])
