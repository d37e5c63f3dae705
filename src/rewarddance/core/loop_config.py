"""Configuration of the training loop. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewarddance.core.config import Config

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class OptimConfig(Config):
    """Optimizer, schedule and weight averaging."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of hidden matrices and leaves other parameters to AdamW; for pretraining."""
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "linear_end"] = "constant"
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the weight average; 0 keeps no average."""


class LoopConfig(Config):
    """Length of the training, and what is kept of it."""

    num_steps: int = Field(1000, ge=0)
    log_every: int = Field(1, ge=1)
    validate_every: int = Field(100, ge=1)
    save_every: int = Field(500, ge=1)
    save_seconds: float = Field(600.0, gt=0)
    """Save at least this often, whatever the number of steps."""
    keep_checkpoints: int = Field(2, ge=1)
    max_seconds: float | None = None
    """Stop after this many seconds, with a checkpoint to resume from."""
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics go besides `metrics.jsonl`: `tensorboard` (RUN/tensorboard), `wandb` and `trackio` (RUN/trackio),
    each of which must be installed."""
