"""The embedded world as a task: its prompts, its oracle, its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.plugins import load_plugin
from rewarddance.core.streams import stream
from rewarddance.core.task import Drawn, Prompt, Request, texts_of
from rewarddance.world.batches import captioned_batch
from rewarddance.world.benchmark import benchmark_prompts, development_prompts, second_prompts
from rewarddance.world.grammar import parse, random_phrase
from rewarddance.world.oracle import fidelity
from rewarddance.world.render import render
from rewarddance.world.sampling import place, sample_pair
from rewarddance.world.scene import CANVAS
from rewarddance.world.splits import meaning


def oracle_fidelity(prompts: Sequence[Request], media: Sequence[Media], start: Sequence[Media]) -> list[float]:
    """Oracle fidelity of every picture, in [0, 1]."""
    return [fidelity(m.to_numpy(), p) for p, m in zip(texts_of(prompts), media, strict=True)]


def _pixels(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) as (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


class EmbeddedTask:
    """Implements `core.task.Task`."""

    name = "embedded"
    gold = staticmethod(oracle_fidelity)
    gold_name = "oracle fidelity"
    features = "tiny"
    criteria = None
    rate = None

    def prompts(self, num_train: int, num_probe: int, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """Random prompts of the training split, all with different meanings."""
        rng, by_meaning = stream(seed, "align-prompts"), dict[str, Prompt]()
        while len(by_meaning) < num_train + num_probe:
            spec = sample_pair(rng)[0]
            by_meaning.setdefault(meaning(spec), Prompt(random_phrase(spec, rng), spec.category))
        drawn = tuple(by_meaning.values())
        return drawn[:num_train], drawn[num_train:]

    def benchmark(self) -> tuple[Prompt, ...]:
        return tuple(Prompt(text, category) for category, text in benchmark_prompts())

    def development(self) -> tuple[Prompt, ...]:
        return tuple(Prompt(text, category) for category, text in development_prompts())

    def second_benchmark(self, seed: int) -> tuple[Prompt, ...]:
        """Further held-out prompts, none of them in `benchmark` or `development` (`benchmark.second_prompts`)."""
        return tuple(Prompt(text, category) for category, text in second_prompts(seed))

    def supervised_batch(self, seed: int, name: str, index: int, size: int) -> tuple[list[str], Tensor]:
        prompts, images = captioned_batch(seed, name, index, size)
        return prompts, _pixels(images)

    def reference_pictures(self, prompts: Sequence[Request], num: int, seed: int) -> Tensor:
        """Scenes of the prompts, placed at random."""
        rng = stream(seed, "reference-pictures")
        return _pixels(np.stack([render(place(parse(p), rng)) for p in texts_of(prompts) for _ in range(num)]))

    def check(self, drawn: Drawn) -> None:
        if drawn.num_frames > 1 or drawn.from_picture:
            raise ConfigError(
                "the generator draws clips and the embedded task has pictures; take --task embedded-video or "
                "embedded-image-to-video"
            )
        if drawn.side != CANVAS:
            raise ConfigError(
                f"the generator draws {drawn.side} pixels and the embedded world has {CANVAS}, so it does not know "
                "the world's prompts; give your own with --prompts FILE"
            )

    def build_preferences(self, folder: Path, seed: int) -> None:
        load_plugin("rewarddance.jobs.data.build:build_embedded", {}, "data")(folder, seed)
