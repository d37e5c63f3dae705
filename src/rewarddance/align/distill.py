"""Best-of-N distillation: flow matching on the judge's best pictures, with a pull to the frozen policy."""

from __future__ import annotations

from torch import Tensor

from rewarddance.align.forward import Noised, frozen_velocity, mean_square
from rewarddance.align.rollout_config import DistillConfig
from rewarddance.core.protocols import Tunable

METRICS = ("loss", "frozen_distance")


def distill_step(generator: Tunable, batch: Noised, config: DistillConfig) -> dict[str, Tensor]:
    """Loss and metrics of N noised best pictures.

    Returns:
        loss: mean |v - (noise - x0)|^2 + frozen_weight |v - v_frozen|^2; frozen_distance: the latter, unweighted.
    """
    v = generator.velocity(batch.z, batch.t, batch.condition)
    distance = mean_square(v - frozen_velocity(generator, batch)).mean()
    loss = mean_square(v - batch.target).mean() + config.frozen_weight * distance
    return {"loss": loss, "frozen_distance": distance.detach()}
