"""A generator whose flow is known in closed form, and judges that read its latents off its pictures."""

from contextlib import nullcontext

import torch

from rewarddance.core.media import Media
from rewarddance.core.types import Verdict
from rewarddance.generator import flow

SHAPE = (3, 4, 4)


class Toy:
    """The flow of pictures x ~ N(mu, I), with mu = 0.01 times the length of the prompt; `decode` is the sigmoid.

    With r = z - (1 - t) mu and d = (1 - t)^2 + t^2: E[noise | z] = t r / d, E[x | z] = mu + (1 - t) r / d.
    """

    device, precision = torch.device("cpu"), "fp32"

    def __init__(self, guidance=1.0):
        self.guidance, self.rows = guidance, []

    @property
    def passes(self):
        return 1 if self.guidance == 1 else 2

    def condition(self, prompts):
        return torch.tensor([0.01 * len(p) for p in prompts]).view(-1, 1, 1, 1)

    def noise(self, n, rng):
        return torch.randn(n, *SHAPE, generator=rng)

    def times(self, num_steps):
        return flow.times(num_steps)

    def velocity(self, z, t, mu):
        self.rows.append(len(z))
        r, d = z - (1 - t) * mu, (1 - t) ** 2 + t**2
        return (2 * t - 1) * r / d - mu

    def decode(self, z):
        return [Media(x[None]) for x in z.sigmoid()]

    def trainable(self):
        return {}

    def reference(self):
        return nullcontext()


def levels(frames):
    """Mean of the latents that pictures (N, 3, H, W) were decoded from, (N,)."""
    return frames.logit().mean((1, 2, 3))


def level(media):
    return levels(media.frames)[0]


class Levels:
    """Scores by a function of pictures (N, 3, H, W); refuses pictures above a level. Answers alone and in pairs."""

    def __init__(self, value=levels, most=float("inf")):
        self.value, self.most, self.calls = value, most, []

    def judge(self, comparisons):
        self.calls.append(len(comparisons))
        sides = [[c.candidate for c in comparisons], [c.reference for c in comparisons if c.reference is not None]]
        values = [self.value(torch.cat([m.frames for m in side])) if side else 0 for side in sides]
        above = [levels(torch.cat([m.frames for m in side])) > self.most for side in sides if side]
        refused = torch.stack(above).any(0).nonzero().flatten().tolist()
        return Verdict.from_margin(values[0] - values[1]).refuse(dict.fromkeys(refused, "refused"))
