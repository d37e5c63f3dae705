"""A user's file of prompts as a task. Its gold standard is a second judge, if the user names one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.task import Drawn, Gold, Prompt, Request


@dataclass(frozen=True)
class PromptTask:
    """Implements `core.task.Task`.

    Attributes:
        training: prompts to train on.
        probing: prompts for probes; if empty, probes use the first of `training`.
        gold: a second judge's measure (`align.probes.judge_gold`); None without a second judge.
    """

    training: Sequence[Prompt]
    probing: Sequence[Prompt] = ()
    gold: Gold | None = None
    name: str = "prompts"
    gold_name: str = "second judge's P(better than the start)"
    features: str | None = None
    criteria: None = None
    rate: None = None

    def prompts(self, num_train: int, num_probe: int, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        return tuple(self.training[:num_train]), tuple((self.probing or self.training)[:num_probe])

    def benchmark(self) -> tuple[Prompt, ...]:
        raise ConfigError(
            "a file of prompts has no benchmark; evaluate with --prompts HELD_OUT.txt, which asks a judge"
        )

    def development(self) -> tuple[Prompt, ...]:
        raise ConfigError("a file of prompts has no development prompts")

    def second_benchmark(self, seed: int) -> tuple[Prompt, ...]:
        return ()

    def supervised_batch(self, seed: int, name: str, index: int, size: int) -> tuple[Sequence[Request], Tensor]:
        raise ConfigError("algorithm sft: trains on captioned pictures of the embedded world, so it takes no --prompts")

    def reference_pictures(self, prompts: Sequence[Request], num: int, seed: int) -> Tensor:
        raise ConfigError("a file of prompts has no reference pictures; --metrics needs a run of the embedded world")

    def check(self, drawn: Drawn) -> None:
        """Accept every generator whose requests the prompts are: all with a picture to begin with, or none."""
        everything = (*self.training, *self.probing)
        num = sum(p.condition is not None for p in everything)
        if drawn.from_picture and num < len(everything):
            raise ConfigError(
                f"{len(everything) - num} of {len(everything)} prompts have no picture to begin with; image-to-video "
                "needs a JSONL file with a field `condition` in every line"
            )
        if num and not drawn.from_picture:
            raise ConfigError(
                f"{num} of {len(everything)} prompts have a picture to begin with (`condition`), but this generator "
                "draws from text alone"
            )

    def build_preferences(self, folder: Path, seed: int) -> None:
        raise ConfigError("a file of prompts has no preferences; `rewarddance data import` reads your own")
