"""Configuration of alignment. No torch here, so that `--help` stays quick."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config
from rewarddance.core.loop_config import LoopConfig, OptimConfig


class ReferenceConfig(Config):
    """What candidates are compared with."""

    kind: Literal["best_of_n", "random", "none"] = "best_of_n"
    """`none` asks the pointwise question."""
    num_candidates: int = Field(4, ge=1)
    refresh: Literal["never", "steps", "win_rate"] = "win_rate"
    """A reference that never moves saturates P(yes); `steps` draws anew every `every` steps, `win_rate` when the
    policy's running mean reward against the bank passes `above`."""
    every: int = Field(100, ge=1)
    above: float = Field(0.7, gt=0, lt=1)


class ReflConfig(Config):
    """Reward feedback learning: a gradient step at a random late time, the judge's verdict on its clean picture."""

    num_steps: int = Field(10, ge=1)
    window: tuple[float, float] = (0.3, 0.9)
    """The gradient step's place, as shares of the roll-out; (0.3, 1.0) is any of the last 70 per cent. Of ten
    steps the last is left out: there the embedded judge's gradient raised its margin while the oracle fell
    (docs/log.md)."""
    gradient_steps: int = Field(1, ge=1)
    """Steps with gradient from there on (cut at the end of the roll-out): 1 is ReFL; more is DRaFT-K from a random
    start, where the judge meets pictures nearer to finished ones at the price of more memory."""
    loss: Literal["log_sigmoid", "margin", "reward"] = "log_sigmoid"
    """-log P(yes), -log-odds, or -P(yes)."""
    views: int = Field(1, ge=1)
    """How often the judge looks at a picture: as it is, then shifted by a few pixels; margins are averaged. What
    makes a judge say yes only at one exact place (adversarial texture) then counts for less."""
    kl_weight: float = Field(1.0, ge=0)
    """Weight of KL(policy, frozen policy) of the step taken as an SDE step with noise `kl_noise`."""
    kl_noise: float = Field(0.7, gt=0)

    @model_validator(mode="after")
    def _window_lies_in_the_rollout(self) -> Self:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window ({low}, {high}): needs 0 <= start <= end <= 1, shares of the roll-out")
        return self


class AlignConfig(Config):
    """A generator, a judge, prompts and an algorithm."""

    generator: str = "tiny"
    """`tiny`, or a local folder of a `StableDiffusion3Pipeline`."""
    judge: str = "tiny"
    """`tiny`, a judge's run folder, or a local checkpoint."""
    algorithm: Literal["refl", "sft"] = "refl"
    """`sft` continues supervised flow matching for the same number of steps: the control."""
    criterion: str | None = None
    """What the judge is asked about; what it was trained to judge by when not given."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance scale inside training and probes; 1 is off."""
    resolution: int | None = Field(None, ge=1)
    """Side of the generator's pictures in pixels; the checkpoint's own when not given."""
    prompts: str | None = None
    """A text file, one prompt a line; the embedded world's own training prompts when not given."""
    prompts_sha256: str | None = None
    """Of the file of prompts; filled in by the run, and compared when it is resumed or repeated."""
    num_prompts: int = Field(256, ge=1)
    """Prompts to train on: the first ones of a file. Every one gets a reference, drawn before the first step."""
    probe_file: str | None = None
    """A text file of prompts for the probes, one a line: held out, where it shares none with `prompts`."""
    gold_judge: str | None = None
    """A second judge (run folder or checkpoint) that the training does not see. Its P(better than the start) is the
    gold standard of the probes, so that hacking can be called where there is no oracle."""
    batch_size: int = Field(24, ge=1)
    """Pictures of a step, over all processes."""
    micro_batch: int = Field(0, ge=0)
    """Pictures in one pass of a process, each pass at a late step of its own; 0 takes all of them at once."""
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32.0, gt=0)
    references: ReferenceConfig = ReferenceConfig()
    refl: ReflConfig = ReflConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    """`bf16` computes under autocast; the adapter's weights stay in fp32."""
    sample_batch: int = Field(128, ge=1)
    """Pictures sampled and decoded at once outside gradient steps (references, probes)."""
    generator_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen weights; the adapter's stay in fp32."""
    gradient_checkpointing: bool = False
    """Compute activations of transformer and decoder again in the backward pass instead of keeping them."""
    max_kl: float = Field(0.0, ge=0)
    """Stop when the running mean KL passes this; 0 never stops."""
    probe_prompts: int = Field(40, ge=1)
    probe_noises: int = Field(2, ge=2)
    """Pictures of each probe prompt; before training they are compared with one another, so there have to be two."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig(lr=5e-4, warmup_steps=10, ema_decay=0.95)
    loop: LoopConfig = LoopConfig(num_steps=200, save_every=100)
