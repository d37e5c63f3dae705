"""Configuration of the algorithms that learn from groups of finished pictures. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config


class RolloutConfig(Config):
    """How the pictures of a step are drawn and scored."""

    num_steps: int = Field(10, ge=1)
    group_size: int = Field(8, ge=2)
    """Pictures of each prompt. A step has `batch_size / group_size` prompts."""
    score: Literal["round_robin", "win_rate", "pointwise", "references"] = "round_robin"
    """`round_robin`: mean margin against the other pictures of the group. `win_rate`: the same with P(yes) in place of
    the margin. `pointwise`: the judge's margin of the picture alone. `references`: margin against the prompt's
    reference (`references` of the alignment)."""
    updates: int = Field(1, ge=1)
    """How often a step goes through its pictures."""
    minibatches: int = Field(1, ge=1)
    """The pictures of a step are split into so many parts of whole groups. Each part gets an optimizer update."""
    spread: float = Field(1e-3, ge=0)
    """A group whose scores have a smaller standard deviation teaches nothing: it is dropped from the loss, its KL
    included, and counted (`zero_variance`). `ppo` compares scores with running baselines and drops only groups without
    any score."""
    clip_advantage: float = Field(5.0, gt=0)
    """Advantages are clipped to plus and minus this."""
    times: tuple[float, float] = (0.02, 0.98)
    """`nft`, `distill` and `dpo` noise their pictures to times in this range; 1 is pure noise. The content of a picture
    is decided at times near 1. A gradient from these times alone can have much less variance (docs/log.md)."""

    @property
    def relative(self) -> bool:
        """Whether scores compare the pictures of one group, so that their mean says nothing."""
        return self.score in ("round_robin", "win_rate")

    @model_validator(mode="after")
    def _times_are_a_range(self) -> Self:
        low, high = self.times
        if not 0 < low < high < 1:
            raise ValueError(f"times ({low}, {high}): needs 0 < low < high < 1; there is nothing to predict at 0 and 1")
        return self


class NftConfig(Config):
    """DiffusionNFT (arXiv 2509.16117)."""

    beta: float = Field(1.0, gt=0)
    """How far the implicit positive and negative policies lie from the old one."""
    clamp: float = Field(2.0, gt=0)
    """Advantages are clipped to plus and minus this and mapped to [0, 1]. A clamp that is much wider than the
    advantages makes all of them look alike."""
    frozen_weight: float = Field(1e-4, ge=0)
    """Weight of |v - v_frozen|^2, the pull to the frozen policy."""
    draws: int = Field(2, ge=1)
    """Noised copies of every picture in an update. Two copies share a time and have opposite noises."""
    extremes: int = Field(0, ge=0)
    """Train only on this many of the best pictures of a group and as many of the worst (as in DanceGRPO, arXiv
    2505.07818). Advantages still compare all pictures of the group. A winner and a loser share noise and time. 0
    trains on every picture."""
    old_rate: float = Field(0.001, ge=0)
    old_most: float = Field(0.5, ge=0, lt=1)
    """The old policy, which draws the pictures, keeps min(old_rate * step, old_most) of itself at every step."""


class PolicyGradientConfig(Config):
    """The settings that GRPO and PPO share: an SDE rollout and a clipped ratio."""

    noise: float = Field(0.7, gt=0)
    """Level of the SDE (Flow-GRPO's a)."""
    window: tuple[float, float] = (0.0, 0.5)
    """Where steps with noise may lie, as shares of the rollout."""
    noisy_steps: int = Field(2, ge=1)
    """Steps with noise, one after the other from a random place in the window; the others follow the ODE
    (Flow-GRPO-Fast, MixGRPO)."""
    shared_start: bool = False
    """The pictures of a group share their noise and the steps before the first noisy one, which are computed once."""
    clip: float = Field(1e-4, gt=0)
    """Clip of the ratio to 1 +- clip. Log-probabilities are means over dimensions, so ratios are near 1."""
    guard: bool = False
    """GRPO-Guard's ratio (arXiv 2510.22319), which has the same scale at every step; use a `clip` near 2e-6."""
    kl_weight: float = Field(0.01, ge=0)
    """Weight of KL(policy, frozen policy) of the noisy steps, in nats a dimension (`refl.kl_weight` has the unit)."""


class PpoConfig(PolicyGradientConfig):
    """PPO (arXiv 1707.06347) with per-prompt baselines and a KL target. Needs scores that mean the same in every step:
    `rollout.score` pointwise or references."""

    noisy_steps: int = Field(4, ge=1)
    kl_target: float = Field(0.0, ge=0)
    """Target of the KL. Above 0 the weight of the KL is adapted until the KL is near this value (Ziegler et al.,
    2019)."""
    kl_horizon: int = Field(1000, ge=1)
    """Pictures over which the weight adapts."""
    baseline_decay: float = Field(0.8, ge=0, lt=1)
    """Decay of the running mean of every prompt's scores at each visit."""


class DistillConfig(Config):
    """Best-of-N distillation: flow matching on the best picture of every group."""

    draws: int = Field(4, ge=1)
    """Noised copies of each group's best picture in an update. Two copies share a time and have opposite noises."""
    frozen_weight: float = Field(1.0, ge=0)
    """Weight of |v - v_frozen|^2 on the same noised pictures; the velocity's form of a KL to the frozen policy."""


class DpoConfig(Config):
    """Diffusion-DPO (arXiv 2311.12908) on the best and the worst picture of every group."""

    beta: float = Field(100.0, gt=0)
    """Strength of the pull to the frozen policy; errors are means over dimensions."""
    draws: int = Field(4, ge=1)
    """Noised copies of every pair in an update; both pictures of a pair share noise and time."""


class Rolling(Config):
    """The settings of all algorithms that learn from groups."""

    rollout: RolloutConfig = RolloutConfig()
    nft: NftConfig = NftConfig()
    grpo: PolicyGradientConfig = PolicyGradientConfig()
    ppo: PpoConfig = PpoConfig()
    distill: DistillConfig = DistillConfig()
    dpo: DpoConfig = DpoConfig()
