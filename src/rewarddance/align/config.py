"""Configuration of alignment. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config, Precision
from rewarddance.core.loop_config import LoopConfig, OptimConfig


class ReferenceConfig(Config):
    """The pictures that candidates are compared with."""

    kind: Literal["best_of_n", "random", "none"] = "best_of_n"
    """`none` asks the pointwise question."""
    num_candidates: int = Field(4, ge=1)
    refresh: Literal["never", "steps", "win_rate"] = "win_rate"
    """When references are drawn again. `never`: P(yes) saturates after some time. `steps`: every `every` steps.
    `win_rate`: when the running mean of P(better than the reference) is above `above`."""
    every: int = Field(100, ge=1)
    above: float = Field(0.7, gt=0, lt=1)


class ReflConfig(Config):
    """Reward feedback learning: one step with gradient at a random late time, judged on the clean picture it
    predicts.
    """

    num_steps: int = Field(10, ge=1)
    window: tuple[float, float] = (0.3, 0.9)
    """Where the gradient step may lie, as shares of the roll-out; (0.3, 1.0) is any of the last 70 per cent. The last
    of ten steps is left out: there the embedded judge's gradient raised the judge's margin and lowered the oracle's
    value (docs/log.md)."""
    gradient_steps: int = Field(1, ge=1)
    """Steps with gradient from there on (cut at the end of the roll-out). 1 is ReFL. More is DRaFT-K from a random
    start: the judge sees pictures nearer to finished ones, and memory grows."""
    loss: Literal["log_sigmoid", "margin", "reward"] = "log_sigmoid"
    """-log P(yes), -log-odds, or -P(yes)."""
    views: int = Field(1, ge=1)
    """How often the judge looks at a picture: once as it is, then shifted by a few pixels; margins are averaged. This
    weakens adversarial textures, which fool a judge at one exact position."""
    kl_weight: float = Field(1.0, ge=0)
    """Weight of KL(policy, frozen policy) of the gradient step, taken as an SDE step with noise `kl_noise`. The unit is
    the true KL of that step in nats a latent dimension (its std includes sqrt(-dt)). Flow-GRPO's KL leaves dt out: with
    20 even steps a weight of 1 here equals its beta of 20."""
    kl_noise: float = Field(0.7, gt=0)

    @model_validator(mode="after")
    def _window_lies_in_the_rollout(self) -> Self:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window ({low}, {high}): needs 0 <= start <= end <= 1, shares of the roll-out")
        return self


class AlignConfig(Config):
    """A generator, a judge, a task and an algorithm."""

    generator: str = "tiny"
    """`tiny`, or a local folder of an SD3, FLUX.1, Qwen-Image or Z-Image pipeline."""
    adapter: str | None = None
    """Start from the adapter of a finished run (its folder), with that adapter's rank and alpha. The frozen policy of
    the KL stays the generator without any adapter."""
    judge: str = "tiny"
    """`tiny`, a judge's run folder, or a local checkpoint."""
    algorithm: Literal["refl", "sft"] = "refl"
    """`sft` is the control: supervised flow matching for the same number of steps, without a judge and guidance."""
    criterion: str | None = None
    """The judge's criterion; the one it was trained on most when not given."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance scale inside training and probes; 1 is off."""
    resolution: int | None = Field(None, ge=1)
    """Side of the generator's pictures in pixels; the checkpoint's own when not given."""
    max_sequence_length: int = Field(256, ge=1)
    """Tokens of a prompt that a T5 text encoder reads; the rest is cut."""
    task: str = "embedded"
    """Where prompts and the gold standard come from: `embedded`, or `package.module:attribute` of a task of your own
    (`core/task.py`). With `prompts` the task is that file."""
    prompts: str | None = None
    """A file of prompts to train on: text with one prompt a line, or JSONL with a field `prompt`."""
    prompts_sha256: str | None = None
    """Hash of the file of prompts; the run fills it in and checks it when it is resumed or repeated."""
    num_prompts: int = Field(256, ge=1)
    """Prompts to train on: the first ones of a file. Each gets a reference before the first step."""
    probe_file: str | None = None
    """A file of prompts for the probes. They are held out if it shares none with `prompts`."""
    gold_judge: str | None = None
    """A second judge (run folder or checkpoint) that training does not use. Its P(better than the start) is the gold
    standard of the probes, so that hacking can be noticed without an oracle."""
    batch_size: int = Field(24, ge=1)
    """Pictures of a step, over all processes."""
    micro_batch: int = Field(0, ge=0)
    """Pictures in one pass of a process, each pass at a gradient step of its own; 0 takes all of them at once."""
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32.0, gt=0)
    references: ReferenceConfig = ReferenceConfig()
    refl: ReflConfig = ReflConfig()
    precision: Precision = "auto"
    """What judge and generator compute in; their weights keep their types. `auto` is bf16 where the hardware has it,
    and fp32 for models of at most 100M parameters on a CPU. `run.json` says what it came to."""
    sample_batch: int = Field(128, ge=1)
    """Pictures that are sampled and decoded at once outside gradient steps (references, probes)."""
    generator_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the frozen weights. The adapter and the autoencoder are always fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations of transformer and decoder in the backward pass instead of keeping them."""
    max_kl: float = Field(0.0, ge=0)
    """Stop when the running mean of the KL is above this; 0 never stops."""
    compile: bool = True
    """Compile the layers of judges with more than 100M parameters on a GPU. Costs half a minute at the start."""
    probe_prompts: int = Field(40, ge=1)
    probe_noises: int = Field(2, ge=2)
    """Pictures of each probe prompt. Two at least, since the start's pictures are compared with one another."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig(lr=5e-4, warmup_steps=10, ema_decay=0.95)
    loop: LoopConfig = LoopConfig(num_steps=200, save_every=100)
