"""The algorithms that learn from rollouts. Each draws pictures, turns scores into advantages, and has a loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rewarddance.align import distill, dpo, nft, policy_gradient
from rewarddance.align.baselines import Baselines, adapted_weight
from rewarddance.align.config import AlignConfig
from rewarddance.align.forward import Noised, noised, stratified_times
from rewarddance.align.guidance import without_guidance
from rewarddance.align.rollout_config import PolicyGradientConfig, PpoConfig
from rewarddance.align.rollouts import Rollouts, noise_of, roll_out, streams_of
from rewarddance.align.scoring import group_advantages
from rewarddance.core.loop import Metrics
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Request


@dataclass
class Algorithm(ABC):
    """One algorithm of an alignment run. All randomness of a step comes from the seed, the step and a group's place.

    Attributes:
        metrics: names that `loss` returns, means over groups.
        pull_factor: the weight of the pull to the frozen policy is multiplied by this (`on_hacking: raise_kl`).
    """

    config: AlignConfig
    generator: Tunable
    num_prompts: int
    metrics: ClassVar[tuple[str, ...]]
    pull_factor: float = field(init=False, default=1.0)

    def draw(self, prompts: Sequence[Request], places: Sequence[int], index: int) -> Rollouts:
        """Rollouts of one pass of step `index`: without noise, by the trained policy."""
        config = self.config.rollout
        rngs = streams_of(self.config.seed, "rollout", index, places)
        return roll_out(self.generator, prompts, places, config.group_size, config.num_steps, rngs)

    def advantages(self, rows: Sequence[int], scores: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages (P, K) and which groups count (P,).

        Args:
            rows: which of the training prompts the groups belong to; scores: (P, K), NaN where refused.
        """
        return group_advantages(scores, self.config.rollout.spread, self.config.rollout.clip_advantage)

    @abstractmethod
    def loss(
        self, rollouts: Rollouts, advantages: Tensor, index: int, update: int, counts: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss and metrics of one pass of P' groups, means over those that count; advantages are (P', K).

        Args:
            counts: which groups count, (P',), at least one; all when None.
        """

    def end_step(self, index: int, rows: Sequence[int], scores: Tensor, metrics: Metrics) -> Metrics:
        """Called after the updates of a step with the prompts and scores of all processes; returns further metrics."""
        return {}

    def went_back(self) -> None:  # noqa: B027
        """Called after the trained weights went back to an earlier state."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state for a checkpoint, besides the trained weights: JSON-ready values, and tensors."""
        return {}, {}

    def load_state(self, extra: dict[str, Any], tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore what `state` returned."""


class ForwardProcess(Algorithm):
    """An algorithm that noises finished pictures again and regresses on velocities, always without guidance.

    Groups that do not count are left out of a pass.
    """

    def loss(
        self, rollouts: Rollouts, advantages: Tensor, index: int, update: int, counts: Tensor | None = None
    ) -> dict[str, Tensor]:
        if counts is not None:
            rollouts, advantages = rollouts.take(counts.nonzero().flatten().tolist()), advantages[counts]
        with without_guidance(self.generator):
            return self.regress(rollouts, advantages, index, update)

    @abstractmethod
    def regress(self, rollouts: Rollouts, advantages: Tensor, index: int, update: int) -> dict[str, Tensor]:
        """`loss`, with a guidance scale of 1."""

    def noised(self, rollouts: Rollouts, chosen: Tensor, draws: int, index: int, update: int, tied: int = 1) -> Noised:
        """`draws` noised copies of the chosen pictures of every group: all first copies, then all second copies.

        Two copies of a picture have the same time and opposite noises. The gradient from such a pair has much less
        variance than from two independent noises (docs/log.md).

        Args:
            chosen: (P', C) indices of the pictures to noise within their group.
            tied: number of successive pictures of `chosen` that share noise and time.
        """
        groups, num = chosen.shape
        rngs = streams_of(self.config.seed, f"noised-{update}", index, rollouts.places)
        size = len(rollouts.latents) // groups
        x0 = rollouts.latents[(torch.arange(groups)[:, None] * size + chosen).flatten()]
        pairs = (draws + 1) // 2
        t = torch.stack([stratified_times(pairs * num // tied, self.config.rollout.times, rng) for rng in rngs])
        t = t.view(groups, pairs, -1).transpose(0, 1).repeat_interleave(tied, 2).flatten(1)
        noise = [noise_of(self.generator, num // tied, rngs).repeat_interleave(tied, 0) for _ in range(pairs)]
        noise = [sign * n for n in noise for sign in (1, -1)][:draws]
        prompts = [p for p in rollouts.prompts for _ in range(num)] * draws
        condition = self.generator.condition(prompts)
        x0 = x0.repeat(draws, *([1] * (x0.ndim - 1)))
        t = t.repeat_interleave(2, 0)[:draws].flatten()
        return noised(x0, torch.cat(noise), t.to(x0.device), condition)


@dataclass
class Nft(ForwardProcess):
    """DiffusionNFT. The old policy draws."""

    metrics = nft.METRICS

    def __post_init__(self) -> None:
        self.generator.add_old()

    def draw(self, prompts: Sequence[Request], places: Sequence[int], index: int) -> Rollouts:
        with torch.no_grad(), self.generator.policy("old"):
            return super().draw(prompts, places, index)

    def regress(self, rollouts: Rollouts, advantages: Tensor, index: int, update: int) -> dict[str, Tensor]:
        config = self.config.with_pull(self.pull_factor).nft
        chosen = nft.chosen(advantages, config.extremes)
        tied = 2 if chosen.shape[1] < advantages.shape[1] else 1  # a winner and a loser share noise and time
        batch = self.noised(rollouts, chosen, config.draws, index, update, tied)
        chosen_advantages = advantages.gather(1, chosen).flatten().repeat(config.draws).to(batch.z)
        return nft.nft_step(self.generator, batch, chosen_advantages, config)

    def end_step(self, index: int, rows: Sequence[int], scores: Tensor, metrics: Metrics) -> Metrics:
        decay = min(self.config.nft.old_rate * (index + 1), self.config.nft.old_most)
        self.generator.update_old(decay)
        return {}

    def went_back(self) -> None:
        self.generator.update_old(0.0)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {}, {f"old/{name}": value for name, value in self.generator.old_state().items()}

    def load_state(self, extra: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        old = {k.removeprefix("old/"): v for k, v in tensors.items() if k.startswith("old/")}
        self.generator.load_old_state(old)


class BestOfGroup(ForwardProcess):
    """An algorithm that trains only on the best picture of a group, or on the best and the worst."""

    def advantages(self, rows: Sequence[int], scores: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages are not clipped. With clipping, the best and the second-best picture could be equal."""
        return group_advantages(scores, self.config.rollout.spread, math.inf)


class Distill(BestOfGroup):
    """Best-of-N distillation."""

    metrics = distill.METRICS

    def regress(self, rollouts: Rollouts, advantages: Tensor, index: int, update: int) -> dict[str, Tensor]:
        best = advantages.argmax(1, keepdim=True)
        batch = self.noised(rollouts, best, self.config.distill.draws, index, update)
        return distill.distill_step(self.generator, batch, self.config.with_pull(self.pull_factor).distill)


class Dpo(BestOfGroup):
    """Diffusion-DPO on the best and the worst picture of every group."""

    metrics = dpo.METRICS

    def regress(self, rollouts: Rollouts, advantages: Tensor, index: int, update: int) -> dict[str, Tensor]:
        pairs = torch.stack([advantages.argmax(1), advantages.argmin(1)], 1)
        batch = self.noised(rollouts, pairs, self.config.dpo.draws, index, update, tied=2)
        return dpo.dpo_step(self.generator, batch, self.config.dpo)


@dataclass
class Grpo(Algorithm):
    """Policy gradient with group-relative advantages on a window of SDE steps (Flow-GRPO, arXiv 2505.05470).

    Groups that do not count have no weight in the loss and the metrics. They stay in the batch of a pass, so that the
    first ratios are exactly 1.
    """

    metrics = policy_gradient.METRICS
    kl_weight: float = field(init=False)

    def __post_init__(self) -> None:
        self.kl_weight = self.settings.kl_weight

    @property
    def settings(self) -> PolicyGradientConfig:
        return self.config.grpo

    def draw(self, prompts: Sequence[Request], places: Sequence[int], index: int) -> Rollouts:
        rollout, config, seed = self.config.rollout, self.settings, self.config.seed
        window_rng = torch.Generator().manual_seed(seed_of(seed, "window", index))  # the same window in every process
        start = policy_gradient.window_start(rollout.num_steps, config, window_rng)
        levels = policy_gradient.noise_levels(rollout.num_steps, start, config)
        rngs = streams_of(seed, "rollout", index, places)
        return roll_out(
            self.generator, prompts, places, rollout.group_size, rollout.num_steps, rngs, levels, config.shared_start
        )

    def loss(
        self, rollouts: Rollouts, advantages: Tensor, index: int, update: int, counts: Tensor | None = None
    ) -> dict[str, Tensor]:
        return policy_gradient.policy_step(
            self.generator,
            rollouts.condition,
            rollouts.decisions,
            advantages.flatten().to(rollouts.latents),
            self.settings,
            self.kl_weight * self.pull_factor,
            None if counts is None else counts.repeat_interleave(advantages.shape[1]),
        )


@dataclass
class Ppo(Grpo):
    """The same policy gradient with running baselines of every prompt and an adaptive weight of the KL."""

    baselines: Baselines = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.baselines = Baselines.new(self.num_prompts, self.settings.baseline_decay)

    @property
    def settings(self) -> PpoConfig:
        return self.config.ppo

    def advantages(self, rows: Sequence[int], scores: Tensor) -> tuple[Tensor, Tensor]:
        advantages = self.baselines.advantages(rows, scores, self.config.rollout.clip_advantage)
        return advantages, ~scores.isnan().all(1)

    def end_step(self, index: int, rows: Sequence[int], scores: Tensor, metrics: Metrics) -> Metrics:
        self.baselines.note(rows, scores)
        used = {"kl_weight": self.kl_weight * self.pull_factor}
        if self.settings.kl_target and metrics["kl"] is not None:
            self.kl_weight = adapted_weight(
                self.kl_weight, metrics["kl"], self.settings.kl_target, scores.numel(), self.settings.kl_horizon
            )
        return used

    def went_back(self) -> None:
        self.kl_weight = self.settings.kl_weight

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"ppo_kl_weight": self.kl_weight}, {"baselines": self.baselines.table}

    def load_state(self, extra: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.kl_weight, self.baselines.table = extra["ppo_kl_weight"], tensors["baselines"]


ALGORITHMS: dict[str, type[Algorithm]] = {"nft": Nft, "grpo": Grpo, "ppo": Ppo, "distill": Distill, "dpo": Dpo}
"""The algorithms by their name in the configuration (`algorithm`)."""
