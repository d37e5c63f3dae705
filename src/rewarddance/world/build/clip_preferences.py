"""Preferences of the moving world: clips of one prompt from right to wrong, and simulated choices between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from rewarddance.core.config import Config
from rewarddance.core.media import Media
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.world.build.preferences import choices
from rewarddance.world.motion.corrupt import damage_randomly, edit_scene
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.motion.oracle import judge
from rewarddance.world.motion.raters import utility
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import place, sample_spec
from rewarddance.world.motion.scene import FPS, MotionScene, MotionSpec
from rewarddance.world.motion.splits import scene_is_trainable
from rewarddance.world.raters import crowd
from rewarddance.world.splits import Split

MotionTask = Literal["t2v", "i2v"]
EDITS_PER_CLIP = (0.3, 0.4, 0.2, 0.1)
"""Shares of clips with 0, 1, 2 and 3 edits."""
OTHER_FIRST_SHARE = 0.15
"""Share of image-to-video clips that begin with another picture than the given one."""


class ClipPreferencesConfig(Config):
    """Numbers of prompts and clips, and the raters."""

    seed: int = 0
    task: MotionTask = "t2v"
    split: Split = "train"
    num_prompts: int = 4800
    clips: int = 4
    criterion: Literal["fidelity", "motion", "consistency", "first_frame", "overall"] = "overall"
    damage_share: float = 0.33
    """Share of clips whose frames are damaged, in addition to edits."""
    shuffle_labels: bool = False
    """Random choices, for the control judge."""
    num_raters: int = 8
    votes: int = 5
    """Raters who judge each pair; its label is the mean of their choices (1, 0 or 0.5 each)."""


def _edit(scene: MotionScene, rng: np.random.Generator, train: bool, keep_first: bool) -> MotionScene:
    """One edit, or none where no acceptable one exists. Outside the training split the result may be held out."""
    try:
        return edit_scene(scene, rng, keep_first=keep_first, accept=scene_is_trainable if train else _anything)
    except RuntimeError:
        return scene


def _anything(scene: MotionScene) -> bool:
    return True


def corrupted_clips(
    spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, config: ClipPreferencesConfig
) -> list[Clip]:
    """Clips from right to wrong: the scene, or another one of the specification, with 0 to 3 edits and damage.

    In image-to-video, most of them begin as `scene` does.
    """
    clips, train = [], config.split == "train"
    for _ in range(config.clips):
        keep_first = config.task == "i2v" and rng.random() >= OTHER_FIRST_SHARE
        current = scene if keep_first or rng.random() < 0.5 else _placed_again(spec, scene, rng, train)
        for _ in range(int(rng.choice(4, p=EDITS_PER_CLIP))):
            current = _edit(current, rng, train, keep_first)
        clip = render(current)
        clips.append(damage_randomly(clip, rng, 1.0, keep_first) if rng.random() < config.damage_share else clip)
    return clips


def _placed_again(spec: MotionSpec, scene: MotionScene, rng: np.random.Generator, train: bool) -> MotionScene:
    try:
        other = place(spec, rng)
    except RuntimeError:  # little room for two objects
        return scene
    return other if not train or scene_is_trainable(other) else scene


def _pair(config: ClipPreferencesConfig, rng: np.random.Generator) -> tuple[MotionSpec, MotionScene]:
    while True:
        spec = sample_spec(rng, split=config.split)
        try:
            scene = place(spec, rng)
        except RuntimeError:  # two objects that always collide
            continue
        if config.split != "train" or scene_is_trainable(scene):
            return spec, scene


def clip_records(config: ClipPreferencesConfig, first: int = 0, last: int | None = None) -> Iterator[PreferenceRecord]:
    """Records `first` to `last`, one by one; each is a pure function of the configuration and its index.

    Image-to-video records hold the given picture as `condition`.

    Raises:
        ValueError: the criterion `first_frame` without image-to-video.
    """
    if config.criterion == "first_frame" and config.task != "i2v":
        raise ValueError("the criterion first_frame needs task i2v")
    raters = crowd(config.num_raters, config.seed)
    wordings = (*WORDINGS, *HELD_OUT_WORDINGS) if config.split == "ood" else WORDINGS
    for i in range(first, config.num_prompts if last is None else min(last, config.num_prompts)):
        rng = stream(config.seed, "clip-preferences", config.task, config.split, i)
        spec, scene = _pair(config, rng)
        prompt = phrase(spec, wordings[int(rng.integers(len(wordings)))])
        given = render(scene)[0] if config.task == "i2v" else None
        clips = corrupted_clips(spec, scene, rng, config)
        truth = [utility(judge(c, spec, FPS, given), config.criterion) for c in clips]
        utilities = list(rng.random(len(truth))) if config.shuffle_labels else truth
        name = f"{config.task}-{config.split}-{i}"
        yield PreferenceRecord(
            record_id=name,
            prompt=prompt,
            media=tuple(Media.from_numpy(c, fps=FPS, origin=name) for c in clips),
            choices=choices(utilities, raters, rng, config.votes),
            criterion=config.criterion,
            source="rendered",
            truth=tuple(truth),
            ratings=tuple(float(np.mean([r.rate(u, rng) for r in raters])) for u in utilities),
            groups={"style": spec.style, "category": spec.acts[0].action},
            condition=None if given is None else Media.from_numpy(given, origin=name),
        )
