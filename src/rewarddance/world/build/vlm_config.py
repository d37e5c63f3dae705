"""Configurations of the embedded VLM's pretraining. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config, Precision
from rewarddance.core.loop_config import LoopConfig, OptimConfig


class VlmConfig(Config):
    """Next-token loss on the answers; the learning rate is Muon's, matched to AdamW's update size."""

    seed: int = 0
    size: str = "tiny-2m"
    start: str | None = None
    """Folder of a VLM to start from, with its tokenizer and size, instead of a new language model on `vision`."""
    batch_size: int = 32
    micro_batch: int = Field(0, ge=0)
    """Lessons of one pass; gradients accumulate. 0 takes 16 on a CPU, and the whole batch on a GPU."""
    num_questions: int = 4
    drawn_share: float = 0.4
    """Share of lessons on the generator's pictures, from step `drawn_from` on."""
    drawn_from: int = 1000
    matching_share: float = 0.4
    """Share of lessons on matching alone (`world/lessons.py`)."""
    relations_share: float = 0.0
    """Share of lessons on relations alone (`world/lessons.py`)."""
    clips_share: float = Field(0.0, ge=0, le=1)
    """Share of lessons on clips (`world/motion/lessons.py`)."""
    actions_share: float = Field(0.0, ge=0, le=1)
    """Share of the lessons on clips that are about actions alone."""
    prompts_share: float = Field(0.0, ge=0, le=1)
    """Share of the lessons on clips that ask which of several prompts a clip matches."""
    requests_share: float = 0.3
    """Share of lessons that begin with "answer yes or no." and ask only such questions."""
    relations_alone: tuple[float, float] = (0.0, 0.0)
    """Part of the run (start and end as shares of its steps) with lessons on relations alone, which are not learnt when
    mixed with others. Off for the shipped weights. How much is forgotten afterwards was not measured (docs/log.md)."""
    verdict_weight: float = 3.0
    """Weight of one-word answers; the words of longer answers weigh 1."""
    precision: Precision = "bf16"
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    """Processes that make lessons ahead; 0 makes them in the training process. See `core.prefetch.num_workers`."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.998, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=2400, log_every=10, validate_every=400, save_every=200, save_seconds=300)

    @model_validator(mode="after")
    def _shares_of_clips_are_at_most_all(self) -> Self:
        if self.actions_share + self.prompts_share > 1:
            raise ValueError(
                "actions_share and prompts_share are shares of the lessons on clips; their sum is at most 1"
            )
        return self


class ClipVlmConfig(VlmConfig):
    """Further lessons for the embedded judge of pictures, most of them about clips. Judges of clips begin from it."""

    start: str | None = "judge-tiny"
    batch_size: int = 16
    micro_batch: int = Field(8, ge=0)
    drawn_share: float = 0.0
    clips_share: float = Field(0.95, ge=0, le=1)
    actions_share: float = Field(0.4, ge=0, le=1)
    prompts_share: float = Field(0.5, ge=0, le=1)
    optim: OptimConfig = OptimConfig(
        name="muon", lr=1.5e-3, warmup_steps=30, schedule="linear_end", ema_decay=0.99, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=2000, log_every=10, validate_every=200, save_every=50, save_seconds=300)
