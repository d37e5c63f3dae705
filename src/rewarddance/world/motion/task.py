"""The moving world as tasks: text-to-video, and image-to-video whose prompts have a first frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.streams import stream
from rewarddance.core.task import Drawn, Prompt, Request, picture_of, text_of
from rewarddance.world.motion.batches import clip_batch
from rewarddance.world.motion.benchmark import ActionPrompt, SetName, action_set
from rewarddance.world.motion.grammar import WORDINGS, parse, phrase
from rewarddance.world.motion.oracle import CRITERIA, MotionJudgement, judge
from rewarddance.world.motion.raters import alignment, utility
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import place, sample_pair
from rewarddance.world.motion.scene import FPS, NUM_FRAMES, MotionScene
from rewarddance.world.motion.splits import meaning
from rewarddance.world.raters import crowd
from rewarddance.world.scene import CANVAS

NUM_RATERS = 8
"""Simulated raters of `rate`."""


def judgements(prompts: Sequence[Request], media: Sequence[Media]) -> list[MotionJudgement]:
    """The motion oracle's verdict on every clip; with `first_frame` if the prompt has a picture."""
    return [_judgement(p, m) for p, m in zip(prompts, media, strict=True)]


def _judgement(prompt: Request, clip: Media) -> MotionJudgement:
    if clip.fps is None or clip.num_frames < 2:
        raise InputError(f"{clip.origin or 'media'}: the motion oracle judges clips, and this is a picture")
    first = picture_of(prompt)
    return judge(clip.to_numpy(), text_of(prompt), clip.fps, None if first is None else first.to_numpy())


def oracle_value(prompts: Sequence[Request], media: Sequence[Media], start: Sequence[Media]) -> list[float]:
    """The oracle's criteria of every clip in one number, weighted as `raters.utility` does, in [0, 1]."""
    return [utility(j, "overall") for j in judgements(prompts, media)]


def oracle_criteria(prompts: Sequence[Request], media: Sequence[Media]) -> dict[str, list[float]]:
    """Every criterion of the oracle, and `overall`; `first_frame` only if all prompts have a picture."""
    verdicts = judgements(prompts, media)
    names = CRITERIA if all(v.first_frame is not None for v in verdicts) else CRITERIA[:3]
    return {name: [v[name] for v in verdicts] for name in names} | {
        "overall": [utility(v, "overall") for v in verdicts]
    }


