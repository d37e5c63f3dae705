"""Settings of the searches. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from rewarddance.core.config import Config
from rewarddance.core.errors import ConfigError

Ask = Literal["auto", "pointwise", "round_robin", "anchor"]


class BestOfNConfig(Config):
    """Draw as many samples as the budget allows and keep the best."""

    kind: Literal["best_of_n"] = "best_of_n"


class PathsConfig(Config):
    """Search over paths (Ma et al., arXiv 2501.09732). Times are on the flow's scale: 1 is noise, 0 a picture."""

    kind: Literal["paths"] = "paths"
    keep: int = Field(2, ge=1)
    """N: paths that are kept after every round."""
    branches: int | None = Field(None, ge=2)
    """M: fresh noises for every kept path in a round. None takes as many as the budget allows."""
    start: float = Field(0.11, gt=0, lt=1)
    """Noise level sigma down to which the first N noises are denoised."""
    up: float = Field(0.78, gt=0, lt=1)
    """df: how far a kept path is noised again."""
    down: float = Field(0.81, gt=0, le=1)
    """db: how far it is denoised then. A round lowers sigma by `down - up`, but not below 0."""

    @model_validator(mode="after")
    def _rounds_end(self) -> Self:
        if self.down <= self.up:
            raise ValueError(f"down {self.down:g}: must be above up ({self.up:g}), or sigma never reaches 0")
        if self.start + self.up > 1:
            raise ValueError(f"start + up is {self.start + self.up:g}: needs 1 or less, the time of pure noise")
        return self

    def rounds(self) -> list[tuple[float, float, float]]:
        """(sigma before, time after noising, sigma after) of every round; the last one ends at 0."""
        listed, sigma = [], self.start
        while sigma > 0:
            top = sigma + self.up
            after = top - self.down if top - self.down > 1e-6 else 0.0
            listed.append((sigma, top, after))
            sigma = after
        return listed


class ZeroOrderConfig(Config):
    """Search around a pivot noise; a neighbour that is better becomes the pivot."""

    kind: Literal["zero_order"] = "zero_order"
    neighbours: int = Field(4, ge=1)
    """Samples of a round."""
    cosine: float = Field(0.95, gt=0, lt=1)
    """Cosine of the angle between the pivot and each of its neighbours."""


class FkConfig(Config):
    """Feynman-Kac steering (Singhal et al., arXiv 2501.06848): particles of an SDE sampler, resampled by rewards."""

    kind: Literal["fk"] = "fk"
    potential: Literal["difference", "max", "sum"] = "difference"
    """exp(lambda x): x is the change of the reward, its maximum so far, or its sum so far."""
    scale: float = Field(10.0, ge=0)
    """lambda."""
    noise: float = Field(0.7, gt=0)
    """Level of the SDE's noise (Flow-GRPO's a). Without noise, copies of a particle would stay equal."""
    every: int = Field(2, ge=1)
    """Steps from one judgement of the predicted pictures to the next."""
    window: tuple[float, float] = (0.2, 0.8)
    """Where predicted pictures are judged, as shares of the rollout. The finished pictures are always judged."""
    least_ess: float = Field(0.5, ge=0, le=1)
    """Resample when the effective sample size is under this share of the particles."""
    pick: Literal["best", "sample"] = "best"
    """Which of the finished particles is the result: the verifier's best, or one drawn by the final weights."""

    @model_validator(mode="after")
    def _window_lies_in_the_rollout(self) -> Self:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window ({low:g}, {high:g}): needs 0 <= start <= end <= 1, shares of the rollout")
        return self

    def judged_steps(self, num_steps: int) -> set[int]:
        """Indices of the steps whose predicted pictures are judged; never the last step."""
        low, high = (round(share * num_steps) for share in self.window)
        return {i for i in range(low, min(high + 1, num_steps - 1)) if (i - low) % self.every == 0}


class EvolutionConfig(Config):
    """Cross-entropy search over the low frequencies of the noise: each population is drawn around the last elites."""

    kind: Literal["evolution"] = "evolution"
    population: int = Field(10, ge=2)
    elites: int = Field(5, ge=2)
    frequencies: int = Field(4, ge=1)
    """Side of the block of lowest frequencies that is searched, of every channel; the rest stays white noise."""

    @model_validator(mode="after")
    def _elites_are_a_choice(self) -> Self:
        if self.elites >= self.population:
            raise ValueError(f"elites {self.elites}: must be fewer than the population ({self.population})")
        return self


SearchConfig = Annotated[
    BestOfNConfig | PathsConfig | ZeroOrderConfig | FkConfig | EvolutionConfig, Field(discriminator="kind")
]


class VerifierConfig(Config):
    """How a judge gives scores to the candidates of a prompt."""

    ask: Ask = "auto"
    """`pointwise`: it is asked about every picture alone. `anchor`: it compares with fixed pictures of the same prompt,
    which are drawn first and count as NFE. `round_robin`: it compares every two candidates of a group; the number of
    comparisons grows with the square of the group. `auto`: `pointwise` if the judge answers that question, otherwise
    `anchor`."""
    num_anchors: int = Field(1, ge=1)


def parse_search(values: Any, source: str = "search") -> SearchConfig:
    """Validate settings; `kind` chooses the search.

    Raises:
        ConfigError: one line that names the key and the problem.
    """
    try:
        return TypeAdapter(SearchConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:])
        why = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise ConfigError(f"{source}: {key + ': ' if key else ''}{why}") from None
