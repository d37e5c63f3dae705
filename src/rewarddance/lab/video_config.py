"""Configuration of `rewarddance build video`. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewarddance.core.config import Config
from rewarddance.world.build.video_config import ImageToVideoConfig, VideoAutoencoderConfig, VideoGeneratorConfig

VideoPart = Literal["all", "video_autoencoder", "text_to_video", "image_to_video"]


class VideoBuildConfig(Config):
    """The three stages, and how the finished models are measured."""

    video_autoencoder: VideoAutoencoderConfig = VideoAutoencoderConfig()
    text_to_video: VideoGeneratorConfig = VideoGeneratorConfig()
    image_to_video: ImageToVideoConfig = ImageToVideoConfig()
    clips: int = Field(96, ge=1)
    """Clips of held-out prompts that a finished generator is measured on, at every guidance scale."""
    steps: int = Field(25, ge=1)
    """Steps of the sampler in these measurements."""
    guidances: tuple[float, ...] = (1.0, 3.0, 5.0)