def rater_scores(values: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Scores of `NUM_RATERS` simulated raters, 0 to 2, (N, K, raters), from values of one criterion, (N, K).

    Fidelity gives video-text alignment, and `overall` a score of the whole clip. The raters are the same people for
    every seed. If the two sides of a comparison had other raters, the raters' mean leniency would change the result.
    """
    return alignment(values, crowd(NUM_RATERS), seed)[1]


class _MotionTask:
    """The shared part of both tasks; implements `core.task.Task`."""

    name: ClassVar[str]
    gold = staticmethod(oracle_value)
    gold_name = "oracle value (fidelity, motion, consistency)"
    criteria = staticmethod(oracle_criteria)
    rate = staticmethod(rater_scores)
    features = "tiny"
    from_picture: ClassVar[bool]
    test_set: ClassVar[SetName]
    development_set: ClassVar[SetName]

    def _prompt(self, text: str, category: str, shown: MotionScene | Clip, **fields: Any) -> Prompt:
        """A prompt of this scene or clip. Only image-to-video needs its first frame."""
        if not self.from_picture:
            return Prompt(text, category, fields=fields)
        clip = render(shown) if isinstance(shown, MotionScene) else shown
        return Prompt(text, category, Media.from_numpy(clip[0], origin="first frame"), fields)

    def _of_set(self, prompts: Sequence[ActionPrompt]) -> tuple[Prompt, ...]:
        return tuple(self._prompt(p.text, p.category, p.scene, name=p.name) for p in prompts)

    def prompts(self, num_train: int, num_probe: int, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """Random prompts of the training split, all with different meanings."""
        rng, by_meaning = stream(seed, "align-clips", self.name), dict[str, Prompt]()
        while len(by_meaning) < num_train + num_probe:
            spec, scene = sample_pair(rng)
            text = phrase(spec, WORDINGS[int(rng.integers(len(WORDINGS)))])
            if meaning(spec) not in by_meaning:
                by_meaning[meaning(spec)] = self._prompt(text, spec.acts[0].action, scene)
        drawn = tuple(by_meaning.values())
        return drawn[:num_train], drawn[num_train:]

    def benchmark(self) -> tuple[Prompt, ...]:
        return self._of_set(action_set(self.test_set))

    def development(self) -> tuple[Prompt, ...]:
        return self._of_set(action_set(self.development_set))

    def second_benchmark(self, seed: int) -> tuple[Prompt, ...]:
        return ()

    def supervised_batch(self, seed: int, name: str, index: int, size: int) -> tuple[Sequence[Request], Tensor]:
        texts, clips = clip_batch(seed, name, index, size)
        pixels = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255
        return [self._prompt(t, parse(t).acts[0].action, c) for t, c in zip(texts, clips, strict=True)], pixels

    def reference_pictures(self, prompts: Sequence[Request], num: int, seed: int) -> Tensor:
        """Right clips, (P num, F, 3, H, W): scenes of the prompts, placed at random.

        For image-to-video the prompts are those of the action sets. Their first frame fixes the scene, so all `num`
        clips of a prompt are equal.

        Raises:
            ConfigError: image-to-video with a prompt that is not of an action set.
        """
        rng, scenes = stream(seed, "reference-clips"), self._scenes() if self.from_picture else {}
        clips = []
        for prompt in prompts:
            text = text_of(prompt)
            if self.from_picture and text not in scenes:
                raise ConfigError(
                    f"task {self.name}: {text!r} is not of an action set, so no right clip of it is known"
                )
            if self.from_picture:
                clips += [render(scenes[text])] * num
            else:
                clips += [render(place(parse(text), rng)) for _ in range(num)]
        return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255

    def _scenes(self) -> dict[str, MotionScene]:
        """The scenes of the action sets by their texts."""
        return {p.text: p.scene for name in (self.test_set, self.development_set) for p in action_set(name)}

    def check(self, drawn: Drawn) -> None:
        if drawn.num_frames < 2:
            raise ConfigError(f"task {self.name}: needs a generator of clips, and this one draws pictures")
        if drawn.from_picture != self.from_picture:
            other = "image-to-video" if drawn.from_picture else "text-to-video"
            raise ConfigError(f"task {self.name}: this generator is {other}; take --task embedded-{_KIND[other]}")
        if (drawn.side, drawn.num_frames, drawn.fps) != (CANVAS, NUM_FRAMES, FPS):
            raise ConfigError(
                f"the generator draws {drawn.num_frames} frames of {drawn.side} pixels at {drawn.fps:g} a second, and "
                f"the moving world has {NUM_FRAMES} of {CANVAS} at {FPS:g}, so it does not know the world's prompts; "
                "give your own with --prompts FILE"
            )

    def build_preferences(self, folder: Path, seed: int) -> None:
        raise ConfigError(f"task {self.name}: cannot write preferences of clips; name a judge")


_KIND = {"image-to-video": "image-to-video", "text-to-video": "video"}
"""Endings of the tasks' names."""


class EmbeddedVideoTask(_MotionTask):
    """Text-to-video of the moving world."""

    name = "embedded-video"
    from_picture = False
    test_set, development_set = "t2v", "t2v-dev"


class EmbeddedImageToVideoTask(_MotionTask):
    """Image-to-video of the moving world: the condition of every prompt is its first frame."""

    name = "embedded-image-to-video"
    gold_name = "oracle value (fidelity, motion, consistency, first frame)"
    from_picture = True
    test_set, development_set = "i2v", "i2v-dev"
