"""The base of every search: P prompts with K candidates each, in one batch, and the count of the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Request, text_of, texts_of
from rewarddance.generator.trace import Step, trace
from rewarddance.search.counted import Counted
from rewarddance.search.verifier import Verifier


class BudgetError(ConfigError):
    """The budget is too small for the settings."""


@dataclass(frozen=True)
class Result:
    """The result of a search for one prompt.

    Attributes:
        picture: the picture that the search keeps, and its clean latent (...).
        score: the verifier's score of the picture, higher is better. NaN if the verifier refused every candidate; the
            picture is then the first candidate.
        nfe: forward passes of the generator for this prompt, the verifier's references included.
        decodes: latents decoded for this prompt; judge_calls: comparisons asked about it.
        refused: judgements of this prompt's pictures that gave no score.
    """

    prompt: str
    picture: Media
    latent: Tensor
    score: float
    nfe: int
    decodes: int
    judge_calls: int
    refused: int


@dataclass(frozen=True)
class Candidates:
    """K candidates of each of P prompts.

    Attributes:
        states: (P, K, ...) the states from which the search continues: start noises, or states at a noise level.
        latents: (P, K, ...) the clean latents that were judged; pictures: those latents decoded, P rows of K.
        scores: (P, K) fp32 on the CPU, NaN where the verifier refused.
    """

    states: Tensor
    latents: Tensor
    pictures: list[list[Media]]
    scores: Tensor

    def take(self, index: Tensor) -> Candidates:
        """The candidates at `index` (P, k) of every prompt."""
        pictures = [[row[i] for i in chosen] for row, chosen in zip(self.pictures, index.tolist(), strict=True)]
        return Candidates(pick(self.states, index), pick(self.latents, index), pictures, self.scores.gather(1, index))

    def best(self, num: int = 1) -> Candidates:
        """The `num` candidates with the highest scores, best first. Refused ones come last."""
        order = self.scores.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)
        return self.take(order[:, :num])

    def last(self, num: int) -> Candidates:
        """The last `num` candidates of every prompt."""
        size = self.scores.shape[1]
        return self.take(torch.arange(size - num, size).expand(len(self.scores), -1))

    def join(self, other: Candidates) -> Candidates:
        """The candidates of both, these first."""
        return Candidates(
            torch.cat([self.states, other.states], 1),
            torch.cat([self.latents, other.latents], 1),
            [a + b for a, b in zip(self.pictures, other.pictures, strict=True)],
            torch.cat([self.scores, other.scores], 1),
        )


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Entries `index` (P, k) of each row of `values` (P, K, ...): (P, k, ...)."""
    index = index.to(values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def rngs_of(seed: int, name: str, prompts: Sequence[Request]) -> list[torch.Generator]:
    """One random stream a prompt. It depends on seed, name, text and on how often the text was listed before."""
    before: Counter[str] = Counter()
    rngs = []
    for prompt in texts_of(prompts):
        rngs.append(torch.Generator().manual_seed(seed_of(seed, name, prompt, before[prompt])))
        before[prompt] += 1
    return rngs


class SearchRun:
    """One search in progress. All its passes are counted.

    Args:
        nfe: forward passes for each prompt, with those of the verifier's references.
        num_steps: steps of a whole sample.
        batch: rows that the generator computes at once; the result does not depend on it.

    Attributes:
        times: (num_steps + 1,) the generator's times.
        budget: what is left of `nfe` after the verifier's references, in velocities (two passes each with guidance).
        num_samples: whole samples that the budget allows for each prompt.
    """

    def __init__(
        self,
        generator: Generator,
        verifier: Verifier,
        prompts: Sequence[Request],
        nfe: int,
        num_steps: int,
        seed: int,
        batch: int,
    ) -> None:
        if not prompts:
            raise ConfigError("search: no prompts")
        self.generator, self.verifier, self.prompts = Counted(generator, batch), verifier, list(prompts)
        self.rngs, self.nfe = rngs_of(seed, "search", prompts), nfe
        self.times = generator.times(num_steps)
        self.budget = (nfe - verifier.nfe) // generator.passes
        self.num_samples = self.budget // num_steps
        self._asked, self._refused = verifier.num_asked, torch.zeros(len(prompts), dtype=torch.long)
        self._conditions: dict[int, list[object]] = {}
        self.need(num_steps)

    def need(self, velocities: int) -> None:
        """Check that the budget allows so many velocities.

        Raises:
            BudgetError: names the smallest budget that does.
        """
        if self.budget < velocities:
            least = velocities * self.generator.passes + self.verifier.nfe
            raise BudgetError(f"search: {self.nfe} NFE are too few; these settings need {least} for each prompt")

    def noise(self, num: int) -> Tensor:
        """Standard normal latents (P, num, ...), each prompt's from its own stream."""
        return torch.stack([self.generator.noise(num, rng) for rng in self.rngs])

    def uniform(self) -> Tensor:
        """One number in [0, 1) a prompt, (P,) fp32."""
        return torch.stack([torch.rand((), generator=rng) for rng in self.rngs])

    def trace(self, z: Tensor, times: Tensor, noise: float = 0.0) -> Iterator[Step]:
        """The steps of z (P, K, ...) along `times`, on all P K rows at once (`generator.trace`).

        With `noise` the consumer replaces `step.next` by a state with noise of each prompt's own stream.
        """
        num = z.shape[1]
        if num not in self._conditions:
            flat = [p for p in self.prompts for _ in range(num)]
            self._conditions = {num: list(self.generator.condition(flat))}
        return trace(self.generator, self._conditions[num], z.flatten(0, 1), times, noise=noise, rng=torch.Generator())

    def denoise(self, z: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Step z (P, K, ...) along `times` without noise.

        Returns:
            The state at the last time and the clean latent that the last step predicts, (P, K, ...) each. They are the
            same if the last time is 0.
        """
        state = clean = z.flatten(0, 1)
        for step in self.trace(z, times):
            state, clean = step.next, step.clean
        return state.view_as(z), clean.view_as(z)

    def sample(self, noise: Tensor) -> Tensor:
        """Clean latents of start noises (P, K, ...)."""
        return self.denoise(noise, self.times)[0]

    def judged(self, states: Tensor, latents: Tensor, carried: Candidates | None = None) -> Candidates:
        """Decode and score new candidates (P, K, ...). `carried` ones come before them in the result.

        A verifier whose scores hold for one group only scores the carried ones again.
        """
        rows, num = len(self.prompts), latents.shape[1]
        decoded = self.generator.decode(latents.flatten(0, 1))
        pictures = [decoded[i * num : (i + 1) * num] for i in range(rows)]
        new = Candidates(states, latents, pictures, torch.full((rows, num), torch.nan))
        group = new if carried is None or self.verifier.absolute else carried.join(new)
        scores = self.verifier.scores(self.prompts, group.pictures).float().cpu()
        self._refused += scores.isnan().sum(1)
        if carried is None or not self.verifier.absolute:
            return Candidates(group.states, group.latents, group.pictures, scores)
        return carried.join(Candidates(states, latents, pictures, scores))

    def results(self, winners: Candidates) -> list[Result]:
        """The first candidate of every prompt, with what the search has cost. All prompts cost the same."""
        rows = len(self.prompts)
        nfe = self.generator.nfe // rows + self.verifier.nfe
        decodes = self.generator.decodes // rows + self.verifier.decodes
        calls = (self.verifier.num_asked - self._asked) // rows
        return [
            Result(
                text_of(prompt),
                winners.pictures[i][0],
                winners.latents[i, 0],
                float(winners.scores[i, 0]),
                nfe,
                decodes,
                calls,
                int(self._refused[i]),
            )
            for i, prompt in enumerate(self.prompts)
        ]


def portions(total: int, size: int) -> list[int]:
    """`total` in parts of `size`, the last one smaller.

    >>> portions(9, 4)
    [4, 4, 1]
    """
    return [min(size, total - done) for done in range(0, total, size)]
