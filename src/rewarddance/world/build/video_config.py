"""Configurations of the embedded video models' training. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config, Precision
from rewarddance.core.loop_config import LoopConfig, OptimConfig


class ClipStreamConfig(Config):
    """Where a stage computes, and how it draws its clips.

    The clips of a step are a pure function of the seed and the step. The number of workers does not change them.
    """

    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: Precision = "bf16"
    workers: int | None = Field(None, ge=0)
    """Processes that draw clips ahead. By default none on a CPU, and on a GPU as many as there are cores less two, at
    most 14."""
    batch_size: int = Field(256, ge=1)
    fresh: int = Field(32, ge=1)
    """Number of clips of a batch that no earlier batch has shown. The others come from the pool."""
    pool: int = Field(131_072, ge=0)
    """Number of the newest clips that stay on the device. It is not used if all clips of a batch are fresh."""
    validation_clips: int = Field(48, ge=1, le=48)
    """Clips of held-out development prompts that the model is measured on every `loop.validate_every` steps."""
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.fresh > self.batch_size:
            raise ValueError(f"fresh is {self.fresh}, above batch_size {self.batch_size}; lower fresh")
        if self.fresh < self.batch_size and self.pool < self.batch_size:
            raise ValueError(f"pool is {self.pool}, below batch_size {self.batch_size}; raise pool, or fresh")
        return self

    @property
    def num_slots(self) -> int:
        """Number of fresh batches in the pool."""
        return 1 if self.fresh == self.batch_size else self.pool // self.fresh


class VideoAutoencoderConfig(ClipStreamConfig):
    """Reconstruction of pixels and of their differences, a small KL, and noise on latents, so that noisy latents decode
    well."""

    batch_size: int = Field(128, ge=1)
    pool: int = Field(32_768, ge=0)
    foreground_weight: float = Field(5.0, ge=0)
    """Weight that pixels at or beside an object get on top of the 1 that every pixel has."""
    edge_weight: float = Field(1.0, ge=0)
    """Weight of the error in the differences between neighbouring pixels, along x, y and time."""
    crop: int = Field(24, ge=8, le=48, multiple_of=8)
    """Side in pixels of the square at an object that is cut from every clip. Most of a clip is plain background, so
    crops of 24 learn objects in a quarter of the time. 48 is the whole clip."""
    whole_share: float = Field(0.15, ge=0, le=1)
    """Share of the steps, at the end, that train on whole clips. Such a step has fewer clips, so that it has as many
    pixels as a batch of crops."""
    start: str | None = None
    """Folder of a trained autoencoder to start from; None starts from random weights."""
    kl_weight: float = Field(2e-5, ge=0)
    """Weight of the KL divergence, which is a mean over the latents' elements."""
    latent_noise: float = Field(0.05, ge=0)
    """Standard deviation of the noise added before decoding, as a share of the latents' standard deviation."""
    num_statistics: int = Field(2000, ge=1)
    """Clips that the means and standard deviations of the latents are measured over."""
    channels_last: bool = True
    """Keep the channels of clips and weights innermost in memory, which is faster."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=6e-3, warmup_steps=100, schedule="cosine", ema_decay=0.99, weight_decay=1e-3
    )
    loop: LoopConfig = LoopConfig(num_steps=4000, log_every=20, validate_every=1000, save_every=2000, save_seconds=300)


class VideoGeneratorConfig(ClipStreamConfig):
    """Flow matching on the latents of a frozen autoencoder, with the text encoder trained along."""

    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of prompts that are replaced by the empty prompt, for classifier-free guidance."""
    uniform_share: float = Field(0.2, ge=0, le=1)
    """Share of times that are drawn evenly. The others are logit-normal and shifted."""
    time_shift: float = Field(3.0, ge=1)
    """Shift of the logit-normal times. The position of an object in every frame is decided at times above 0.9, so a
    larger shift than the sampler's 3 teaches motion better."""
    stills_share: float = Field(0.0, ge=0, lt=1)
    """Share of the steps that train on single frames with the prompts of their clips, with as many latents as a batch
    of clips. They teach shapes, colours and styles at a fifth of the cost. Text-to-video only."""
    num_layers: int = Field(6, ge=1)
    """Blocks of a transformer that starts from random weights."""
    start: str | None = None
    """Folder of a text-to-video pipeline to start from; None starts from random weights. Image-to-video always starts
    from the text-to-video model."""
    compile: bool = False
    """Compile the transformer's blocks with torch.compile."""
    guidance: float = Field(3.0, ge=1)
    """Classifier-free guidance scale of the validation during training."""
    num_statistics: int = Field(512, ge=1)
    """Clips that the spread of every latent frame is measured over."""
    sampling_steps: int = Field(20, ge=1)
    """Steps of the sampler in validations."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.999, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=5000, log_every=20, validate_every=1000, save_every=2500, save_seconds=300)


class ImageToVideoConfig(VideoGeneratorConfig):
    """As `VideoGeneratorConfig`, from the weights of the text-to-video model."""

    stills_share: float = Field(0.0, ge=0, le=0)
    """Always 0: a single frame would be a copy of the given picture."""
    start: None = None
    """Not a setting here: the training begins with the text-to-video model."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=1e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.999, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=4000, log_every=20, validate_every=1000, save_every=2000, save_seconds=300)
