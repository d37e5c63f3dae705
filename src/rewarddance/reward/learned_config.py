"""Configuration of a learned reward: a transformer on frozen embeddings. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config
from rewarddance.core.loop_config import LoopConfig, OptimConfig

SCALAR_COLUMN = "overall"
"""Name of the scalar head. The other heads have the names of the criteria."""
KIND = "learned"
"""Kind of the run, and of the saved judge."""


class LearnedShape(Config):
    """Size of the transformer; kept with the judge."""

    width: int = Field(128, ge=8)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    max_words: int = Field(96, ge=1)
    """Tokens of a prompt at most. Longer prompts are refused."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"shape.width {self.width} must be a multiple of shape.heads {self.heads}")
        return self


class LearnedConfig(Config):
    """Embedder, data and training of a learned reward."""

    backbone: str = "tiny"
    """Gives the embeddings, and is not trained: a VLM of the embedded one's class (`tiny`, a folder, a judge's run), or
    a local folder of a `CLIPModel`."""
    data: str = "data/embedded"
    """A folder with ratings, such as `rewarddance data build --criterion each` writes."""
    shape: LearnedShape = LearnedShape()
    loss: Literal["mse", "ranking"] = "mse"
    """Loss of the scalar head. `mse`: squared error of the overall rating. `ranking`: -log sigmoid of the difference of
    two scores of one prompt, weighted by the gap of their ratings. The heads of the criteria always take the squared
    error."""
    criteria_weight: float = Field(1.0, ge=0)
    """Weight of the criteria's loss. The scalar head's loss has the weight 1."""
    prompts_per_step: int = Field(8, ge=1)
    """With four pictures of each prompt, 8 make a batch of 32."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig(lr=1e-4, warmup_steps=100, schedule="cosine", ema_decay=0.99, weight_decay=0.01)
    loop: LoopConfig = LoopConfig(num_steps=50_000, validate_every=2000, save_every=2000)


class LearnedSpec(Config):
    """Kept in `judge.json` of a learned reward."""

    format: int = 1
    kind: Literal["learned"] = "learned"
    columns: tuple[str, ...] = (SCALAR_COLUMN,)
    """Names of the heads, in order; the scalar head is the last one."""
    loss: Literal["mse", "ranking"] = "mse"
    shape: LearnedShape = LearnedShape()
