"""The step kernel of rectified flow. Every sampler, replay, loss and search uses this one.

Time runs from t = 1 (noise) to t = 0 (picture): z_t = (1 - t) * x + t * noise, and the velocity that a model predicts
is v = noise - x (Liu et al. 2022; Esser et al. 2024). Half-precision inputs are computed in fp32; fp64 inputs stay
fp64.

Shapes: z, v, mean (B, ...); times are floats or (B,) tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Time = float | Tensor


@dataclass(frozen=True)
class Gaussian:
    """Distribution of the next state: N(mean, std^2 I); a point where std = 0.

    Attributes:
        mean: (B, ...), fp32 or fp64.
        std: (B, 1, ...) or scalar tensor, standard deviation of every dimension.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """`mean + std * noise` for given standard normal noise of the mean's shape."""
        return self.mean + self.std * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of `z`, averaged over dimensions as in Flow-GRPO (arXiv 2505.05470), shape (B,).

        Raises:
            ValueError: the step has no noise, so it has no density.
        """
        if not bool((self.std > 0).all()):
            raise ValueError("log_prob of a deterministic step; sample with noise > 0")
        scaled = (at_least_fp32(z) - self.mean) / self.std
        density = -0.5 * scaled**2 - torch.log(self.std) - 0.5 * math.log(2 * math.pi)
        return density.flatten(1).mean(1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self, other) for equal stds, averaged over dimensions: mean |mu - mu'|^2 / (2 std^2), shape (B,)."""
        return ((self.mean - other.mean) ** 2 / (2 * self.std**2)).flatten(1).mean(1)


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def _broadcast(t: Time, z: Tensor) -> Tensor:
    """Times as a tensor that broadcasts over z (B, ...)."""
    t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    return t.reshape(-1, *([1] * (z.ndim - 1))) if t.ndim else t


def add_noise(x: Tensor, noise: Tensor, t: Time) -> Tensor:
    """z_t on the straight path from `x` to `noise`."""
    x, noise = at_least_fp32(x), at_least_fp32(noise)
    s = _broadcast(t, x)
    return (1 - s) * x + s * noise


def add_more_noise(z: Tensor, noise: Tensor, t_now: Time, t_up: Time) -> Tensor:
    """A state at time `t_up` >= t_now with the marginals of the flow, from a state at `t_now` and fresh noise.

    The picture's share must fall from 1 - t_now to 1 - t_up: z is scaled by a = (1 - t_up) / (1 - t_now), which leaves
    noise of variance (a t_now)^2, and t_up^2 - (a t_now)^2 is added. From t_now = 0 it is `add_noise`.
    """
    z, noise = at_least_fp32(z), at_least_fp32(noise)
    now, up = _broadcast(t_now, z), _broadcast(t_up, z)
    share = (1 - up) / (1 - now)
    return share * z + torch.sqrt(up**2 - (share * now) ** 2) * noise


def clean(z: Tensor, v: Tensor, t: Time) -> Tensor:
    """The clean latent that a velocity points to: x0 = z - t v."""
    z, v = at_least_fp32(z), at_least_fp32(v)
    return z - _broadcast(t, z) * v


def noise_scale(t_now: Time, t_next: Time, z: Tensor, noise: float) -> Tensor:
    """sigma_t = noise * sqrt(t / (1 - t)) (Flow-GRPO). At the pole t = 1 the denominator is 1 minus the next time.

    A smaller denominator there would move the first of few steps far off the marginals of the flow.
    """
    s = _broadcast(t_now, z)
    return noise * torch.sqrt(s / (1 - torch.where(s < 1, s, _broadcast(t_next, z))))


def step(z: Tensor, v: Tensor, t_now: Time, t_next: Time, noise: float = 0.0) -> Gaussian:
    """One step from `t_now` down to `t_next`.

    With `noise` = 0 it is Euler's step of the flow, z + v dt. With `noise` = a > 0 it is the Euler-Maruyama step of
    the SDE with the same marginals (Flow-GRPO, equation 9), with dt = t_next - t_now < 0:

        mean = z (1 + sigma^2 dt / (2 t)) + v (1 + sigma^2 (1 - t) / (2 t)) dt
        std  = sigma sqrt(-dt)
    """
    z, v = at_least_fp32(z), at_least_fp32(v)
    now, dt = _broadcast(t_now, z), _broadcast(t_next, z) - _broadcast(t_now, z)
    if noise == 0.0:
        return Gaussian(z + v * dt, torch.zeros((), device=z.device))
    sigma = noise_scale(t_now, t_next, z, noise)
    half = sigma**2 / (2 * now)
    mean = z * (1 + half * dt) + v * (1 + half * (1 - now)) * dt
    return Gaussian(mean, sigma * torch.sqrt(-dt))


def times(num_steps: int, shift: float = 1.0) -> Tensor:
    """The (num_steps + 1) times from 1 to 0, (num_steps + 1,) fp32.

    Args:
        shift: t' = shift t / (1 + (shift - 1) t), as SD3 does for larger pictures; 1 spaces evenly.
    """
    t = torch.linspace(1, 0, num_steps + 1)
    return shift * t / (1 + (shift - 1) * t)
