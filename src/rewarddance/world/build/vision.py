"""Pretrain the embedded VLM's vision tower: every patch predicts which object covers it and where its centre is.

Public VLMs start from a pretrained vision tower too (InternViT). The tower with its heads is also the reader, which
checks the oracle (`lab/reader.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.config import Config, Precision
from rewarddance.core.device import autocast, num_parameters, resolve_device, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import all_reduce_gradients, barrier, is_leader, rank, world_size
from rewarddance.core.prefetch import Feed, num_workers, on_device
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
    precision: Precision = "auto"
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    """Processes that make pictures ahead, see `core.prefetch.num_workers`."""
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


@dataclass(frozen=True)
class VisionBatch:
    """Pictures and their targets, as a worker process sends them.

    Attributes:
        pictures: uint8 (B, H, W, 3).
        kinds: (B, P), see `patch_targets`.
        facts: (B, P, 3).
        styles, grounds: (B,).
    """

    pictures: NDArray[np.uint8]
    kinds: NDArray[np.int64]
    facts: NDArray[np.float32]
    styles: NDArray[np.int64]
    grounds: NDArray[np.int64]


@dataclass(frozen=True)
class VisionBatches:
    """The batch of a step, a pure function of its index.

    Args:
        name: of the random stream.
        num: pictures of this process.
        patch: pixels of a patch's side.
        damaged: share of pictures with damaged pixels.
        world, rank: number of processes, and this one's.
    """

    seed: int
    name: str
    num: int
    patch: int
    damaged: float
    world: int = 1
    rank: int = 0

    def __call__(self, index: int) -> VisionBatch:
        rng = stream(self.seed, self.name, index * self.world + self.rank)
        scenes: list[Scene] = []
        while len(scenes) < self.num:
            scene = sample_pair(rng)[1]
            scene = edit_scene(scene, rng) if rng.random() < 0.4 else scene
            if scene.objects:
                scenes.append(scene)
        images = [render(s) for s in scenes]
        images = [damage_randomly(x, rng, most=0.5) if rng.random() < self.damaged else x for x in images]
        targets = [patch_targets(s, self.patch) for s in scenes]
        return VisionBatch(
            np.stack(images),
            np.stack([t[0] for t in targets]),
            np.stack([t[1] for t in targets]),
            np.array([TRAIN_STYLES.index(s.style) for s in scenes]),
            np.array([BACKGROUNDS.index(s.background) for s in scenes]),
        )


@dataclass
class VisionTraining:
    """Steps and validations of a vision tower's pretraining. A context, because worker processes make the pictures."""

    config: VisionConfig
    tower: Any
    heads: Heads
    loop: Loop
    held_out: VisionBatch | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.num = self.config.batch_size // world_size()
        self.device = next(self.tower.parameters()).device
        self.computed = resolve_precision(self.config.precision, self.device, num_parameters(self.tower))
        self.prepare = Preprocessor.square(CANVAS)
        make = self._pictures("vision", world_size(), rank())
        self.feed = Feed(make, self.config.loop.num_steps, num_workers(self.config.workers, self.device))

    def _pictures(self, name: str, world: int = 1, rank: int = 0) -> VisionBatches:
        patch, config = SIZES[self.config.size].patch, self.config
        return VisionBatches(config.seed, name, self.num, patch, config.damaged, world, rank)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.feed.__exit__(None, None, None)

    def losses(self, batch: VisionBatch) -> tuple[Tensor, Metrics]:
        """The loss, and metrics as tensors."""
        device = self.device
        pixels = on_device(batch.pictures, device).permute(0, 3, 1, 2).contiguous().float() / 255
        kinds, style, ground = (on_device(x, device) for x in (batch.kinds, batch.styles, batch.grounds))
        facts = on_device(batch.facts, device)
        covered = on_device(np.flatnonzero(batch.kinds < NOTHING), device)  # found here, so that no GPU is waited for
        with autocast(device, self.computed):
            states = self.tower(pixel_values=self.prepare.frames(pixels)).last_hidden_state[:, 1:]
            outputs = self.heads.kind(states), self.heads.facts(states), self.heads.whole(states.mean(1))
        kind_logits, predicted, wholes = (x.float() for x in outputs)
        weight = 0.25 + 0.75 * (kinds < NOTHING).float()
        per_patch = F.cross_entropy(kind_logits.flatten(0, 1), kinds.flatten(), reduction="none")
        kind = (per_patch * weight.flatten()).mean()
        centre = (predicted[..., :2] - facts[..., :2]).abs().flatten(0, 1)[covered].mean()
        logits, large = (x[..., 2].flatten()[covered] for x in (predicted, facts))
        size = F.binary_cross_entropy_with_logits(logits, large)
        whole = wholes.split([len(TRAIN_STYLES), len(BACKGROUNDS)], -1)
        both = F.cross_entropy(whole[0], style) + F.cross_entropy(whole[1], ground)
        figures = {
            "kinds": (kind_logits.argmax(-1) == kinds).flatten()[covered].float().mean(),
            "centre_pixels": centre.detach().double() * CANVAS,
            "styles": (whole[0].argmax(-1) == style).float().mean(),
        }
        return 2 * kind + 4 * centre + 0.5 * size + 0.3 * both, figures

    def step(self, index: int) -> Metrics:
        loss, figures = self.losses(self.feed(index))
        (loss / world_size()).backward()  # type: ignore[no-untyped-call]
        all_reduce_gradients(self.loop.parameters.values())
        return {"loss": loss.detach(), **figures}

    @torch.no_grad()
    def validate(self, index: int) -> Metrics:
        if self.held_out is None:
            self.held_out = self._pictures("vision-validation")(0)
        with self.loop.averaged():
            metrics = self.losses(self.held_out)[1]
        return {f"val_{k}": v for k, v in metrics.items()}


def pretrain_vision(config: VisionConfig, out: Path, *, resume: bool = False) -> Path:
    """Train and save the tower's weights as `out/model/vision.safetensors`, with `heads.safetensors` beside it."""
    folder, device = RunFolder(out), resolve_device(config.device)
    if is_leader():
        folder.start("vision", config, resume=resume)
    barrier()
    tower = new_vlm(config.size, new_tokenizer(), config.seed).model.vision_tower.train()
    heads = Heads(SIZES[config.size].vision_width)
    loop = Loop({"vision": tower.to(device), "heads": heads.to(device)}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    with VisionTraining(config, tower, heads, loop) as run:
        loop.fit("vision", ("loss", "kinds", "centre_pixels"), run.step, run.validate)
    target = out / "model" / "vision.safetensors"
    if is_leader():
        target.parent.mkdir(exist_ok=True)
        for name, part in (("vision", tower), ("heads", heads)):
            save_file(
                {k: v.contiguous() for k, v in part.state_dict().items()}, target.with_name(f"{name}.safetensors")
            )
    barrier()
    return target
