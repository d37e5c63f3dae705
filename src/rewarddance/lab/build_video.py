"""`rewarddance build video`: train, measure and pack the embedded video models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rewarddance.core.errors import ConfigError
from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder
from rewarddance.lab.video_config import VideoBuildConfig, VideoPart
from rewarddance.world.build.video_autoencoder import train_video_autoencoder
from rewarddance.world.build.video_config import ClipStreamConfig, VideoGeneratorConfig
from rewarddance.world.build.video_generator import train_image_to_video, train_text_to_video
from rewarddance.world.build.video_validation import pack, validate_autoencoder, validate_generator
from rewarddance.world.build.vlm import train_vlm
from rewarddance.world.build.vlm_config import ClipVlmConfig

C = TypeVar("C", bound=ClipStreamConfig)
PROBE_STEPS = 60
"""Steps of the short run that measures the speed; the first half warms up."""
OVERHEAD = 0.08
"""Share of a stage's time that goes into validations and checkpoints."""


def build_video(config: VideoBuildConfig, out: Path, only: VideoPart = "all", seconds: float | None = None) -> None:
    """Train what is missing under `out`, resume what was stopped; measure and pack what is finished.

    Args:
        only: one stage. The later stages need the earlier ones' results under `out`.
        seconds: training time of each stage but `clip_vlm`. A short run measures the speed, and the number of steps
            follows from it.

    Raises:
        ConfigError: an earlier stage is missing.
    """
    vae, text = out / "video_autoencoder", out / "text_to_video"
    image = out / "image_to_video"
    if only in ("all", "video_autoencoder"):
        _stage(vae, config.video_autoencoder, train_video_autoencoder, seconds)
        _report(vae, validate_autoencoder(vae, config.video_autoencoder.device))
    if only in ("all", "text_to_video"):
        _stage(text, config.text_to_video, _from(vae / "model", train_text_to_video), seconds)
        _report(text, _measured(text, config, config.text_to_video))
    if only in ("all", "image_to_video"):
        _stage(image, config.image_to_video, _from(text / "model", train_image_to_video), seconds)
        _report(image, _measured(image, config, config.image_to_video))
    if only in ("all", "clip_vlm"):
        _train_clip_vlm(config.clip_vlm, out / "clip_vlm")


def _train_clip_vlm(config: ClipVlmConfig, folder: Path) -> None:
    if any((folder / "model").glob("*.safetensors")):
        say(f"{folder}: finished already")
        return
    train_vlm(config, None, folder, resume=(folder / "run.json").is_file())


def _from(start: Path, train: Callable[..., Path]) -> Callable[..., Path]:
    def run(stage: VideoGeneratorConfig, out: Path, *, resume: bool) -> Path:
        if not start.is_dir():
            raise ConfigError(f"{start}: is missing; build that stage first, without --only or with its name")
        return train(stage, start, out, resume=resume)

    return run


def _stage(folder: Path, config: C, train: Callable[..., Path], seconds: float | None) -> None:
    if any((folder / "model").rglob("*.safetensors")):
        say(f"{folder}: finished already")
        return
    resume = (folder / "run.json").is_file()
    if seconds is not None:
        steps = _written_steps(folder) if resume else _steps_within(folder, config, train, seconds)
        config = _with_loop(config, num_steps=steps, validate_every=max(1, steps // 4), save_every=steps)
    train(config, folder, resume=resume)


def _with_loop(config: C, **keys: Any) -> C:
    return config.model_copy(update={"loop": config.loop.model_copy(update=keys)})


def _written_steps(folder: Path) -> int:
    return int(RunFolder(folder).read()["config"]["loop"]["num_steps"])


def _steps_within(folder: Path, config: C, train: Callable[..., Path], seconds: float) -> int:
    """Number of steps that take `seconds`, from the speed of a short run, whose folder is removed."""
    probe = folder.with_name(f"{folder.name}-probe")
    shutil.rmtree(probe, ignore_errors=True)
    loop = LoopConfig(num_steps=PROBE_STEPS, validate_every=PROBE_STEPS, save_every=PROBE_STEPS)
    quick = {"num_statistics": 1, "validation_clips": 1}
    if isinstance(config, VideoGeneratorConfig):
        quick["sampling_steps"] = 1
    train(config.model_copy(update={"loop": loop, **quick}), probe, resume=False)
    times = [float(line["seconds"]) for line in RunFolder(probe).metrics()]
    shutil.rmtree(probe)
    each = (times[-2] - times[PROBE_STEPS // 2 - 1]) / (PROBE_STEPS // 2 - 1)  # the last step also validates
    steps = max(1, int(seconds * (1 - OVERHEAD) / max(each, 1e-4)))
    say(f"{folder.name}: {1000 * each:.1f} ms a step, so {steps} steps take about {seconds:.0f} s")
    return steps


def _measured(run: Path, config: VideoBuildConfig, stage: VideoGeneratorConfig) -> dict[str, Any]:
    return validate_generator(run, stage.device, stage.precision, config.clips, config.steps, config.guidances)


def _report(run: Path, result: dict[str, Any]) -> None:
    tar = pack(run, run.with_suffix(".tar.gz"))
    last = RunFolder(run).metrics()[-1]
    say(f"{run.name}: {last['step']} steps in {last['seconds']} s; {tar} has {tar.stat().st_size / 2**20:.1f} MiB")
    say(f"{run.name}: {result}")
