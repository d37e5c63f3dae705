"""Configuration of `rewarddance build video`. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewarddance.core.config import Config
from rewarddance.world.build.video_config import ImageToVideoConfig, VideoAutoencoderConfig, VideoGeneratorConfig
from rewarddance.world.build.vlm_config import ClipVlmConfig

VideoPart = Literal["all", "video_autoencoder", "text_to_video", "image_to_video", "clip_vlm"]


class VideoBuildConfig(Config):
    """The four stages, and how the finished generators are measured."""

    video_autoencoder: VideoAutoencoderConfig = VideoAutoencoderConfig()
    text_to_video: VideoGeneratorConfig = VideoGeneratorConfig()
    image_to_video: ImageToVideoConfig = ImageToVideoConfig()
    clip_vlm: ClipVlmConfig = ClipVlmConfig()
    clips: int = Field(96, ge=1)
    """Clips of held-out prompts that a finished generator is measured on, at every guidance scale."""
    steps: int = Field(25, ge=1)
    """Steps of the sampler in these measurements."""
    guidances: tuple[float, ...] = (1.0, 3.0, 5.0)
