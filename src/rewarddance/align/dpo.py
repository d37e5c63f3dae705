"""Diffusion-DPO on pairs that the judge made (Wallace et al., arXiv 2311.12908), for rectified flow."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rewarddance.align.forward import Noised, frozen_velocity, mean_square
from rewarddance.align.rollout_config import DpoConfig
from rewarddance.core.protocols import Tunable

METRICS = ("loss", "implicit_accuracy")


def dpo_loss(v: Tensor, v_frozen: Tensor, target: Tensor, beta: float) -> Tensor:
    """Loss of N pairs, (N,): -log sigmoid(-beta / 2 ((e_w - e_w_frozen) - (e_l - e_l_frozen))).

    e is the mean squared error of a velocity against noise - x0.

    Args:
        v, v_frozen, target: (2N, ...), every winner followed by its loser.
    """
    excess = mean_square(v - target) - mean_square(v_frozen - target)
    return -F.logsigmoid(-0.5 * beta * (excess[0::2] - excess[1::2]))


def dpo_step(generator: Tunable, batch: Noised, config: DpoConfig) -> dict[str, Tensor]:
    """Loss and metrics of 2N noised pictures: every winner is followed by its loser, with the same noise and time.

    Returns:
        loss: mean of `dpo_loss`; implicit_accuracy: share of pairs in which the trained policy, compared with the
        frozen one, fits the winner better than the loser.
    """
    v = generator.velocity(batch.z, batch.t, batch.condition)
    losses = dpo_loss(v, frozen_velocity(generator, batch), batch.target, config.beta)
    half = -F.logsigmoid(losses.new_zeros(()))
    return {"loss": losses.mean(), "implicit_accuracy": (losses.detach() < half).float().mean()}
