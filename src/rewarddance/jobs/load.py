"""Names and folders to ready models: `load_judge`, `load_generator`, `load_backbone`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch

from rewarddance.align.config import AlignConfig
from rewarddance.core.device import resolve_device
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.protocols import Tunable
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.reward.checkpoint import Judge, load_judge_folder
from rewarddance.vlm.backbone import Backbone, load_backbone_folder
from rewarddance.vlm.grow import grow
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.presets import HUB, fetched, is_hub_name
from rewarddance.vlm.tiny import SIZES

ASSETS = Path(__file__).parents[1] / "assets"
SHIPPED_SIZE = "tiny-2m"
_EMBEDDED = {"judge": "judge-tiny", "generator": "generator-tiny", "vlm": "vlm-tiny"}


def find(name: str | Path, kind: Literal["judge", "generator", "vlm"]) -> Path:
    """The folder of a model: `tiny`, a run folder (its `model/`), or a checkpoint in Hugging Face layout.

    Larger sizes of the embedded VLM have the folder of the one that they are grown from.

    A VLM may also be a short name of a public one (`presets.HUB`; so may a judge, which is then the VLM asked as it is)
    or a name on the hub; it is downloaded once.

    Raises:
        ConfigError: no such folder, or nothing to be had from the hub.
    """
    if str(name) == "tiny" or (kind == "vlm" and str(name) in SIZES):
        folder = ASSETS / _EMBEDDED[kind]
        if not folder.is_dir():
            raise ConfigError(f"the embedded {kind} is not in this installation; `make assets` builds it")
        return folder
    if str(name) in HUB if kind == "judge" else kind == "vlm" and is_hub_name(str(name)):
        return fetched(str(name))
    folder = Path(name)
    if (folder / "run.json").is_file():
        if not (folder / "model").is_dir():
            raise RunError(f"{folder}: the run has no model yet; resume it, or name its last checkpoint")
        return folder / "model"
    if not folder.is_dir():
        raise ConfigError(f"{kind} {str(name)!r}: not 'tiny', not a run folder, not a local checkpoint")
    return folder


def weights_id(folder: Path) -> str:
    """SHA-256 over a model's weights: a name like `tiny` may mean others tomorrow."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()


def load_backbone(name: str | Path = "tiny", device: str = "auto", dtype: Literal["fp32", "bf16"] = "fp32") -> Backbone:
    """A VLM that has not been trained to judge.

    `tiny-20m` and `tiny-200m` are not shipped: they are the embedded one made wider and deeper (`vlm/grow.py`), which
    know what it knows and no more until they are trained.
    """
    backbone = load_backbone_folder(find(name, "vlm"), torch.bfloat16 if dtype == "bf16" else torch.float32)
    if str(name) in SIZES and str(name) != SHIPPED_SIZE:
        tokenizer = backbone.tokenizer
        backbone = InternVLBackbone(grow(backbone.model, str(name), tokenizer).eval(), tokenizer, backbone.prepare)
        backbone.module.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    backbone.module.to(resolve_device(device))
    return backbone


def load_to_train(config: RewardConfig) -> Backbone:
    """The backbone of a training; what is to be sharded stays in main memory until it is."""
    return load_backbone(config.backbone, "auto" if config.shard == 1 else "cpu", config.weights)


def load_internvl(name: str | Path = "tiny", device: str = "auto") -> InternVLBackbone:
    """A VLM of the embedded one's class, whose vision tower takes squares.

    Raises:
        ConfigError: another architecture.
    """
    backbone = InternVLBackbone.load(find(name, "vlm"))
    backbone.module.to(resolve_device(device))
    return backbone


def load_judge(
    name: str | Path = "tiny",
    *,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str = "auto",
    image_cache: int = 0,
    tiles: int | None = None,
) -> Judge:
    """A frozen judge: `tiny`, a run folder of `rewarddance train`, or an InternVL or Qwen-VL checkpoint: a local folder
    or a short name such as `internvl3.5-8b`.

    Args:
        precision: `bf16` holds and computes in bf16 where there is an accelerator; when None what the judge was saved
            with, and for a checkpoint that was not trained to judge bf16.
        image_cache: pictures whose tokens are kept from one call to the next, for references that come again and again.
        tiles: parts that a large picture is cut into at most beside a small view of the whole, as InternVL's own
            processor does (it takes 12); 1 judges the small view alone. As in training when None.
    """
    judge = load_judge_folder(
        find(name, "judge"), precision=precision, image_cache=image_cache, tiles=tiles, device=device
    )
    for module in judge.trainable().values():
        module.to(resolve_device(device))
    return judge


def generator_of(config: AlignConfig, adapter: str | Path | None = None) -> Tunable:
    """The generator that a configuration names, with all that it says of it."""
    return load_generator(
        config.generator,
        adapter=adapter,
        guidance=config.guidance,
        dtype=config.generator_dtype,
        resolution=config.resolution,
    )


def load_generator(
    name: str | Path = "tiny",
    *,
    adapter: str | Path | None = None,
    guidance: float = 1.0,
    device: str = "auto",
    dtype: Literal["fp32", "bf16"] = "fp32",
    resolution: int | None = None,
) -> Tunable:
    """A frozen generator: `tiny` or a local `StableDiffusion3Pipeline` folder, with the adapter of an align run.

    Args:
        adapter: a run folder of `rewarddance align`, or its `adapter/`.
        guidance: classifier-free guidance scale; 1 is off.
        dtype: of the frozen weights.
        resolution: side of its pictures in pixels; the checkpoint's own when None.
    """
    # here, for diffusers takes seconds, which who loads a judge need not wait
    from rewarddance.generator.families import load_generator_folder

    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    generator = load_generator_folder(find(name, "generator"), guidance, weights, resolution)
    if adapter is not None:
        folder = Path(adapter) / "adapter" if (Path(adapter) / "adapter").is_dir() else Path(adapter)
        if not (folder / "adapter.json").is_file():
            raise RunError(f"{adapter}: no adapter there; name a finished run of `rewarddance align`")
        generator.load_adapter(folder)
    generator.to(resolve_device(device))
    return generator
