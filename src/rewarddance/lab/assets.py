"""`make assets`: train the embedded models from scratch and put them into the package, in bf16."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rewarddance.core.config import Config, load_recipe, merge, parse_config
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.parallel import barrier, is_leader, long_barrier
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder
from rewarddance.jobs import load
from rewarddance.jobs.data.build import build_embedded
from rewarddance.jobs.load import ASSETS, EMBEDDED, ModelKind, find
from rewarddance.jobs.train import train_from_data
from rewarddance.reward.saved import read_spec
from rewarddance.reward.train_config import RewardConfig
from rewarddance.world.build.autoencoder import AutoencoderConfig, train_autoencoder
from rewarddance.world.build.contrastive import ContrastiveConfig, train_clip
from rewarddance.world.build.generator import GeneratorConfig, train_generator
from rewarddance.world.build.large_batches import vision_settings, vlm_settings
from rewarddance.world.build.vision import VisionConfig, pretrain_vision
from rewarddance.world.build.vlm import train_vlm
from rewarddance.world.build.vlm_config import VlmConfig

ClipModel = Literal["tiny-video", "tiny-image-to-video", "tiny-clips"]
OF_CLIPS: dict[ClipModel, tuple[ModelKind, str]] = {
    "tiny-video": ("generator", "text-to-video"),
    "tiny-image-to-video": ("generator", "image-to-video"),
    "tiny-clips": ("judge", "judge"),
}
"""The embedded models of clips: what each one is, and the kind of run that trains it."""
MAX_BYTES = 25_000_000
"""Largest size of the embedded models of clips together. The two generators share no files: their autoencoder is the
same, but it is 5 per cent of both, and each one has trained its own text encoder."""
AssetPart = Literal["all", "autoencoder", "generator", "vision", "contrastive", "preferences", "vlm", "judge"]


def build_assets(out: Path, only: AssetPart = "all", device: str = "auto", workers: int | None = None) -> None:
    """Train what is missing under `out`, resume what was stopped, and copy the results into the package.

    Args:
        workers: processes that make batches ahead (`core.prefetch.num_workers`).
    """
    where: dict[str, Any] = {"device": device, "workers": workers}
    if only in ("all", "autoencoder"):
        _once(
            out / "autoencoder",
            lambda resume: train_autoencoder(AutoencoderConfig(**where), out / "autoencoder", resume=resume),
        )
    if only in ("all", "generator"):
        vae = out / "autoencoder" / "model"
        _once(
            out / "generator",
            lambda resume: train_generator(GeneratorConfig(**where), vae, out / "generator", resume=resume),
        )
        ship(out / "generator", ASSETS / "generator-tiny")
    if only in ("all", "vision", "vlm"):
        _once(out / "vision", lambda resume: pretrain_vision(VisionConfig(**where), out / "vision", resume=resume))
        ship(out / "vision", ASSETS / "reader-tiny")
    if only in ("all", "contrastive"):
        tower = ASSETS / "reader-tiny" / "vision.safetensors"
        text_encoder = ASSETS / "generator-tiny" / "text_encoder" / "model.safetensors"
        config, folder = ContrastiveConfig(**where), out / "contrastive"
        _once(folder, lambda resume: train_clip(config, tower, text_encoder, folder, resume=resume))
        ship(out / "contrastive", ASSETS / "clip-tiny")
    preferences = out / "preferences"
    if only in ("all", "preferences") and is_leader():
        build_embedded(preferences, 0)
    if only in ("all", "vlm"):
        long_barrier()
        vision, drawn = out / "vision" / "model" / "vision.safetensors", preferences / "train.parquet"
        if not (preferences / "data.json").is_file():  # its presence means that preferences exist or are being built
            raise ConfigError(f"{preferences}: no preferences; lessons ask about their pictures, so build them first")
        _once(
            out / "vlm", lambda resume: train_vlm(VlmConfig(**where), vision, out / "vlm", drawn=drawn, resume=resume)
        )
        ship(out / "vlm", ASSETS / "vlm-tiny")
    if only in ("all", "judge"):
        pair_judge, judge = out / "judge-pairs", out / "judge"
        _once(pair_judge, lambda resume: _train_judge("reward", "tiny", preferences, pair_judge, resume))
        _once(judge, lambda resume: _train_judge("reward-both", str(pair_judge), preferences, judge, resume))
        ship(judge, ASSETS / "judge-tiny")


class SizeSettings(Config):
    """A VLM of a size that is not shipped, or of the smallest size in large batches."""

    size: str = "tiny-20m"
    vision_steps: int = Field(600, ge=1)
    vlm_steps: int = Field(2400, ge=1)
    large: bool = True
    """Large batches, with a learning rate for them (`world/build/large_batches.py`)."""
    device: str = "auto"
    workers: int | None = None
    seed: int = 0


def build_size(settings: SizeSettings, out: Path, drawn: Path | None = None) -> Path:
    """Pretrain a vision tower and a VLM of a size under `out/<size>`; what is finished is kept.

    Nothing is copied into the package. `study sizes --pretrained out` takes the result.

    Args:
        drawn: preferences with pictures of the generator, for lessons on them; None for lessons on renders alone.

    Returns:
        The VLM's folder.
    """
    folder, keys = out / settings.size, {k: getattr(settings, k) for k in ("device", "workers", "seed")}
    vision_config = vision_settings(settings.size, settings.vision_steps, settings.large, **keys)
    _once(folder / "vision", lambda resume: pretrain_vision(vision_config, folder / "vision", resume=resume))
    weights = folder / "vision" / "model" / "vision.safetensors"
    vlm_config = vlm_settings(settings.size, settings.vlm_steps, settings.large, **keys)
    _once(folder / "vlm", lambda resume: train_vlm(vlm_config, weights, folder / "vlm", drawn=drawn, resume=resume))
    return folder / "vlm" / "model"


def _once(folder: Path, train: Callable[[bool], object]) -> None:
    """Train in `folder`, or resume the run there; `train` takes whether to resume."""
    if any((folder / "model").rglob("*.safetensors")):
        say(f"{folder}: finished already")
        return
    resume = (folder / "run.json").is_file()
    barrier()  # the leader writes only after all processes have checked the folder
    train(resume)


def _train_judge(name: str, backbone: str, preferences: Path, out: Path, resume: bool) -> Path:
    recipe = Path(f"recipes/tiny/{name}.yaml")
    names = {"backbone": backbone, "data": str(preferences)}
    config = merge(RewardConfig().model_dump(), load_recipe(recipe)) | names
    return train_from_data(parse_config(RewardConfig, config, str(recipe)), out, resume=resume)


def ship(run: Path, target: Path) -> None:
    """Copy a trained model into the package: weights in bf16, and `training.json` with the run's configuration."""
    if not is_leader():
        return
    card = target / "README.md"
    kept = card.read_text() if card.is_file() else None
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run / "model", target)
    if kept is not None:
        card.write_text(kept)
    for file in target.rglob("*.safetensors"):
        tensors = load_file(file)
        small = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(small, file, metadata={"format": "pt"})
        file.chmod(0o644)
    content, last = RunFolder(run).read(), RunFolder(run).metrics()[-1]
    facts = {k: content[k] for k in ("kind", "config", "python", "packages", "git", "hardware")}
    facts["trained"] = {"steps": last["step"], "seconds": last["seconds"]}
    (target / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def ship_clip_model(run: Path, name: ClipModel) -> Path:
    """Copy the model of a finished run of `build video` or `train` into the package, where `find` knows it as `name`.

    Returns:
        Its folder in the package.

    Raises:
        RunError: another kind of run, a run without a model, or models that are larger than `MAX_BYTES` together.
    """
    kind, trained_by = OF_CLIPS[name]
    made = RunFolder(run).read()["kind"]
    if made != trained_by:
        raise RunError(f"{run}: a {made} run; {name} is the model of a {trained_by} run")
    model = find(run, kind)
    if kind == "judge" and read_spec(model).kinds != ("clip",):
        raise RunError(f"{run}: this judge was not trained on clips alone; {name} judges clips")
    targets = {n: load.ASSETS / EMBEDDED[k][n] for n, (k, _) in OF_CLIPS.items()}
    others = sum(bytes_in_bf16(folder) for n, folder in targets.items() if n != name)
    if (total := bytes_in_bf16(model) + others) > MAX_BYTES:
        raise RunError(f"{run}: the models of clips would take {total / 1e6:.1f} MB, above {MAX_BYTES / 1e6:.0f} MB")
    ship(run, targets[name])
    say(f"{targets[name]}: {bytes_in_bf16(targets[name]) / 1e6:.1f} MB; models of clips together {total / 1e6:.1f} MB")
    return targets[name]


def bytes_in_bf16(folder: Path) -> int:
    """Bytes of a model's files if its weights are stored in bf16; 0 if there is no such folder."""
    total = 0
    for file in (f for f in folder.rglob("*") if f.is_file()):
        if file.suffix != ".safetensors":
            total += file.stat().st_size
            continue
        with safe_open(file, "pt") as content:
            total += sum(2 * math.prod(content.get_slice(key).get_shape()) for key in content.keys())  # noqa: SIM118
    return total
