"""Configuration of alignment. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rewarddance.align.rollout_config import Rolling
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
    """Where the gradient step may lie, as shares of the rollout; (0.3, 1.0) is any of the last 70 per cent. The last
    of ten steps is left out: there the embedded judge's gradient raised the judge's margin and lowered the oracle's
    value (docs/log.md)."""
    gradient_steps: int = Field(1, ge=1)
    """Number of steps with gradient, one after the other (fewer at the end of the rollout). 1 is ReFL. More is DRaFT-K
    from a random start: the judge sees pictures that are nearer to finished ones, and memory grows."""
    copies: int = Field(0, ge=0)
    """DRaFT-LV (arXiv 2309.17400): after the gradient step, the clean picture is noised this many times to the same
    time, and each copy takes a gradient step too. Gradients are averaged, which lowers their variance."""
    supervised_weight: float = Field(0.0, ge=0)
    """Weight of a flow-matching loss beside the reward (ImageReward's regulariser). The loss uses as many of the task's
    captioned pictures as are judged. Needs a task that has pictures."""
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
            raise ValueError(f"window ({low}, {high}): needs 0 <= start <= end <= 1, shares of the rollout")
        return self


PULLS = {
    "refl": "kl_weight",
    "nft": "frozen_weight",
    "grpo": "kl_weight",
    "ppo": "kl_weight",
    "distill": "frozen_weight",
}
"""For each algorithm: the key of its section that holds the weight of the pull to the frozen policy."""


class AlignConfig(Rolling):
    """A generator, a judge, a task and an algorithm."""

    generator: str = "tiny"
    """`tiny`, `tiny-video`, `tiny-image-to-video`, or a local folder of an SD3, FLUX.1, Qwen-Image, Z-Image or
    Wan pipeline."""
    adapter: str | None = None
    """Start from the adapter of a finished run (its folder), with that adapter's rank and alpha. The frozen policy of
    the KL stays the generator without any adapter."""
    judge: str = "tiny"
    """`tiny`, `tiny-clips`, a judge's run folder, a local checkpoint, the YAML file of several judges
    (docs/guides/composite.md), or the address of a server (not for `refl`): `http://HOST:PORT` of `rewarddance serve`,
    or a reward server's `http://HOST:PORT/score?reward=NAME`."""
    algorithm: Literal["refl", "nft", "grpo", "ppo", "distill", "dpo", "sft"] = "refl"
    """`refl`: reward feedback with the judge's gradient. `nft` (DiffusionNFT), `grpo`, `ppo`, `distill` (best-of-N) and
    `dpo` learn from groups of finished pictures and need no gradient of the judge. `sft` is the control: supervised
    flow matching for the same number of steps, without a judge and without guidance."""
    criterion: str | None = None
    """The judge's criterion. If it is not given, the criterion of most of the judge's training records."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance scale inside training and probes; 1 is off."""
    sample_guidance: float | None = Field(None, ge=0)
    """Classifier-free guidance scale of `evaluate`, `sample`, `ab` and studies; `guidance` when not given."""
    resolution: int | None = Field(None, ge=1)
    """Side of the generator's pictures in pixels; the checkpoint's own when not given."""
    max_sequence_length: int = Field(256, ge=1)
    """Tokens of a prompt that a T5 text encoder reads; the rest is cut."""
    task: str = "embedded"
    """Where prompts and the gold standard come from: `embedded` (pictures), `embedded-video`,
    `embedded-image-to-video`, or `package.module:attribute` of a task of your own
    (`core/task.py`). With `prompts` the task is that file."""
    prompts: str | None = None
    """A file of prompts to train on: text with one prompt a line, or JSONL with a field `prompt`."""
    prompts_sha256: str | None = None
    """Hash of the file of prompts; the run fills it in and checks it when it is resumed or repeated."""
    num_prompts: int = Field(256, ge=1)
    """Prompts to train on: the first ones of a file. Each gets a reference before the first step."""
    probe_file: str | None = None
    """A file of prompts for the probes. They are held out if the file shares no prompt with `prompts`."""
    gold_judge: str | None = None
    """A second judge (anything that `judge` takes) that training does not use. Its P(better than the start) is the gold
    standard of the probes, so that hacking can be noticed without an oracle. If the task has an exact measure, the
    probes also log that measure (`probe/truth`)."""
    batch_size: int = Field(24, ge=1)
    """Pictures of a step, over all processes; for algorithms with groups a multiple of `rollout.group_size`."""
    micro_batch: int = Field(0, ge=0)
    """Pictures in one pass of a process; 0 takes all of them at once. In `refl` each pass has a gradient step of its
    own; algorithms with groups put whole groups into a pass."""
    lora_rank: int = Field(16, ge=1)
    lora_alpha: float = Field(32.0, gt=0)
    references: ReferenceConfig = ReferenceConfig()
    refl: ReflConfig = ReflConfig()
    precision: Precision = "auto"
    """Precision in which judge and generator compute; their weights keep their types. `auto` is bf16 where the hardware
    has it, and fp32 for models of at most 100M parameters on a CPU. `run.json` says which precision was used."""
    sample_batch: int = Field(128, ge=1)
    """Pictures that are sampled and decoded at once outside gradient steps (references, probes)."""
    generator_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the frozen weights. The adapter and the autoencoder are always fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations of the transformer in the backward pass instead of keeping them, and of the decoder where
    its class can (not Wan's and Qwen-Image's)."""
    decode_chunk: int = Field(0, ge=0)
    """Latent frames of a clip that are decoded with gradient at a time; 0 decodes the whole clip at once. Pixels and
    gradient stay the same, memory falls, and decoding takes longer (docs/guides/video.md)."""
    on_hacking: Literal["warn", "stop", "rollback", "raise_kl"] = "warn"
    """What to do when the gold standard of the probes falls (`core/monitors.AlarmRule` has the limits). `warn`: print
    and log it. `stop`: end the run. `rollback`: go back to the weights of the best probe and halve the learning
    rate. `raise_kl`: continue, and double the weight of the pull to the frozen policy (`kl_weight` of `refl`, `grpo`
    and `ppo`, `frozen_weight` of `nft` and `distill`); further alarms double it again, up to 16 times the weight."""
    max_kl: float = Field(0.0, ge=0)
    """Stop when the running mean of the steps' KL or the KL of a probe is above this; 0 never stops. `nft`, `distill`
    and `dpo` have no KL of steps, so the probes decide."""
    compile: bool = True
    """Compile the layers of judges with more than 100M parameters on a GPU. Costs half a minute at the start."""
    probe_prompts: int = Field(40, ge=1)
    probe_steps: int = Field(0, ge=0)
    """Steps of a rollout in probes, and later in `sample` and `evaluate`; 0 takes as many as training."""
    probe_noises: int = Field(2, ge=2)
    """Pictures of each probe prompt. At least two, because the start's pictures are compared with one another."""
    seed: int = Field(0, ge=0)
    optim: OptimConfig = OptimConfig(lr=5e-4, warmup_steps=10, ema_decay=0.95)
    loop: LoopConfig = LoopConfig(num_steps=200, save_every=100)

    @property
    def has_groups(self) -> bool:
        """Whether the algorithm learns from groups of pictures of one prompt."""
        return self.algorithm not in ("refl", "sft")

    @property
    def num_steps(self) -> int:
        """Steps of a rollout outside training: probes, references, samples, evaluations."""
        return self.probe_steps or (self.rollout.num_steps if self.has_groups else self.refl.num_steps)

    @property
    def measured_guidance(self) -> float:
        """Guidance scale of samples that are measured or shown after training."""
        return self.guidance if self.sample_guidance is None else self.sample_guidance

    @property
    def uses_references(self) -> bool:
        """Whether references are drawn from the current policy."""
        asks = self.algorithm == "refl" or (self.has_groups and self.rollout.score == "references")
        return asks and self.references.kind != "none"

    @property
    def pull(self) -> float:
        """Weight of the pull to the frozen policy; 0 for an algorithm without one."""
        weight = PULLS.get(self.algorithm)
        return 0.0 if weight is None else float(getattr(getattr(self, self.algorithm), weight))

    def with_pull(self, factor: float) -> Self:
        """A copy with `factor` times the weight of the pull; only for the algorithms in `PULLS`."""
        settings = getattr(self, self.algorithm)
        changed = settings.model_copy(update={PULLS[self.algorithm]: factor * self.pull})
        return self.model_copy(update={self.algorithm: changed})

    @model_validator(mode="after")
    def _a_pull_can_be_raised(self) -> Self:
        if self.on_hacking != "raise_kl":
            return self
        if self.algorithm not in PULLS:
            raise ValueError(
                f"on_hacking raise_kl: algorithm {self.algorithm} has no pull to the frozen policy; "
                "use stop or rollback"
            )
        if self.pull == 0:
            name = f"{self.algorithm}.{PULLS[self.algorithm]}"
            raise ValueError(f"on_hacking raise_kl: {name} is 0, so doubling it has no effect; set a positive weight")
        if self.algorithm == "ppo" and self.ppo.kl_target:
            raise ValueError("on_hacking raise_kl: ppo.kl_target already adapts the weight; lower the target")
        return self

    @model_validator(mode="after")
    def _probes_use_the_gold_judge(self) -> Self:
        if self.algorithm == "sft" and self.gold_judge is not None:
            raise ValueError("gold_judge: algorithm sft has no probes; ask a judge after training, with evaluate")
        return self

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> Self:
        if self.has_groups and self.batch_size % self.rollout.group_size:
            raise ValueError(
                f"batch_size {self.batch_size}: not a multiple of rollout.group_size ({self.rollout.group_size})"
            )
        if self.has_groups and (self.batch_size // self.rollout.group_size) % self.rollout.minibatches:
            raise ValueError(
                f"rollout.minibatches {self.rollout.minibatches}: does not divide the "
                f"{self.batch_size // self.rollout.group_size} groups of a step"
            )
        if self.has_groups and self.rollout.score == "references" and self.references.kind == "none":
            raise ValueError("rollout.score references: needs references.kind best_of_n or random")
        return self

    @model_validator(mode="after")
    def _noisy_steps_fit_the_rollout(self) -> Self:
        if self.algorithm not in ("grpo", "ppo"):
            return self
        name, settings = self.algorithm, self.grpo if self.algorithm == "grpo" else self.ppo
        low, high = settings.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name}.window ({low}, {high}): needs 0 <= start <= end <= 1, shares of the rollout")
        steps = self.rollout.num_steps
        room = min(round(high * steps), steps - 1) - round(low * steps)  # the last step of a rollout has no noise
        if settings.noisy_steps > room:
            raise ValueError(
                f"{name}.noisy_steps {settings.noisy_steps}: the window has room for {room} of the {steps} steps"
            )
        return self

    @model_validator(mode="after")
    def _ppo_can_work(self) -> Self:
        if self.algorithm != "ppo":
            return self
        if self.rollout.relative:
            raise ValueError(
                f"rollout.score {self.rollout.score}: compares the pictures of one group, so that ppo's baselines mean "
                "nothing; use pointwise or references"
            )
        if self.ppo.kl_target and (self.ppo.kl_weight == 0 or self.ppo.kl_horizon < self.batch_size):
            raise ValueError("ppo.kl_target: needs kl_weight above 0 and a kl_horizon of batch_size or more")
        return self
